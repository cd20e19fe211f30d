"""What `flotilla preview` shows: each stack's resources by type, and what would change against the last `up`.

It is ours, not the engine's: it knows what the program declares, not what a provider would make of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.embedded.diff import ABSENT, GraphDiff, PropertyChange, ResourceChange, Verdict, compare
from infra.embedded.graph_json import load_graph
from infra.embedded.recorder import record

MARKS = {Verdict.CREATED: ("+", "green"), Verdict.CHANGED: ("~", "yellow"), Verdict.DELETED: ("-", "red")}
MAX_VALUE_CHARS = 60
NUM_SHOWN_NEW = 12
"""A stack with more new resources than this is summed up by type; its list says nothing that the sum does not."""


@dataclass(frozen=True)
class StackPreview:
    """One stack."""

    stack: str
    is_new: bool
    """Whether it has never come up here."""
    num_by_type: Mapping[str, int]
    diff: GraphDiff

    def as_json(self) -> dict[str, Any]:
        """For machines: counts, types, and every change."""
        return {
            "stack": self.stack,
            "is_new": self.is_new,
            "counts": {verdict.value: number for verdict, number in self.diff.counts().items()},
            "num_by_type": dict(self.num_by_type),
            "changes": [_change_json(change) for change in self.diff.of(*MARKS)],
        }


@dataclass(frozen=True)
class PreviewReport:
    """Every stack that was asked for, in the order in which they depend on each other."""

    stacks: tuple[StackPreview, ...]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"stacks": [stack.as_json() for stack in self.stacks]}

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change anywhere."""
        return all(stack.diff.is_empty for stack in self.stacks)


def preview(stacks: Sequence[str], state_dir: Path, *, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> PreviewReport:
    """Records `stacks` and compares each with its graph of the last `up` in `state_dir`.

    Raises:
        UserError: a stack's name, its configuration or a kept graph is wrong.
    """
    graphs = record(stacks, overrides=overrides)
    previews: list[StackPreview] = []
    for name, graph in graphs.items():
        if name not in stacks:
            continue
        before = load_graph(state_dir, name)
        num_by_type = Counter(resource.type for resource in graph.resources)
        previews.append(StackPreview(name, before is None, dict(sorted(num_by_type.items())), compare(before, graph)))
    return PreviewReport(tuple(previews))


def render(report: PreviewReport) -> RenderableType:
    """The report for people."""
    parts: list[RenderableType] = []
    for stack in report.stacks:
        parts += [_heading(stack), *_body(stack), Text()]
    return Group(*parts)


def _heading(stack: StackPreview) -> Text:
    counts = stack.diff.counts()
    text = Text(stack.stack, style="bold")
    told = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]]
    text.append(f"  {', '.join(told) or 'no resources'}", style="not bold dim")
    return text


def _body(stack: StackPreview) -> Iterator[RenderableType]:
    if stack.diff.is_empty:
        return
    created = list(stack.diff.of(Verdict.CREATED))
    if len(created) > NUM_SHOWN_NEW:
        yield _by_type(Counter(change.resource.type for change in created))
        shown = list(stack.diff.of(Verdict.CHANGED, Verdict.DELETED))
    else:
        shown = list(stack.diff.of(*MARKS))
    for change in shown:
        yield from _change_lines(change)


def _by_type(num_by_type: Mapping[str, int]) -> Table:
    mark, style = MARKS[Verdict.CREATED]
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style=style)
    table.add_column()
    for name, number in sorted(num_by_type.items()):
        table.add_row(f"  {mark} {number}", Text(name))
    return table


def _change_lines(change: ResourceChange) -> Iterator[Text]:
    mark, style = MARKS[change.verdict]
    line = Text(f"  {mark} ", style=style)
    line.append(f"{change.resource.type} ", style="not bold")
    line.append(change.resource.name, style="bold")
    if change.resource.options.protect and change.verdict is Verdict.DELETED:
        line.append("  protected: the engine refuses to delete it", style="red")
    yield line
    for item in change.properties:
        yield Text(f"      {item.path}: {_short(item.before)} → {_short(item.after)}", style="dim")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[: MAX_VALUE_CHARS - 1]}…"


def _change_json(change: ResourceChange) -> dict[str, Any]:
    return {
        "verdict": change.verdict.value,
        "urn": change.resource.urn,
        "type": change.resource.type,
        "name": change.resource.name,
        "protect": change.resource.options.protect,
        "properties": [_property_json(item) for item in change.properties],
    }


def _property_json(item: PropertyChange) -> dict[str, Any]:
    """Before and after; a side that is not there is left out."""
    sides = {"before": item.before, "after": item.after}
    return {"path": item.path, **{side: value for side, value in sides.items() if value is not ABSENT}}
