"""`flotilla usage`: the bill, as the ledger has it."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from serving.gateway import admin_client
from serving.metering import ledger_commands
from serving.metering.report import UsageReport, UsageRow, format_usd, parse_since
from serving.target import LOCAL, load_target


class By(StrEnum):
    """What to sum by; the values are those of the report."""

    TENANT = "tenant"
    MODEL = "model"
    KEY = "key"
    DAY = "day"


_COLUMNS = {By.TENANT: "tenant", By.MODEL: "model", By.KEY: "key_id", By.DAY: "day"}


def register(app: typer.Typer) -> None:
    """Add this module's command to `app`."""
    app.command("usage")(usage)
    app.add_typer(ledger_commands.ledger_app, name="ledger")


def usage(
    tenant: Annotated[str | None, typer.Option(help="One tenant; all of them if left out.")] = None,
    since: Annotated[str, typer.Option(metavar="24h|7d|DAY", help="A span back from now, or the start of a UTC day.")] = "24h",
    by: Annotated[list[By] | None, typer.Option(help="Sum by this; may be repeated. Tenant and model if left out.")] = None,
    region: Annotated[str | None, typer.Option(help="Region to ask; the home region if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
    env: Annotated[str, typer.Option("--env", help="Environment to speak to.")] = LOCAL,
) -> None:
    """Show tokens used and what they cost, exactly.

    A request counts for the moment it was opened. Only ended requests are in the ledger.

    Example: `flotilla usage --tenant acme --since 7d --by day --by model`
    """
    now_ms = time.time_ns() // 1_000_000
    group_by = [member.value for member in by or (By.TENANT, By.MODEL)]
    document = admin_client.usage(
        load_target(env), tenant=tenant, from_ms=parse_since(since, now_ms), to_ms=now_ms + 1, group_by=group_by, region=region
    )
    report = msgspec.convert(document, UsageReport)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if report.rows:
        console.print(_table(report))
    console.print(_freshness(report, now_ms), style="dim")


def _table(report: UsageReport) -> Table:
    groups = [_COLUMNS[By(name)] for name in report.group_by]
    table = Table(*(name.removesuffix("_id") for name in groups), box=None, show_footer=True)
    for name in ("requests", "input", "cached input", "output", "cost (USD)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended")
    for row in report.rows:
        table.add_row(*(getattr(row, name) for name in groups), *_figures(row))
    for column, text in zip(table.columns, ["total", *[""] * (len(groups) - 1), *_figures(report.total)], strict=True):
        column.footer = text
    return table


def _figures(row: UsageRow) -> list[str]:
    counts = (row.requests, row.uncached_input_tokens, row.cached_input_tokens, row.output_tokens)
    outcomes = ", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in row.outcomes.items())
    return [*(f"{count:,}" for count in counts), f"${format_usd(row.cost_pico_usd)}", outcomes]


def _freshness(report: UsageReport, now_ms: int) -> str:
    since = datetime.fromtimestamp(report.from_ms // 1000, UTC)
    delay = "one shows here when its part of the journal has shipped, seconds after its end."
    if not report.rows:
        return f"No requests since {since:%Y-%m-%d %H:%M} UTC; {delay}"
    age_s = max(0, now_ms - report.newest_closed_at_ms) // 1000
    return f"Tokens since {since:%Y-%m-%d %H:%M} UTC. The newest request ended {age_s:,} s ago; {delay}"
