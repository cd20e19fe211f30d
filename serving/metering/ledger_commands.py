"""`flotilla ledger`: prove the ledger, rebuild it, replay into it, seal its days, rate ended requests anew, export."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from policies.billing.reconciliation import Life
from policies.billing.tariffs import ListPrice, PriceList
from serving.errors import UserError
from serving.gateway import admin_client
from serving.metering.audit import Audit, audit
from serving.metering.books import Books
from serving.metering.engine_counts import reconcile_hour
from serving.metering.exporting import Sink, export
from serving.metering.ledger import PutResult, put_rows
from serving.metering.rebuilding import read_all
from serving.metering.rebuilding import rebuild as rebuild_
from serving.metering.report import format_usd, parse_month, parse_since
from serving.metering.rerating import rerate
from serving.metering.rows import LedgerRow, ledger_hash, rows_of, utc_day, utc_days
from serving.metering.seals import may_be_sealed, seal_day
from serving.metering.sinks import CloudEventsSink, StripeSink
from serving.target import LOCAL, Target, load_target

DAY_MS = 86_400_000

Env = Annotated[str, typer.Option("--env", help="Environment to speak to.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Tenants = Annotated[list[str] | None, typer.Option("--tenant", help="One tenant; may be repeated. All if left out.")]
Since = Annotated[
    str, typer.Option(metavar="7d|DAY", help="From the start of the UTC day that lies so far back, or of this day.")
]
Region = Annotated[str | None, typer.Option(help="Whose replicas to read and write; the home region's if left out.")]


class SinkName(StrEnum):
    """Where usage can be exported to."""

    STRIPE = "stripe"
    OPENMETER = "openmeter"


ledger_app = typer.Typer(help="The books behind every bill: prove, rebuild, replay, seal, rate anew.", no_args_is_help=True)


@ledger_app.command("verify")
def verify(
    tenant: Tenants = None,
    since: Since = "7d",
    archive: Annotated[bool, typer.Option(help="Compare with the journals in the archive too.")] = True,
    region: Region = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Check every row against its own arithmetic, its day's seal and the archived journals; name each that is wrong.

    Exit code 1 where one is. A row that the archive has and the ledger lacks may be on its way: ask again in a minute.
    """
    target = load_target(env)
    from_ms, to_ms = _days(since)
    found = audit(Books.of(target, region), _tenants(target, tenant), from_ms, to_ms, asks_archive=archive)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        _show(found)
    if found.findings:
        raise typer.Exit(1)


@ledger_app.command("seal")
def seal(tenant: Tenants = None, since: Since = "35d", as_json: Json = False, env: Env = LOCAL) -> None:
    """Seal every day that is over, and chain what came late to days that were sealed. Run it daily; again does nothing."""
    target = load_target(env)
    books, now_ms = Books.of(target), _now_ms()
    days = [day for day in utc_days(*_days(since)) if may_be_sealed(day, now_ms)]
    made = [
        {"tenant": its.tenant, "day": its.day, "seal": its.number, "rows": len(its.leaves), "head": its.head}
        for name in _tenants(target, tenant)
        for day in days
        if (its := seal_day(books, name, day, now_ms)) is not None
    ]
    if as_json:
        typer.echo(msgspec.json.encode(made))
        return
    if made:
        _print_table(["tenant", "day", "seal", "rows", "head"], [[str(value) for value in row.values()] for row in made])
    typer.echo(f"{len(made)} seals put; {len(days)} days can be sealed.")


@ledger_app.command("rebuild")
def rebuild(
    table: Annotated[str, typer.Argument(help="Table to rebuild into; it is made if there is none.")],
    region: Region = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Rebuild the whole ledger from the archive into TABLE, and compare its hash with the ledger's.

    Exit code 1 where they differ.
    """
    books = Books.of(load_target(env), region)
    results = rebuild_(books, table)
    hashes = {name: ledger_hash(read_all(books, name)) for name in (table, books.table)}
    is_same = len(set(hashes.values())) == 1
    if as_json:
        typer.echo(msgspec.json.encode({"results": _counts(results), "hashes": hashes, "is_same": is_same}))
    else:
        typer.echo(f"{_sentence(results)} in {table}")
        for name, its in hashes.items():
            typer.echo(f"{its}  {name}")
        typer.echo("The hashes are the same." if is_same else "The hashes DIFFER; `flotilla ledger verify` names the rows.")
    if not is_same:
        raise typer.Exit(1)


@ledger_app.command("replay")
def replay(
    hour: Annotated[str, typer.Argument(metavar="HOUR", help="UTC hour of the archive, such as 2026-11-24T09.")],
    source_region: Annotated[str, typer.Option("--of", help="Only what this region's gateways wrote; all if left out.")] = "",
    region: Region = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Put the rows of an archived hour into the ledger again. What is there stays as it is, so this changes no total."""
    _check_hour(hour)
    books = Books.of(load_target(env), region)
    results: Counter[PutResult] = Counter()
    for _, segment in books.segments(region=source_region, hour=hour):
        results += put_rows(books.dynamodb, books.table, rows_of(segment))
    typer.echo(msgspec.json.encode(_counts(results)) if as_json else f"{_sentence(results)} in {books.table}")
    if results[PutResult.CONFLICT]:
        raise typer.Exit(1)


@ledger_app.command("reconcile")
def reconcile(
    hour: Annotated[str, typer.Argument(metavar="HOUR", help="UTC hour, such as 2026-11-24T09.")],
    region: Annotated[str | None, typer.Option(help="Whose engines; the home region's if left out.")] = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Compare what each engine counted in an hour with what was billed of it, and say what explains a difference.

    Exit code 1 where something is not explained. Shippers do this of every hour by themselves, 15 minutes after its end.
    """
    _check_hour(hour)
    target = load_target(env)
    name, _ = target.region(region)
    found = reconcile_hour(Books.of(target, name), name, hour)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        columns = [
            "engine",
            "looked at (UTC)",
            "requests",
            "input counted",
            "billed",
            "output counted",
            "billed",
            "",
            "explained by",
        ]
        _print_table(columns, [_life(life) for life in found.lives])
        typer.echo(f"{len(found.lives)} lives of engines in {found.hour}, {name}")
    if not found.holds:
        raise typer.Exit(1)


@ledger_app.command("rerate")
def rerate_(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose requests.")],
    month: Annotated[str, typer.Argument(metavar="MONTH", help="Requests opened in it, such as 2026-11.")],
    version: Annotated[str, typer.Option("--to", metavar="VERSION", help="Tariff whose prices shall hold.")],
    reason: Annotated[str, typer.Option(help="Stands on the invoice.")],
    model: Annotated[str, typer.Option(help="One model class; all if left out.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Rate a tenant's requests of MONTH anew, by appending what the difference is. Nothing that was billed is edited."""
    target = load_target(env)
    prices = {
        name: PriceList([ListPrice(**price) for price in its]) for name, its in admin_client.list_prices(target).items() if its
    }
    if not any(its.of_version(version) for its in prices.values()):
        raise UserError(f"no model has a price of tariff {version!r}", "name a version of stacks/tariffs.yaml that is deployed")

    def rate_of(row: LedgerRow) -> Any:
        its = prices.get(row.model) if model in ("", row.model) else None
        return its.of_version(version, row.adapter, row.is_batch) if its else None

    from_ms, to_ms = parse_month(month)
    done = rerate(Books.of(target), tenant, from_ms, to_ms, rate_of, reason=reason, now_ms=_now_ms(), dry_run=dry_run)
    if as_json:
        typer.echo(msgspec.json.encode(done))
        return
    verb = "would be" if dry_run else "were"
    typer.echo(f"{done.num_events:,} requests {verb} rated anew: ${format_usd(done.delta_pico_usd)} in all")


@ledger_app.command("export")
def export_(
    sink: Annotated[SinkName, typer.Argument(help="Where to: `stripe`, or `openmeter` and whatever takes CloudEvents.")],
    url: Annotated[str, typer.Option(help="Address of its API.")] = "https://api.stripe.com",
    customers: Annotated[Path | None, typer.Option(help="JSON file: tenant to Stripe customer id.")] = None,
    tenant: Tenants = None,
    since: Since = "34d",
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Send what was sealed to another billing system, each token once; again resumes. The key is FLOTILLA_EXPORT_KEY."""
    key = os.environ.get("FLOTILLA_EXPORT_KEY", "")
    if not key:
        raise UserError("FLOTILLA_EXPORT_KEY is not set", "set it to the other system's API key")
    target = load_target(env)
    to: Sink = CloudEventsSink(url, key, source=f"flotilla/{env}")
    if sink is SinkName.STRIPE:
        to = StripeSink(url, key, _read_customers(customers))
    done = export(Books.of(target), to, _tenants(target, tenant), utc_day(_days(since)[0]))
    if as_json:
        typer.echo(msgspec.json.encode(done))
        return
    typer.echo(f"{done.num_tokens:,} tokens in {done.num_measures:,} measures of {done.num_seals:,} seals sent to {sink}")


def _read_customers(path: Path | None) -> dict[str, str]:
    if path is None:
        raise UserError("Stripe needs to know which customer a tenant is", "name a JSON file with --customers")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{path}: {error}", 'it must be JSON such as {"acme": "cus_123"}') from error


def _check_hour(hour: str) -> None:
    try:
        datetime.strptime(hour, "%Y-%m-%dT%H")
    except ValueError as error:
        raise UserError(f"{hour!r} is no hour", "write it as 2026-11-24T09, in UTC") from error


def _life(life: Life) -> list[str]:
    span = " to ".join(f"{datetime.fromtimestamp(ms // 1000, UTC):%H:%M:%S}" for ms in (life.from_ms, life.to_ms))
    tokens = [f"{count:,}" for its in (life.prompt, life.output) for count in (its.counted, its.billed)]
    why = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(life.explained_by.items()))
    return [life.engine, span, f"{life.num_requests:,}", *tokens, life.verdict, why]


def _show(found: Audit) -> None:
    if found.findings:
        rows = [[finding.key.pk, finding.key.sk, finding.fault.replace("_", " "), finding.detail] for finding in found.findings]
        _print_table(["day", "row", "fault", "what"], rows)
    archived = "not asked" if found.num_journalled is None else f"{found.num_journalled:,} in the archive"
    typer.echo(f"{found.num_rows:,} rows, {found.num_sealed:,} sealed, {archived}; {len(found.findings)} faults")
    typer.echo(f"hash {found.ledger_hash}")


def _print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*names, box=None)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _counts(results: Counter[PutResult]) -> dict[str, int]:
    return {result.value: results[result] for result in PutResult}


def _sentence(results: Counter[PutResult]) -> str:
    counts = _counts(results)
    return f"{counts['written']:,} rows written, {counts['present']:,} were there, {counts['conflict']:,} in conflict"


def _tenants(target: Target, named: Sequence[str] | None) -> list[str]:
    return list(named) if named else [tenant["id"] for tenant in admin_client.list_tenants(target)]


def _days(since: str) -> tuple[int, int]:
    """Whole UTC days from `since` to today."""
    now_ms = _now_ms()
    return parse_since(since, now_ms) // DAY_MS * DAY_MS, (now_ms // DAY_MS + 1) * DAY_MS


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
