"""What a part of a drill has to say: figures by name, and whether each holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass
class Part:
    """One part. A figure without a bar is shown and decides nothing."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, str, bool | None]] = field(default_factory=list)

    def show(self, what: str, name: str, value: Any, holds: bool | None = None) -> None:
        """A line of the table, and a figure of the last line."""
        self.figures[name] = value
        self.rows.append((what, f"{value:,}" if type(value) is int else str(value), holds))

    @property
    def holds(self) -> bool:
        return all(holds is not False for _, _, holds in self.rows)


def table_of(parts: Sequence[Part]) -> Table:
    """All of it, for people."""
    table = Table("part", "what", "shown", "holds", title_justify="left")
    for part in parts:
        for number, (what, shown, holds) in enumerate(part.rows):
            mark = "" if holds is None else "[green]yes[/]" if holds else "[bold red]NO[/]"
            table.add_row(part.name if number == 0 else "", what, shown, mark)
    return table
