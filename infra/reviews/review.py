"""Two commits compared: what changes, what it costs, which rules it breaks anew, how far it reaches.

Everything comes from recorded graphs, so it needs no cloud and no credentials, and may run on a fork's code in a job without a
token. It is ours, not the engine's: `pulumi preview` knows what really runs, and says so where credentials are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra import config
from infra.costs.budgets import load_budgets
from infra.costs.report import CostReport, cost_of, load_prices
from infra.embedded.diff import ResourceChange, Verdict
from infra.embedded.graph import Graph
from infra.embedded.preview import PreviewReport, both_sides, compared
from infra.guardrails.graphs import judge_graphs, load_waivers
from infra.naming import parse_stack
from policies.costs.budgets import BudgetVerdict, judge_budgets
from policies.guardrails.rule import Finding
from policies.resources import at

SCALED_OBJECT = "kubernetes:keda.sh/v1alpha1:ScaledObject"
SCALING: Mapping[str, tuple[str | int, ...]] = {
    "least": ("spec", "minReplicaCount"),
    "most": ("spec", "maxReplicaCount"),
    "work of one": ("spec", "triggers", -1, "metadata", "threshold"),
}
"""What decides the size of a workload, by the name that a reader sees."""


@dataclass(frozen=True)
class ScalingChange:
    """A workload that would grow or shrink otherwise than before."""

    stack: str
    workload: str
    what: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Review:
    """All that the comment says."""

    against: str
    preview: PreviewReport
    cost: CostReport
    budgets: tuple[BudgetVerdict, ...]
    """Of the working tree, held against what the later side costs."""
    broken: tuple[Finding, ...]
    """Findings that were not there before."""
    mended: tuple[Finding, ...]
    """Findings that are gone."""
    num_known: int
    """Findings that were there before and still are."""
    scaling: tuple[ScalingChange, ...]

    @property
    def replaced(self) -> tuple[tuple[str, ResourceChange], ...]:
        """What would be made anew, with its stack."""
        return self._of(Verdict.REPLACED)

    @property
    def deleted(self) -> tuple[tuple[str, ResourceChange], ...]:
        """What would be deleted, with its stack."""
        return self._of(Verdict.DELETED)

    @property
    def reach(self) -> Mapping[str, tuple[str, ...]]:
        """The blast radius: environment → regions that change; a layer of all regions counts as `all regions`."""
        found: dict[str, set[str]] = {}
        for stack in self.preview.stacks:
            if not stack.diff.is_empty:
                name = parse_stack(stack.stack)
                found.setdefault(name.environment, set()).add(name.region or "all regions")
        return {environment: tuple(sorted(regions)) for environment, regions in sorted(found.items())}

    def _of(self, verdict: Verdict) -> tuple[tuple[str, ResourceChange], ...]:
        return tuple((stack.stack, change) for stack in self.preview.stacks for change in stack.diff.of(verdict))


def review(ref: str) -> Review:
    """The working tree against commit `ref`, or with `A..B` commit B against commit A, over every stack of either.

    Prices, budgets, rules and waivers are today's on both sides: a review shows what the program makes of them.

    Raises:
        UserError: there is no such commit, or one of the two programs does not load.
    """
    sides = both_sides("", ref)
    return review_of(sides.before, sides.after, sides.against)


def review_of(before: Mapping[str, Graph], after: Mapping[str, Graph], against: str) -> Review:
    """The same for graphs that are at hand."""
    catalog, waivers, today = config.load_catalog(), load_waivers(), config.today()
    names = [*after, *(stack for stack in before if stack not in after)]
    known = {finding_key(finding): finding for finding in _findings(before, catalog, waivers, today)}
    cost = cost_of(after, load_prices(), before, against)
    now = {finding_key(finding): finding for finding in _findings(after, catalog, waivers, today)}
    return Review(
        against=against,
        preview=PreviewReport(compared(names, after, before.get), against),
        cost=cost,
        budgets=judge_budgets(cost.bills, load_budgets()),
        broken=tuple(finding for key, finding in now.items() if key not in known),
        mended=tuple(finding for key, finding in known.items() if key not in now),
        num_known=len(now.keys() & known.keys()),
        scaling=tuple(_scaling(before, after)),
    )


def finding_key(finding: Finding) -> tuple[str, str, str]:
    """What makes two findings the same one."""
    return finding.rule, finding.urn, finding.message


def _findings(graphs: Mapping[str, Graph], catalog: Any, waivers: Any, today: Any) -> Iterator[Finding]:
    """Findings of stacks whose environment the catalog still has: a removed one breaks no rule any more."""
    left = {stack: graph for stack, graph in graphs.items() if parse_stack(stack).environment in catalog.environments}
    for verdict in judge_graphs(left, catalog, waivers, today).verdicts:
        yield from verdict.findings


def _scaling(before: Mapping[str, Graph], after: Mapping[str, Graph]) -> Iterator[ScalingChange]:
    """In stacks of both sides: one that comes or goes whole is told as that."""
    for stack in (stack for stack in after if stack in before):
        old, new = _scaled(before[stack]), _scaled(after[stack])
        for workload in sorted(old.keys() | new.keys()):
            for what, path in SCALING.items():
                was, will = at(old.get(workload), *path), at(new.get(workload), *path)
                if was != will:
                    yield ScalingChange(stack, workload, what, was, will)


def _scaled(graph: Graph) -> dict[str, Mapping[str, Any]]:
    return {found.name: found.inputs for found in graph.of_type(SCALED_OBJECT)}
