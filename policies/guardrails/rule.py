"""What a guardrail is, and how a stack is judged by all of them.

A rule is a function over one resource and the estate around it; it yields one sentence for each thing that is wrong, none
where all is well. Its docstring's first line says what must hold, the rest why, so that the rules' own page is made from them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from policies.guardrails.estate import Estate
from policies.resources import Declared

Check = Callable[[Declared, Estate], Iterator[str]]
ANY_TYPE = "*"


class Severity(StrEnum):
    """Whether a deployment may go on."""

    MANDATORY = "mandatory"
    ADVISORY = "advisory"


@dataclass(frozen=True)
class Rule:
    """One guardrail."""

    name: str
    types: tuple[str, ...]
    """Resource types that it looks at; ANY_TYPE is all that a provider makes."""
    severity: Severity
    remedy: str
    check: Check

    @property
    def title(self) -> str:
        """What must hold."""
        return self._documented[0]

    @property
    def reason(self) -> str:
        """Why, and where that comes from; empty where the title says it all."""
        return " ".join(self._documented[1:])

    @property
    def _documented(self) -> list[str]:
        return [" ".join(part.split()) for part in (inspect.getdoc(self.check) or "").split("\n\n")]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    rule: str
    severity: Severity
    stack: str
    urn: str
    type: str
    name: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Waiver:
    """A finding that somebody answers for, until a day."""

    rule: str
    resource: str
    """Logical name of the resource."""
    owner: str
    reason: str
    expires: date
    stack: str = ""
    """Empty: in every stack."""

    def covers(self, finding: Finding, today: date) -> bool:
        """Whether it stands for `finding` today; its last day counts."""
        return (
            self.rule == finding.rule
            and self.resource == finding.name
            and self.stack in ("", finding.stack)
            and today <= self.expires
        )


@dataclass(frozen=True)
class Verdict:
    """What the rules say of one stack."""

    stack: str
    findings: tuple[Finding, ...]
    waived: tuple[Finding, ...]
    num_checks: int
    """Questions asked: pairs of a rule and a resource."""

    @property
    def is_refused(self) -> bool:
        """Whether something mandatory is wrong and nobody answers for it."""
        return any(finding.severity is Severity.MANDATORY for finding in self.findings)


class Rulebook:
    """Collects the rules of one module. Order is that of the file."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    def rule(self, name: str, *types: str, remedy: str, severity: Severity = Severity.MANDATORY) -> Callable[[Check], Check]:
        """Makes a rule of a function over resources of `types`; none means all that a provider makes."""

        def add(check: Check) -> Check:
            self.rules.append(Rule(name, types or (ANY_TYPE,), severity, remedy, check))
            return check

        return add


def judge(estate: Estate, rules: Sequence[Rule], waivers: Iterable[Waiver], today: date) -> Verdict:
    """Every finding of `rules` in `estate`, in the order of rules and resources; those with a valid waiver apart."""
    granted = list(waivers)
    found: list[Finding] = []
    waived: list[Finding] = []
    num_checks = 0
    for rule in rules:
        for resource in _asked(rule, estate):
            num_checks += 1
            for message in rule.check(resource, estate):
                finding = Finding(
                    rule.name, rule.severity, estate.stack, resource.urn, resource.type, resource.name, message, rule.remedy
                )
                covered = any(waiver.covers(finding, today) for waiver in granted)
                (waived if covered else found).append(finding)
    return Verdict(estate.stack, tuple(found), tuple(waived), num_checks)


def _asked(rule: Rule, estate: Estate) -> Iterator[Declared]:
    if rule.types == (ANY_TYPE,):
        return (resource for resource in estate.resources if resource.is_custom)
    return estate.of_type(*rule.types)
