"""What was used and what it costs: sums of ledger rows, exact to the pico-dollar.

Money is an integer of 1e-12 dollars everywhere and becomes text by moving a decimal point, never through a float.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from serving.errors import UserError
from serving.metering.ledger import read_rows
from serving.metering.rows import LedgerRow

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

GroupBy = Literal["tenant", "model", "key", "hour", "day", "month", "asked_model", "model_reason"]
DEFAULT_GROUP_BY: tuple[GroupBy, ...] = ("tenant", "model")
PICO_USD_PER_USD = 10**12

_SPAN = re.compile(r"(\d{1,6})([smhd])")
_SPAN_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class UsageRow(msgspec.Struct, frozen=True):
    """One group's sums. Of the names at the end, from `tenant` on, only those grouped by are set."""

    requests: int
    outcomes: dict[str, int]
    """Requests by outcome, such as `finished`."""
    uncached_input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost_pico_usd: int
    cost_usd: str
    """The same, exactly, in dollars: `0.000123`."""
    counted_requests: int = 0
    """Of the requests: those whose tokens the gateway counted itself, since their engine sent no counts that could be."""
    compacted_requests: int = 0
    """Of the requests: those whose conversation was shortened to fit."""
    dropped_tokens: int = 0
    """Of their prompts, as they came; not billed."""
    tenant: str = ""
    model: str = ""
    key_id: str = ""
    month: str = ""
    """`2026-11`, as all of these in UTC."""
    day: str = ""
    """`2026-11-24`"""
    hour: str = ""
    """`2026-11-24T09`"""
    asked_model: str = ""
    """`auto` where the gateway chose the class; empty where the client named it."""
    model_reason: str = ""
    """Why it chose that class: `short_and_simple`."""


class UsageReport(msgspec.Struct, frozen=True):
    """Usage of requests opened in [from_ms, to_ms)."""

    from_ms: int
    to_ms: int
    group_by: tuple[GroupBy, ...]
    rows: tuple[UsageRow, ...]
    """One per group that has requests, sorted by tenant, model, key, time."""
    total: UsageRow
    newest_closed_at_ms: int
    """End of the latest request in the report: how fresh it is; 0 where it is empty."""


def format_usd(pico_usd: int) -> str:
    """Dollars, exact, with at least two digits after the point: `1,234.50`, `0.0000254`, `-0.01`."""
    dollars, fraction = divmod(abs(pico_usd), PICO_USD_PER_USD)
    digits = f"{fraction:012d}".rstrip("0").ljust(2, "0")
    return f"{'-' if pico_usd < 0 else ''}{dollars:,}.{digits}"


def parse_since(text: str, now_ms: int) -> int:
    """Unix time in ms: `24h`, `30m`, `7d` before now, or the start of a UTC day `2025-11-22`.

    Raises:
        UserError: it is none of these.
    """
    if match := _SPAN.fullmatch(text):
        return now_ms - int(match[1]) * _SPAN_MS[match[2]]
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1000
    except ValueError as error:
        raise UserError(f"--since {text!r} is neither a time span nor a day", "write 24h, 30m, 7d, or 2025-11-22") from error


def parse_month(text: str) -> tuple[int, int]:
    """Unix times in ms at which the UTC month `2026-11` begins and ends.

    Raises:
        UserError: it is none.
    """
    try:
        begin = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    except ValueError as error:
        raise UserError(f"{text!r} is no month", "write it as 2026-11") from error
    end = begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
    return int(begin.timestamp()) * 1000, int(end.timestamp()) * 1000


def summarise(rows: Iterable[LedgerRow], from_ms: int, to_ms: int, group_by: Sequence[GroupBy] = DEFAULT_GROUP_BY) -> UsageReport:
    """The report of `rows`; the order they come in does not matter."""
    groups: defaultdict[tuple[str, ...], list[LedgerRow]] = defaultdict(list)
    newest_ms = 0
    for row in rows:
        newest_ms = max(newest_ms, row.closed_at_ms)
        hour = datetime.fromtimestamp(row.opened_at_ms // 1000, UTC).strftime("%Y-%m-%dT%H")
        groups[
            row.tenant if "tenant" in group_by else "",
            row.model if "model" in group_by else "",
            row.key_id if "key" in group_by else "",
            hour[:7] if "month" in group_by else "",
            hour[:10] if "day" in group_by else "",
            hour if "hour" in group_by else "",
            row.asked_model if "asked_model" in group_by else "",
            row.model_reason if "model_reason" in group_by else "",
        ].append(row)
    return UsageReport(
        from_ms=from_ms,
        to_ms=to_ms,
        group_by=tuple(group_by),
        rows=tuple(_sums(members, *names) for names, members in sorted(groups.items())),
        total=_sums([row for members in groups.values() for row in members]),
        newest_closed_at_ms=newest_ms,
    )


def _sums(rows: Sequence[LedgerRow], *names: str) -> UsageRow:
    tenant, model, key_id, month, day, hour, asked_model, model_reason = names or ("",) * 8
    cost_pico_usd = sum(row.cost_pico_usd for row in rows)
    return UsageRow(
        requests=sum(not row.revision for row in rows),
        outcomes=dict(sorted(Counter(row.outcome for row in rows if not row.revision).items())),
        uncached_input_tokens=sum(row.prompt_tokens - row.cached_tokens for row in rows),
        cached_input_tokens=sum(row.cached_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        cost_pico_usd=cost_pico_usd,
        cost_usd=format_usd(cost_pico_usd).replace(",", ""),
        counted_requests=sum(row.is_counted for row in rows),
        compacted_requests=sum(row.is_compacted for row in rows if not row.revision),
        dropped_tokens=sum(row.dropped_tokens for row in rows if not row.revision),
        tenant=tenant,
        model=model,
        key_id=key_id,
        month=month,
        day=day,
        hour=hour,
        asked_model=asked_model,
        model_reason=model_reason,
    )


def usage_report(
    client: DynamoDBClient,
    table: str,
    tenants: str | Sequence[str] | None,
    from_ms: int,
    to_ms: int,
    group_by: Sequence[GroupBy] = DEFAULT_GROUP_BY,
) -> UsageReport:
    """Usage of one tenant, several, or all (None, which scans the table) whose requests were opened in [from_ms, to_ms).

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the table did not answer.
    """
    names = [tenants] if isinstance(tenants, str) else tenants
    return summarise(read_rows(client, table, names, from_ms, to_ms), from_ms, to_ms, group_by)
