"""The guardrails asked of recorded graphs, and the waivers that the repository grants.

A waiver is data in `stacks/waivers.yaml`: which finding, who answers for it, why, and until when. One that has expired counts no
more, and one that covers nothing is reported, so that the file cannot silt up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from infra import config
from infra.catalog import Catalog
from infra.documents import parse, raise_all, read_yaml
from infra.embedded.declared import declared
from infra.embedded.graph import Graph
from infra.naming import LOCAL, parse_stack
from infra.stack_config.model import Frozen
from policies.guardrails.estate import Estate, Scope
from policies.guardrails.rule import Rule, Verdict, Waiver, judge
from policies.guardrails.rules import RULES

WAIVERS_NAME = "waivers.yaml"
MIN_REASON_CHARS = 20


class WaiverEntry(Frozen):
    """One waiver as the file has it."""

    rule: str
    resource: Annotated[str, Field(min_length=1)]
    owner: Annotated[str, Field(min_length=1)]
    reason: Annotated[str, Field(min_length=MIN_REASON_CHARS)]
    expires: date
    stack: str = ""


class WaiversFile(Frozen):
    """`stacks/waivers.yaml`."""

    waivers: tuple[WaiverEntry, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What the rules say of several stacks."""

    verdicts: tuple[Verdict, ...]
    unused: tuple[Waiver, ...]
    """Waivers that covered nothing in these stacks: expired, or no longer needed."""

    @property
    def is_refused(self) -> bool:
        """Whether any stack is refused."""
        return any(verdict.is_refused for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "refused": self.is_refused,
            "stacks": [
                {
                    "stack": verdict.stack,
                    "checks": verdict.num_checks,
                    "findings": [vars(finding) for finding in verdict.findings],
                    "waived": [vars(finding) for finding in verdict.waived],
                }
                for verdict in self.verdicts
            ],
            "unused_waivers": [{**vars(waiver), "expires": waiver.expires.isoformat()} for waiver in self.unused],
        }


def judge_graphs(
    graphs: Mapping[str, Graph], catalog: Catalog, waivers: Sequence[Waiver], today: date, rules: Sequence[Rule] = RULES
) -> Judgement:
    """The verdict on each graph, in their order."""
    verdicts = tuple(judge(estate_of(graph, catalog), rules, waivers, today) for graph in graphs.values())
    waived = [finding for verdict in verdicts for finding in verdict.waived]
    unused = tuple(waiver for waiver in waivers if not any(waiver.covers(finding, today) for finding in waived))
    return Judgement(verdicts, unused)


def load_waivers(stacks_dir: Path = config.STACKS_DIR) -> tuple[Waiver, ...]:
    """The waivers of the repository; none where there is no file.

    Raises:
        ConfigError: the file cannot be read, does not fit, or waives a rule that there is not.
    """
    path, shown = stacks_dir / WAIVERS_NAME, f"stacks/{WAIVERS_NAME}"
    if not path.exists():
        return ()
    parsed, faults = parse(WaiversFile, read_yaml(path, shown), shown)
    known = {rule.name for rule in RULES}
    for index, entry in enumerate(parsed.waivers if parsed else ()):
        if entry.rule not in known:
            faults.append(
                f"{shown}: `waivers[{index}].rule` is {entry.rule!r}, which is no rule. `flotilla guardrails --rules` lists them."
            )
    raise_all(faults)
    assert parsed is not None
    return tuple(Waiver(**entry.model_dump()) for entry in parsed.waivers)


def estate_of(graph: Graph, catalog: Catalog) -> Estate:
    """The graph as rules see it."""
    scope = scope_of(catalog, parse_stack(graph.stack).environment)
    return Estate(graph.stack, declared(graph), scope)


def scope_of(catalog: Catalog, environment: str) -> Scope:
    """What the catalog says of the environment; its home region comes first."""
    known = catalog.environments[environment]
    others = (region for region in known.regions if region != known.home_region)
    return Scope((known.home_region, *others), is_on_this_machine=environment == LOCAL)
