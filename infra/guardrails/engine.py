"""The guardrails under the real engine: `pulumi preview --policy-pack infra/guardrails/pack` asks the same functions.

The engine hands over properties as values, says which resources each property depends on, and knows nothing of the catalog; the
rest is as in a recorded graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any, Protocol

from infra.catalog import Catalog
from infra.guardrails.graphs import scope_of
from infra.naming import parse_stack
from policies.guardrails.estate import Estate
from policies.guardrails.rule import Finding, Rule, Severity, Waiver, judge
from policies.resources import Declared


class EngineResource(Protocol):
    """What we use of a `pulumi_policy.PolicyResource`."""

    resource_type: str
    props: Mapping[str, Any]
    urn: str
    name: str
    opts: Any
    provider: Any
    property_dependencies: Mapping[str, list[Any]]


def estate_of(resources: Iterable[EngineResource], catalog: Catalog) -> Estate:
    """The engine's resources as rules see them. There is at least one: the stack itself."""
    listed = list(resources)
    stack = listed[0].urn.split("::")[0].rpartition(":")[2]
    return Estate(stack, tuple(_declared(stack, item) for item in listed), scope_of(catalog, parse_stack(stack).environment))


def broken(
    rule: Rule, resources: Iterable[EngineResource], catalog: Catalog, waivers: Iterable[Waiver], today: date
) -> tuple[Finding, ...]:
    """What one rule finds wrong with the stack and nobody waives."""
    return judge(estate_of(resources, catalog), [rule], waivers, today).findings


def policies(rules: Iterable[Rule], catalog: Catalog, waivers: Iterable[Waiver], today: Callable[[], date]) -> list[Any]:
    """Each rule as a `pulumi_policy.StackValidationPolicy`; mandatory ones stop a deployment."""
    from pulumi_policy import EnforcementLevel, StackValidationPolicy

    granted = tuple(waivers)

    def policy(rule: Rule) -> StackValidationPolicy:
        def validate(args: Any, report: Callable[[str, str | None], None]) -> None:
            for finding in broken(rule, args.resources, catalog, granted, today()):
                report(f"{finding.name}: {finding.message} → {finding.remedy}", finding.urn)

        level = EnforcementLevel.MANDATORY if rule.severity is Severity.MANDATORY else EnforcementLevel.ADVISORY
        return StackValidationPolicy(name=rule.name, description=rule.title, validate=validate, enforcement_level=level)

    return [policy(rule) for rule in rules]


def _declared(stack: str, item: EngineResource) -> Declared:
    return Declared(
        stack=stack,
        urn=item.urn,
        type=item.resource_type,
        name=item.name,
        inputs=item.props,
        is_custom=item.provider is not None,
        is_protected=bool(item.opts.protect),
        provider=item.provider.urn if item.provider is not None else "",
        references={name: frozenset(other.urn for other in others) for name, others in item.property_dependencies.items()},
    )
