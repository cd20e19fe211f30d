"""Rating ended events anew: a price was wrong, or agreed otherwise. The first bill stands; a revision adds the difference.

Revisions of a tenant are made one after the other: each is a segment of its own under the tenant's next number, by conditional
put, in the archive before it is in the ledger. So two who rate anew at once cannot both find the same state, one that dies in
between is finished by the next or by a rebuild, and rating anew to prices that hold already makes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from policies.billing.tariffs import Rate
from serving.metering.books import REVISIONS, Books
from serving.metering.events import UsageOpen, UsageRevision
from serving.metering.framing import SegmentHeader, decode_segment, encode_header, encode_record
from serving.metering.ledger import put_rows, read_rows
from serving.metering.rows import LedgerRow, rows_of

RateOf = Callable[[LedgerRow], Rate | None]
"""The rate that an event shall have; None leaves it as it is."""


@dataclass(frozen=True)
class Rerated:
    """What was done."""

    num_events: int
    delta_pico_usd: int


def revisions_of(rows: Iterable[LedgerRow], rate_of: RateOf, reason: str, now_ms: int) -> list[UsageRevision]:
    """A revision of every event in `rows` (events with their revisions so far) whose rate shall be another, by event id."""
    events: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        events[row.event_id].append(row)
    revisions = []
    for _, members in sorted(events.items()):
        members.sort(key=lambda row: row.revision)
        event, last = members[0], members[-1]
        rate = None if event.revision else rate_of(event)
        if rate is None or rate == last.rate:
            continue
        cost = rate.cost_pico_usd(event.prompt_tokens, event.cached_tokens, event.output_tokens)
        delta = cost - sum(row.cost_pico_usd for row in members)
        revisions.append(UsageRevision(_opened(event, rate), len(members), delta, reason, now_ms))
    return revisions


def rerate(
    books: Books, tenant: str, from_ms: int, to_ms: int, rate_of: RateOf, *, reason: str, now_ms: int, dry_run: bool = False
) -> Rerated:
    """Rate the tenant's events that were opened in [from_ms, to_ms) anew. A dry run says what would be done, and does nothing.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: table or archive did not answer; calling again resumes.
    """
    while True:
        keys = books.keys(f"{REVISIONS}{tenant}/")
        if keys and not dry_run:  # whoever wrote the last may have died before the ledger had it
            put_rows(books.dynamodb, books.table, rows_of(decode_segment(books.get(keys[-1]))))
        rows = read_rows(books.dynamodb, books.table, [tenant], from_ms, to_ms)
        revisions = revisions_of(rows, rate_of, reason, now_ms)
        done = Rerated(len(revisions), sum(revision.delta_pico_usd for revision in revisions))
        if dry_run or not revisions:
            return done
        number = len(keys) + 1
        header = SegmentHeader(f"revisions-{tenant}", now_ms, number, now_ms)
        data = encode_header(header) + b"".join(map(encode_record, revisions))
        if books.put_once(f"{REVISIONS}{tenant}/{number:06d}.seg", data):
            put_rows(books.dynamodb, books.table, rows_of(decode_segment(data)))
            return done


def _opened(row: LedgerRow, rate: Rate) -> UsageOpen:
    """The OPEN that `row` came from, with another rate."""
    return UsageOpen(
        event_id=row.event_id,
        tenant=row.tenant,
        key_id=row.key_id,
        model=row.model,
        release_id=row.release_id,
        region=row.region,
        gateway=row.gateway,
        endpoint=row.endpoint,
        opened_at_ms=row.opened_at_ms,
        prompt_tokens=row.counted_prompt_tokens,
        price_version=rate.version,
        input_micro_usd_per_mtok=rate.input_micro_usd_per_mtok,
        cached_input_micro_usd_per_mtok=rate.cached_input_micro_usd_per_mtok,
        output_micro_usd_per_mtok=rate.output_micro_usd_per_mtok,
        request_id=row.request_id,
        adapter=row.adapter,
        adapter_release_id=row.adapter_release_id,
        asked_model=row.asked_model,
        is_compacted=row.is_compacted,
        is_batch=row.is_batch,
        num_choices=row.num_choices,
        model_reason=row.model_reason,
        compaction=row.compaction,
        dropped_messages=row.dropped_messages,
        dropped_tokens=row.dropped_tokens,
        summary_for=row.summary_for,
    )
