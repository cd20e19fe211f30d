"""`flotilla usage` and `flotilla invoice`: the bill, as the ledger has it and as it is sent."""

from __future__ import annotations

import csv
import io
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from policies.billing.invoices import Invoice
from serving.errors import UserError
from serving.gateway import admin_client
from serving.metering import invoice_text, ledger_commands
from serving.metering.books import Books
from serving.metering.invoicing import invoice_of
from serving.metering.report import UsageReport, UsageRow, format_usd, parse_month, parse_since
from serving.target import LOCAL, load_target


class By(StrEnum):
    """What to sum by; the values are those of the report."""

    TENANT = "tenant"
    MODEL = "model"
    KEY = "key"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    ASKED_MODEL = "asked_model"
    MODEL_REASON = "model_reason"


class InvoiceFormat(StrEnum):
    """What an invoice is written as."""

    TABLE = "table"
    CSV = "csv"
    HTML = "html"
    JSON = "json"


_CSV_FIGURES = ("requests", "uncached_input_tokens", "cached_input_tokens", "output_tokens", "cost_usd")


def register(app: typer.Typer) -> None:
    """Add this module's command to `app`."""
    app.command("usage")(usage)
    app.command("invoice")(invoice)
    app.add_typer(ledger_commands.ledger_app, name="ledger")


def usage(
    tenant: Annotated[str | None, typer.Option(help="One tenant; all of them if left out.")] = None,
    since: Annotated[str, typer.Option(metavar="24h|7d|DAY", help="A span back from now, or the start of a UTC day.")] = "24h",
    by: Annotated[list[By] | None, typer.Option(help="Sum by this; may be repeated. Tenant and model if left out.")] = None,
    region: Annotated[str | None, typer.Option(help="Region to ask; the home region if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: a row a group, cost in dollars, exact.")] = False,
    month: Annotated[str | None, typer.Option(metavar="2026-11", help="A whole UTC month, in place of --since.")] = None,
    env: Annotated[str, typer.Option("--env", help="Environment to speak to.")] = LOCAL,
) -> None:
    """Show tokens used and what they cost, exactly.

    A request counts for the moment it was opened. Only ended requests are in the ledger.

    Example: `flotilla usage --tenant acme --since 7d --by day --by model`, `flotilla usage --month 2026-11 --by key --csv`
    """
    now_ms = time.time_ns() // 1_000_000
    group_by = [member.value for member in by or (By.TENANT, By.MODEL)]
    from_ms, to_ms = (parse_since(since, now_ms), now_ms + 1) if month is None else parse_month(month)
    document = admin_client.usage(load_target(env), tenant=tenant, from_ms=from_ms, to_ms=to_ms, group_by=group_by, region=region)
    report = msgspec.convert(document, UsageReport)
    if as_csv:
        typer.echo(_csv(report), nl=False)
        return
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if report.rows:
        console.print(_table(report))
    console.print(_freshness(report, now_ms), style="dim")


def invoice(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Who pays.")],
    month: Annotated[str, typer.Argument(metavar="MONTH", help="UTC month, such as 2026-11.")],
    form: Annotated[InvoiceFormat, typer.Option("--format", help="What to write it as.")] = InvoiceFormat.TABLE,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if left out.")] = None,
    issue: Annotated[bool, typer.Option("--issue", help="Make it final: numbered, kept, never changed.")] = False,
    env: Annotated[str, typer.Option("--env", help="Environment to speak to.")] = LOCAL,
) -> None:
    """Write a tenant's invoice: as it was issued, or a draft of what it is now.

    What comes late for a month that was issued, or is rated anew, is a debit or credit note on the next invoice.

    Example: `flotilla invoice acme 2026-11 --format html --out acme-2026-11.html`
    """
    made = invoice_of(Books.of(load_target(env)), tenant, month, time.time_ns() // 1_000_000, issues=issue)
    text = {
        InvoiceFormat.TABLE: lambda: _invoice_table(made),
        InvoiceFormat.CSV: lambda: invoice_text.to_csv(made),
        InvoiceFormat.HTML: lambda: invoice_text.to_html(made),
        InvoiceFormat.JSON: lambda: msgspec.json.format(msgspec.json.encode(made), indent=2).decode() + "\n",
    }[form]()
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}", "name another file with --out") from error


def _invoice_table(made: Invoice) -> str:
    table = Table(box=None, show_footer=True)
    for place, name in enumerate(invoice_text.COLUMNS):
        table.add_column(name, justify="right" if place > 2 else "left", overflow="fold")
    for line in made.lines:
        table.add_row(*invoice_text.cells(line))
    table.columns[0].footer, table.columns[-1].footer = "total", f"${invoice_text.format_micro(made.total_micro_usd)}"
    file = io.StringIO()
    console = Console(file=file, highlight=False, width=160)
    console.print(f"{invoice_text.title(made)} for {made.tenant}, {made.month}: {made.num_requests:,} requests")
    console.print(table)
    if note := invoice_text.counted_note(made):
        console.print(note)
    return file.getvalue()


def _column(group: str) -> str:
    return "key_id" if group == By.KEY else group


def _csv(report: UsageReport) -> str:
    file = io.StringIO()
    columns = [*map(_column, report.group_by), *_CSV_FIGURES]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(row, name) for name in columns] for row in report.rows)
    return file.getvalue()


def _table(report: UsageReport) -> Table:
    groups = [_column(name) for name in report.group_by]
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
    counted = ""
    if num := report.total.counted_requests:
        counted = f" Of {num:,} requests the gateway counted the tokens itself: their engine sent no usable counts."
    since_text = f"{since:%Y-%m-%d %H:%M} UTC"
    return f"Tokens since {since_text}.{counted} The newest request ended {age_s:,} s ago; {delay}"
