"""What `flotilla preview` shows: each stack's resources by type, and what would change against the last `up` or another commit.

It is ours, not the engine's: it knows what the program declares and by which tables a provider replaces (`replacements`), not
what lies in a cloud. Stacks are compared in the order in which they depend on each other, and a replacement in one shows in those
after it, as it would in a roll-out of them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.embedded.against import commit_of, graphs_at
from infra.embedded.diff import GraphDiff, PropertyChange, Refusal, ResourceChange, Verdict, compare_in_order
from infra.embedded.graph import Graph
from infra.embedded.graph_json import load_graph
from infra.embedded.property_paths import ABSENT
from infra.embedded.recorder import every_stack, record
from infra.errors import ConfigError

MARKS = {
    Verdict.CREATED: ("+", "green"),
    Verdict.UPDATED: ("~", "yellow"),
    Verdict.REPLACED: ("±", "magenta"),
    Verdict.DELETED: ("-", "red"),
}
LAST_UP = "the last `up`"
MAX_VALUE_CHARS = 60
NUM_SHOWN_NEW = 12
"""A stack with more new resources than this is summed up by type; its list says nothing that the sum does not. So for deleted."""


class Presence(StrEnum):
    """On which side a stack is."""

    BOTH = "both"
    NEW = "new"
    REMOVED = "removed"


@dataclass(frozen=True)
class StackPreview:
    """One stack."""

    stack: str
    presence: Presence
    num_by_type: Mapping[str, int]
    """As it will be."""
    diff: GraphDiff

    @property
    def num_protected(self) -> int:
        """Resources that the engine neither deletes nor replaces."""
        return sum(change.resource.options.protect for change in self.diff.changes)

    def as_json(self) -> dict[str, Any]:
        """For machines: counts, types, and every change."""
        return {
            "stack": self.stack,
            "presence": self.presence.value,
            "counts": {verdict.value: number for verdict, number in self.diff.counts().items()},
            "num_protected": self.num_protected,
            "num_refused": len(self.diff.refused),
            "num_by_type": dict(self.num_by_type),
            "changes": [_change_json(change) for change in self.diff.of(*MARKS)],
        }


@dataclass(frozen=True)
class PreviewReport:
    """Every stack that was asked for, in the order in which they depend on each other."""

    stacks: tuple[StackPreview, ...]
    against: str = LAST_UP
    """What the working tree was compared with."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"against": self.against, "stacks": [stack.as_json() for stack in self.stacks]}

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change anywhere."""
        return all(stack.diff.is_empty for stack in self.stacks)

    @property
    def has_replacements(self) -> bool:
        """Whether a resource would be replaced, or a protected one deleted."""
        changes = [change for stack in self.stacks for change in stack.diff.of(Verdict.REPLACED, Verdict.DELETED)]
        return any(change.verdict is Verdict.REPLACED or change.refusal for change in changes)


def preview(stack: str, state_dir: Path, *, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> PreviewReport:
    """Compares a stack, or with `""` every stack of every environment, with its graph of the last `up` in `state_dir`.

    Raises:
        UserError: the stack's name, a configuration or a kept graph is wrong.
    """
    stacks = [stack] if stack else every_stack()
    graphs = record(stacks, overrides=overrides)
    return PreviewReport(compared(stacks, graphs, lambda name: load_graph(state_dir, name)))


@dataclass(frozen=True)
class Sides:
    """The graphs of two programs, by stack."""

    before: Mapping[str, Graph]
    after: Mapping[str, Graph]
    against: str
    """What `before` is, in words."""


def preview_against(stack: str, ref: str) -> PreviewReport:
    """Compares a stack, or with `""` every stack of either side, with the graphs of a commit's own program (`both_sides`).

    Raises:
        UserError: the stack is on neither side, a configuration is wrong, or a commit cannot be recorded.
    """
    sides = both_sides(stack, ref)
    every = (*sides.after, *(name for name in sides.before if name not in sides.after))
    wanted = [name for name in every if stack in ("", name)]
    if not wanted:
        raise ConfigError(f"{stack}: no such stack, on neither side of {sides.against}", "`flotilla preview --all` names them")
    return PreviewReport(compared(wanted, sides.after, sides.before.get), sides.against)


def both_sides(stack: str, ref: str) -> Sides:
    """The graphs of a stack and of those that it refers to, or with `""` of every stack, at a commit and now.

    `ref` names the commit that the working tree is compared with; `A..B` compares commit B with commit A, and reads nothing of
    the working tree.

    Raises:
        UserError: a configuration is wrong, or a commit cannot be recorded.
    """
    ref, is_range, later_ref = ref.partition("..")
    against = f"{ref} ({commit_of(ref)[:12]})"
    if is_range:
        against += f", at {later_ref} ({commit_of(later_ref)[:12]})"
    asked = [stack] if stack else []
    with ThreadPoolExecutor(1) as beside:
        earlier = beside.submit(graphs_at, ref, asked)
        graphs = graphs_at(later_ref, asked) if is_range else record([name for name in every_stack() if stack in ("", name)])
        return Sides(earlier.result(), graphs, against)


def compared(
    wanted: Sequence[str], graphs: Mapping[str, Graph], earlier: Callable[[str], Graph | None]
) -> tuple[StackPreview, ...]:
    """A preview of each of `wanted`; what those that they refer to replace or rename counts too."""
    stacks = [*graphs, *(stack for stack in wanted if stack not in graphs)]
    sides = [(earlier(stack), graphs.get(stack)) for stack in stacks]
    return tuple(
        _stack_preview(stack, before, after, diff)
        for stack, (before, after), diff in zip(stacks, sides, compare_in_order(sides), strict=True)
        if stack in wanted
    )


def _stack_preview(stack: str, before: Graph | None, after: Graph | None, diff: GraphDiff) -> StackPreview:
    presence = Presence.NEW if before is None else Presence.REMOVED if after is None else Presence.BOTH
    num_by_type = Counter(resource.type for resource in after.resources) if after else Counter[str]()
    return StackPreview(stack, presence, dict(sorted(num_by_type.items())), diff)


def render(report: PreviewReport) -> RenderableType:
    """The report for people: each stack that changes, then a line for each stack."""
    parts: list[RenderableType] = []
    for stack in report.stacks:
        if not stack.diff.is_empty:
            parts += [Text(stack.stack, style="bold"), *_body(stack), Text()]
    parts += [_summary(report), *_warnings(report)]
    return Group(*parts)


def _summary(report: PreviewReport) -> Table:
    table = Table(box=None, pad_edge=False, title=f"against {report.against}", title_justify="left", title_style="dim")
    table.add_column("stack", style="bold", no_wrap=True)
    table.add_column("")
    for name in [*(verdict.value for verdict in Verdict), "protected"]:
        table.add_column(name, justify="right", no_wrap=True)
    for stack in report.stacks:
        presence = "" if stack.presence is Presence.BOTH else stack.presence.value
        numbers = [_number(number, MARKS.get(verdict, ("", "dim"))[1]) for verdict, number in stack.diff.counts().items()]
        table.add_row(stack.stack, presence, *numbers, _number(stack.num_protected, "dim"))
    return table


def _number(number: int, style: str) -> Text:
    return Text(str(number), style=style) if number else Text("·", style="dim")


def _warnings(report: PreviewReport) -> Iterator[Text]:
    """What will not go through, once more and last, where it is seen."""
    for stack in report.stacks:
        for change in stack.diff.refused:
            line = Text("\nREFUSED ", style="bold red")
            line.append(f"{stack.stack} {change.resource.type} {change.resource.name}: {_refusal(change)}", style="red")
            yield line


def _body(stack: StackPreview) -> Iterator[RenderableType]:
    shown = list(stack.diff.of(Verdict.UPDATED, Verdict.REPLACED))
    for verdict in (Verdict.CREATED, Verdict.DELETED):
        changes = list(stack.diff.of(verdict))
        if len(changes) > NUM_SHOWN_NEW:
            yield _by_type(verdict, Counter(change.resource.type for change in changes))
            shown += [change for change in changes if change.refusal]
        else:
            shown += changes
    place = {change.resource.urn: index for index, change in enumerate(stack.diff.changes)}
    for change in sorted(shown, key=lambda change: place[change.resource.urn]):
        yield from _change_lines(change)


def _by_type(verdict: Verdict, num_by_type: Mapping[str, int]) -> Table:
    mark, style = MARKS[verdict]
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
    if change.verdict is Verdict.REPLACED:
        line.append(f"  replaced for {', '.join(change.forced_by)}", style=style)
    for note in _notes(change):
        line.append(f"  {note}", style="dim")
    if change.refusal:
        line.append(f"  {_refusal(change)}", style="red")
    yield line
    for item in change.properties:
        yield Text(f"      {item.path}: {_short(item.before)} → {_short(item.after)}", style="dim")


def _notes(change: ResourceChange) -> Iterator[str]:
    if change.formerly:
        yield f"formerly {change.formerly.rsplit('::', 1)[-1]}"
    if change.deletes_first:
        yield "deleted before its replacement is there"
    if change.is_left_behind:
        yield "the old one stays in the cloud"


def _refusal(change: ResourceChange) -> str:
    if change.refusal is Refusal.PROTECTED:
        deed = "delete" if change.verdict is Verdict.DELETED else "replace"
        return f"protected: the engine refuses to {deed} it"
    return f"the API server refuses another {', '.join(change.forced_by)}: name it in replace_on_changes, or give a new name"


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
        "refusal": change.refusal.value if change.refusal else "",
        "forced_by": list(change.forced_by),
        "deletes_first": change.deletes_first,
        "is_left_behind": change.is_left_behind,
        "formerly": change.formerly,
        "properties": [_property_json(item) for item in change.properties],
    }


def _property_json(item: PropertyChange) -> dict[str, Any]:
    """Before and after; a side that is not there is left out."""
    sides = {"before": item.before, "after": item.after}
    return {"path": item.path, **{side: value for side, value in sides.items() if value is not ABSENT}}
