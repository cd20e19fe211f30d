"""What drills of queues have in common: options, a site, a table of figures with their limits, and one line of JSON."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.bench_report import machine
from tests.drills.engine_fleet import Site, running_site

_MAX_DESCRIPTORS = 8192


@dataclass(frozen=True)
class Row:
    """One figure and its limit."""

    name: str
    measured: float
    limit: str
    holds: bool


def run(
    doc: str | None,
    drill: Callable[[Site, float, int], Awaitable[list[Row]]],
    title: str,
    *,
    seconds: float,
    seconds_help: str,
) -> int:
    """The drill on a site of its own, by the command line's seconds and seed; 1 where something does not hold."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=seconds, help=f"{seconds_help} ({seconds:g})")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    async def on(site: Site) -> list[Row]:
        return await drill(site, given.seconds, given.seed)

    with tempfile.TemporaryDirectory() as folder, running_site(Path(folder)) as site:
        rows = uvloop.run(on(site))
    return report(rows, f"{title}, {given.seconds:g} s, seed {given.seed}", given.seed)


def report(rows: list[Row], title: str, seed: int) -> int:
    """The table and the line; 1 where something does not hold."""
    table = Table("figure", "measured", "limit", "holds", title=title, title_justify="left")
    for row in rows:
        table.add_row(row.name, f"{row.measured:.4g}", row.limit, "yes" if row.holds else "[bold red]no[/]")
    Console(soft_wrap=True, highlight=False).print(table)
    holds = all(row.holds for row in rows)
    figures = {row.name: round(row.measured, 4) for row in rows}
    print(json.dumps({**figures, "seed": seed, "machine": machine(), "holds": holds}))
    return 0 if holds else 1
