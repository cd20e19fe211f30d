"""The policy pack: the same functions, on what the engine hands over. Resources are built by hand here; no engine runs."""

from __future__ import annotations

from datetime import date
from typing import Any

from pulumi_policy import (
    EnforcementLevel,
    PolicyCustomTimeouts,
    PolicyProviderResource,
    PolicyResource,
    PolicyResourceOptions,
    StackValidationArgs,
)

from infra import config
from infra.embedded.graph import Graph, tokens_in
from infra.guardrails.engine import policies
from infra.guardrails.graphs import judge_graphs
from policies.guardrails.rules import RULES

TODAY = date(2026, 11, 24)


def handed_over(graph: Graph) -> list[PolicyResource]:
    """The graph as the engine gives it to a pack: properties as values, dependencies by property."""
    known: dict[str, PolicyResource] = {}
    for found in graph.resources:
        options = PolicyResourceOptions(
            protect=found.options.protect,
            ignore_changes=[],
            delete_before_replace=None,
            aliases=[],
            custom_timeouts=PolicyCustomTimeouts(0, 0, 0),
            additional_secret_outputs=[],
            parent=found.parent,
        )
        provider = PolicyProviderResource("pulumi:providers:aws", {}, found.options.provider, "aws") if found.custom else None
        known[found.urn] = PolicyResource(found.type, found.inputs, found.urn, found.name, options, provider, None, [], {})
    for found in graph.resources:
        known[found.urn].property_dependencies = {
            name: [known[urn] for urn, _ in sorted(tokens_in(value)) if urn in known] for name, value in found.inputs.items()
        }
        _named_buckets(graph, known, found.urn)
    return list(known.values())


def _named_buckets(graph: Graph, known: dict[str, PolicyResource], urn: str) -> None:
    """The engine knows that a bucket's name came from the bucket; a recording has the name alone."""
    buckets = {found.inputs["bucket"]: known[found.urn] for found in graph.of_type("aws:s3/bucket:Bucket")}
    resource = known[urn]
    if resource.resource_type != "aws:s3/bucket:Bucket" and resource.props.get("bucket") in buckets:
        resource.property_dependencies["bucket"] = [buckets[resource.props["bucket"]]]


def test_the_pack_finds_what_the_recording_shows(graphs: dict[str, Graph]) -> None:
    catalog = config.load_catalog()
    graph = graphs["prod.foundation"]
    opened = [item for item in handed_over(graph) if "PublicAccessBlock" not in item.resource_type]
    reported: list[tuple[str, str]] = []
    for policy in policies(RULES, catalog, (), lambda: TODAY):

        def report(message: str, urn: str | None, name: str = policy.name) -> None:
            reported.append((name, str(urn)))

        policy.validate(StackValidationArgs(opened), report)
    buckets = [found.urn for found in graph.of_type("aws:s3/bucket:Bucket")]
    already = [
        (finding.rule, finding.urn)
        for verdict in judge_graphs({"": graph}, catalog, (), TODAY).verdicts
        for finding in verdict.findings
    ]
    assert sorted(reported) == sorted([*already, *(("bucket-private", urn) for urn in buckets)])


def test_mandatory_rules_stop_a_deployment() -> None:
    levels: dict[str, Any] = {
        policy.name: policy.enforcement_level for policy in policies(RULES, config.load_catalog(), (), lambda: TODAY)
    }
    assert len(levels) == len(RULES)
    assert levels["bucket-private"] is EnforcementLevel.MANDATORY
