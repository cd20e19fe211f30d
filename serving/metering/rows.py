"""Rows of the usage ledger: what a usage event becomes in the table, as plain values. No I/O.

    pk  <tenant>#<YYYY-MM-DD>          the UTC day on which the event was opened
    sk  <event_id>                     the event
    sk  <event_id>#<revision>          what a revision adds to it

A row is a pure function of its journal record, so whoever writes it, and how often, writes the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from policies.billing.tariffs import Rate
from serving.metering.events import CountSource, UsageClose, UsageOpen, UsageRevision
from serving.metering.framing import Segment


class LedgerRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that a CLOSE says, flat; token counts and prices as they were billed. Or a revision of it: then its tokens are none,
    its prices the new ones, and its cost the difference.

    A field that is new in a schema is added with a default, which is neither stored nor hashed: older rows stay what they were.
    """

    event_id: str
    tenant: str
    key_id: str
    model: str
    release_id: str
    region: str
    gateway: str
    endpoint: str
    opened_at_ms: int
    closed_at_ms: int
    outcome: str
    source: str
    finish_reason: str
    attempts: int
    ttft_us: int
    """-1 where no content was sent. Whole microseconds: the ledger holds no binary fractions."""
    counted_prompt_tokens: int
    """As the gateway counted them before the engine was asked; `prompt_tokens` is billed."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    price_version: str
    input_micro_usd_per_mtok: int
    cached_input_micro_usd_per_mtok: int
    output_micro_usd_per_mtok: int
    cost_pico_usd: int
    """Units of 1e-12 dollars, exact."""
    schema: int
    request_id: str = ""
    adapter: str = ""
    adapter_release_id: str = ""
    asked_model: str = ""
    is_compacted: bool = False
    is_batch: bool = False
    engines: str = ""
    """Engines asked, in order, with spaces between them."""
    routing_reason: str = ""
    reasoning_tokens: int = -1
    queue_us: int = -1
    total_us: int = -1
    revision: int = 0
    """0 for the event itself."""
    reason: str = ""
    """Why it was rated anew; revisions only."""
    num_choices: int = 1
    model_reason: str = ""
    compaction: str = ""
    dropped_messages: int = 0
    dropped_tokens: int = 0
    summary_for: str = ""

    @property
    def key(self) -> RowKey:
        """The row's place in the table."""
        suffix = f"#{self.revision:04d}" if self.revision else ""
        return RowKey(f"{self.tenant}#{utc_day(self.opened_at_ms)}", self.event_id + suffix)

    @property
    def is_counted(self) -> bool:
        """Its tokens are the gateway's count, since the engine sent none, or none that could be."""
        return self.source in (CountSource.COUNTED, CountSource.GATEWAY)

    @property
    def rate(self) -> Rate:
        """The prices in the row."""
        return Rate(
            self.price_version,
            self.input_micro_usd_per_mtok,
            self.cached_input_micro_usd_per_mtok,
            self.output_micro_usd_per_mtok,
        )

    def cost_of(self, event: LedgerRow) -> int:
        """What `event`'s tokens cost at this row's prices, in pico-dollars."""
        return self.rate.cost_pico_usd(event.prompt_tokens, event.cached_tokens, event.output_tokens)

    def canonical(self) -> bytes:
        """Bytes that are equal exactly where rows are."""
        return msgspec.json.encode(self, order="sorted")


class RowKey(msgspec.Struct, frozen=True, order=True):
    """Primary key of a row."""

    pk: str
    sk: str

    def item(self) -> dict[str, dict[str, str]]:
        """As DynamoDB takes it."""
        return {"pk": {"S": self.pk}, "sk": {"S": self.sk}}


def utc_day(time_ms: int) -> str:
    """`2025-11-22` for 1763852399999, `2025-11-23` a millisecond later."""
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%d")


def utc_days(from_ms: int, to_ms: int) -> list[str]:
    """The UTC days that [from_ms, to_ms) touches, in order; none where it is empty."""
    if to_ms <= from_ms:
        return []
    first = datetime.fromtimestamp(from_ms // 1000, UTC).date()
    last = datetime.fromtimestamp((to_ms - 1) // 1000, UTC).date()
    return [(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]


def row_of(close: UsageClose) -> LedgerRow:
    """The row that bills `close`."""
    return LedgerRow(
        **_opened(close.open),
        closed_at_ms=close.closed_at_ms,
        outcome=close.outcome.value,
        source=close.source.value,
        finish_reason=close.finish_reason,
        attempts=close.attempts,
        ttft_us=_us(close.ttft_ms),
        prompt_tokens=close.prompt_tokens,
        cached_tokens=close.cached_tokens,
        output_tokens=close.output_tokens,
        cost_pico_usd=close.cost_pico_usd,
        engines=" ".join(close.engines),
        routing_reason=close.routing_reason,
        reasoning_tokens=close.reasoning_tokens,
        queue_us=_us(close.queue_ms),
        total_us=_us(close.total_ms),
    )


def row_of_revision(revision: UsageRevision) -> LedgerRow:
    """The row that adds `revision`'s difference to the event's bill. It counts neither a request nor a token."""
    return LedgerRow(
        **_opened(revision.open),
        closed_at_ms=revision.revised_at_ms,
        outcome="revised",
        source="none",
        finish_reason="",
        attempts=0,
        ttft_us=-1,
        prompt_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        cost_pico_usd=revision.delta_pico_usd,
        revision=revision.revision,
        reason=revision.reason,
    )


def _opened(event: UsageOpen) -> dict[str, Any]:
    """What a row has of its event's OPEN."""
    values = msgspec.structs.asdict(event)
    values["counted_prompt_tokens"] = values.pop("prompt_tokens")
    del values["claim"]  # how a request may be sent again is no part of its bill
    return values


def _us(time_ms: float) -> int:
    return round(time_ms * 1000) if time_ms >= 0 else -1


def item_of(row: LedgerRow) -> dict[str, Any]:
    """`row` as a DynamoDB item."""
    item: dict[str, Any] = row.key.item()
    for name, value in msgspec.to_builtins(row).items():
        kind = "BOOL" if isinstance(value, bool) else "N" if isinstance(value, int) else "S"
        item[name] = {kind: str(value) if kind == "N" else value}
    return item


def row_from(item: dict[str, Any]) -> LedgerRow:
    """The row in a DynamoDB item; attributes that are none of ours (such as replication's) are left out.

    Raises:
        msgspec.ValidationError: the item is no ledger row.
    """
    values = {name: int(Decimal(value["N"])) if "N" in value else next(iter(value.values())) for name, value in item.items()}
    return msgspec.convert(values, LedgerRow)


def ledger_hash(rows: Iterable[LedgerRow]) -> str:
    """SHA-256 (hex) of a set of rows, whatever order they come in."""
    total = hashlib.sha256()
    for digest in sorted(hashlib.sha256(row.canonical()).digest() for row in rows):
        total.update(digest)
    return total.hexdigest()


def rows_of(segment: Segment) -> list[LedgerRow]:
    """Every row that `segment` gives the ledger."""
    return [*map(row_of, segment.closes), *map(row_of_revision, segment.revisions)]
