"""The books: whoever changes, drops or slips in a row is found out, and what is rebuilt from the archive is what was there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.billing.tariffs import Rate
from serving.metering import seals
from serving.metering.archive import archive_key, put_segment
from serving.metering.audit import Fault, audit, wrong_costs
from serving.metering.books import REVISIONS, Books, UnreadableSegment
from serving.metering.framing import SegmentHeader, decode_segment, encode_header, encode_record
from serving.metering.ledger import PutResult, UnreadableRow, create_table, put_rows, read_rows
from serving.metering.report import summarise
from serving.metering.rerating import rerate, revisions_of
from serving.metering.rows import LedgerRow, item_of, ledger_hash, row_of, rows_of, utc_day
from serving.metering.segments import SegmentName

pytestmark = pytest.mark.emulated_aws
NOON_MS = 1_763_812_800_000  # 2025-11-22T12:00:00Z
DAY = "2025-11-22"
MIDNIGHT_MS = NOON_MS - 12 * 3_600_000
DAY_MS = 86_400_000
SPAN = (MIDNIGHT_MS, MIDNIGHT_MS + DAY_MS)
LATER_MS = NOON_MS + 2 * DAY_MS


@pytest.fixture
def books(aws: Any) -> Books:
    return Books(aws.s3, aws.dynamodb, aws.bucket, aws.table)


def archive(books: Books, *closes: Any, seq: int = 0, region: str = "us-east-2") -> bytes:
    """Archive a segment of `closes`, as a shipper would."""
    name = SegmentName("gateway-0-0", NOON_MS, seq)
    data = encode_header(SegmentHeader(name.source, name.epoch, name.seq, NOON_MS)) + b"".join(map(encode_record, closes))
    put_segment(books.s3, books.bucket, archive_key(region, name, decode_segment(data)), data, decode_segment(data))
    return data


def ship(books: Books, *closes: Any, seq: int = 0, region: str = "us-east-2") -> list[LedgerRow]:
    """Archive `closes` and put their rows."""
    rows = rows_of(decode_segment(archive(books, *closes, seq=seq, region=region)))
    put_rows(books.dynamodb, books.table, rows)
    return rows


def overwrite(books: Books, row: LedgerRow, **changes: Any) -> None:
    """What nobody may do."""
    changed = item_of(msgspec.structs.replace(row, **changes))
    books.dynamodb.put_item(TableName=books.table, Item={**changed, **row.key.item()})


def faults(books: Books, *, asks_archive: bool = True) -> list[tuple[str, Fault]]:
    return [(finding.key.sk, finding.fault) for finding in audit(books, ["acme"], *SPAN, asks_archive=asks_archive).findings]


def ledger(books: Books) -> list[LedgerRow]:
    return list(read_rows(books.dynamodb, books.table, ["acme"], *SPAN))


def test_a_ledger_that_nobody_touched_has_no_faults(books: Books, records: Any) -> None:
    rows = ship(books, *(records.close(records.open(), tokens) for tokens in range(5)))
    seals.seal_day(books, "acme", DAY, LATER_MS)
    found = audit(books, ["acme"], *SPAN)
    assert (found.findings, found.num_rows, found.num_sealed, found.num_journalled) == ((), 5, 5, 5)
    assert found.ledger_hash == ledger_hash(rows)


def test_a_changed_row_is_named_by_its_seal_and_by_its_journal_with_what_changed(books: Books, records: Any) -> None:
    rows = ship(books, *(records.close(records.open()) for _ in range(5)))
    seals.seal_day(books, "acme", DAY, LATER_MS)
    cheap = rows[2].rate.cost_pico_usd(rows[2].prompt_tokens, 0, 1)
    overwrite(books, rows[2], output_tokens=1, cost_pico_usd=cheap)
    assert faults(books, asks_archive=False) == [(rows[2].event_id, Fault.CHANGED)]
    found = audit(books, ["acme"], *SPAN).findings
    assert [(finding.key.sk, finding.fault) for finding in found] == [
        (rows[2].event_id, Fault.CHANGED),
        (rows[2].event_id, Fault.DIFFERS),
    ]
    assert "output_tokens is 1, the journal says 10" in found[1].detail


def test_a_row_that_was_removed_and_one_that_was_slipped_in_are_named(books: Books, records: Any) -> None:
    rows = ship(books, *(records.close(records.open()) for _ in range(3)))
    seals.seal_day(books, "acme", DAY, LATER_MS)
    books.dynamodb.delete_item(TableName=books.table, Key=rows[0].key.item())
    forged = row_of(records.close(records.open()))
    put_rows(books.dynamodb, books.table, [forged])
    assert sorted(faults(books)) == sorted(
        [(rows[0].event_id, Fault.REMOVED), (rows[0].event_id, Fault.MISSING), (forged.event_id, Fault.UNKNOWN)]
    )


def test_a_cost_that_is_not_its_tokens_at_its_prices_needs_no_seal_to_be_found(records: Any) -> None:
    row = row_of(records.close(records.open()))
    assert wrong_costs([row]) == []
    (finding,) = wrong_costs([msgspec.structs.replace(row, cost_pico_usd=row.cost_pico_usd - 1)])
    assert (finding.key, finding.fault) == (row.key, Fault.WRONG_COST)


def test_a_seal_that_was_replaced_is_found_too(books: Books, records: Any) -> None:
    """Somebody who may write the archive changes a row and seals the day anew; the chain of the next seal still tells."""
    ship(books, *(records.close(records.open()) for _ in range(3)))
    first = seals.seal_day(books, "acme", DAY, LATER_MS)
    ship(books, records.close(records.open()), seq=1)
    assert seals.seal_day(books, "acme", DAY, LATER_MS) is not None
    assert first is not None
    leaves = (seals.Leaf(first.leaves[0].sk, bytes(32)), *first.leaves[1:])
    forged = msgspec.structs.replace(first, leaves=leaves, head=seals.chain(seals.genesis("acme", DAY), leaves))
    books.s3.put_object(Bucket=books.bucket, Key=first.key, Body=msgspec.msgpack.encode(forged))
    found = faults(books, asks_archive=False)
    assert ("", Fault.BROKEN_CHAIN) in found
    assert (first.leaves[0].sk, Fault.CHANGED) in found


def test_an_item_that_is_no_row_is_named(books: Books, records: Any) -> None:
    (row,) = ship(books, records.close(records.open()))
    books.dynamodb.put_item(TableName=books.table, Item=row.key.item())
    with pytest.raises(UnreadableRow, match=row.event_id):
        audit(books, ["acme"], *SPAN)


def test_a_damaged_segment_of_the_archive_is_named(books: Books, records: Any) -> None:
    data = archive(books, records.close(records.open()))
    (key,) = books.keys("usage/v1/")
    books.s3.put_object(Bucket=books.bucket, Key=key, Body=data[:-1])
    with pytest.raises(UnreadableSegment, match="damaged after byte"):
        list(books.segments())


def test_a_day_is_sealed_when_it_is_over_for_a_while_once_and_by_one(books: Books, records: Any) -> None:
    ship(books, records.close(records.open()))
    too_early_ms = MIDNIGHT_MS + DAY_MS + int(seals.SEAL_AFTER_H * 3_600_000) - 1
    assert seals.seal_day(books, "acme", DAY, too_early_ms) is None
    first = seals.seal_day(books, "acme", DAY, too_early_ms + 1)
    assert first is not None and first.number == 1
    assert seals.seal_day(books, "acme", DAY, LATER_MS) is None


def test_a_pass_seals_each_day_of_the_week_that_is_due_once_and_by_one(books: Books, records: Any) -> None:
    days = [MIDNIGHT_MS - back * DAY_MS for back in (seals.SEAL_DAYS, seals.SEAL_DAYS - 1, 1, 0)]
    for seq, opened_at_ms in enumerate([*days, MIDNIGHT_MS + DAY_MS]):
        ship(books, records.close(records.open(opened_at_ms=opened_at_ms)), seq=seq)
    due_ms = MIDNIGHT_MS + DAY_MS + int(seals.SEAL_AFTER_H * 3_600_000)
    made = seals.seal_due(books, lambda: ["acme", "nobody"], due_ms)
    assert made is not None
    assert [seal.day for seal in made] == [utc_day(day) for day in days[1:]], "neither a day before the week nor one under way"
    assert seals.seal_due(books, lambda: ["acme"], due_ms + DAY_MS // 2) is None, "the pass was made"
    ship(books, records.close(records.open(opened_at_ms=days[2])), seq=9)
    later = seals.seal_due(books, lambda: ["acme"], due_ms + DAY_MS)
    assert later is not None
    assert [(seal.day, seal.number) for seal in later] == [(utc_day(days[2]), 2), (utc_day(MIDNIGHT_MS + DAY_MS), 1)]
    assert faults(books) == []


def test_a_pass_that_died_is_made_by_the_next_who_looks(books: Books, records: Any) -> None:
    ship(books, records.close(records.open()))
    due_ms = MIDNIGHT_MS + DAY_MS + int(seals.SEAL_AFTER_H * 3_600_000)

    def dies() -> Iterator[str]:
        yield "acme"
        raise ValueError

    with pytest.raises(ValueError):
        seals.seal_due(books, dies, due_ms)
    assert seals.seal_due(books, lambda: ["acme"], due_ms) == [], "what it had sealed is sealed, and nothing was left"
    assert faults(books) == []


def test_a_late_event_goes_on_from_the_head_and_changes_no_seal(books: Books, records: Any) -> None:
    late, early = records.open(), records.open()  # the late one's id sorts before the other
    ship(books, records.close(early))
    first = seals.seal_day(books, "acme", DAY, LATER_MS)
    ship(books, records.close(late), seq=1)
    second = seals.seal_day(books, "acme", DAY, LATER_MS)
    assert first is not None and second is not None
    assert (second.number, [leaf.sk for leaf in second.leaves]) == (2, [late.event_id])
    assert second.head == seals.chain(first.head, second.leaves)
    assert seals.read_seals(books, "acme", [DAY]) == {DAY: [first, second]}
    assert faults(books) == []


@given(st.randoms(use_true_random=False))
def test_rows_are_chained_in_one_order_whatever_order_they_come_in(records: Any, generator: random.Random) -> None:
    rows = [row_of(records.close(records.open(), tokens)) for tokens in range(6)]
    shuffled = generator.sample(rows, len(rows))
    heads = {seal.head for its in (rows, shuffled) if (seal := seals.next_seal("acme", DAY, its, [], 0)) is not None}
    assert len(heads) == 1


def test_rebuilding_from_the_archive_gives_the_same_hash_revisions_and_all(books: Books, records: Any) -> None:
    ship(books, *(records.close(records.open(), tokens) for tokens in range(5)))
    ship(books, records.close(records.open(region="us-west-2")), seq=1, region="us-west-2")
    rerate(books, "acme", *SPAN, lambda row: Rate("new", 1, 1, 1), reason="agreed", now_ms=LATER_MS)
    again = f"{books.table}-rebuilt"
    create_table(books.dynamodb, again)
    create_table(books.dynamodb, again)
    segments = [segment for _, segment in books.segments()]
    for segment in random.Random(1).sample(segments * 2, 2 * len(segments)):
        put_rows(books.dynamodb, again, rows_of(segment))
    rebuilt = list(read_rows(books.dynamodb, again, None, 0, 2**53))
    assert len(rebuilt) == 12
    assert ledger_hash(rebuilt) == ledger_hash(ledger(books))


def test_an_hour_replayed_changes_nothing(books: Books, records: Any) -> None:
    rows = ship(books, *(records.close(records.open()) for _ in range(3)))
    results: Counter[PutResult] = Counter()
    for _, segment in books.segments(hour="2025-11-22T12"):
        results += put_rows(books.dynamodb, books.table, rows_of(segment))
    assert results == {PutResult.PRESENT: 3}
    assert [key for key, _ in books.segments(hour="2025-11-22T13")] == []
    assert ledger_hash(ledger(books)) == ledger_hash(rows)


def test_rating_anew_appends_the_difference_and_edits_nothing(books: Books, records: Any) -> None:
    """Each has 100 prompt and 10 output tokens; 0.10 and 0.40 become 0.09 and 0.40 dollars a million: 100 x -0.01 less."""
    rows = ship(books, *(records.close(records.open()) for _ in range(3)))
    new = Rate("2025-11b", 90_000, 50_000, 400_000)

    def once(now_ms: int, rate: Rate = new) -> Any:
        return rerate(books, "acme", *SPAN, lambda row: rate, reason="agreed", now_ms=now_ms)

    done = once(LATER_MS)
    assert (done.num_events, done.delta_pico_usd) == (3, 3 * 100 * -10_000)
    assert once(LATER_MS + 1).num_events == 0
    after = ledger(books)
    assert [row for row in after if not row.revision] == rows
    report = summarise(after, *SPAN)
    assert (report.total.requests, report.total.output_tokens) == (3, 30)
    assert report.total.cost_pico_usd == 3 * (100 * 90_000 + 10 * 400_000)
    back = once(LATER_MS + 2, rows[0].rate)
    assert (back.num_events, back.delta_pico_usd) == (3, 3 * 100 * 10_000)
    assert sorted(row.revision for row in ledger(books)) == [0] * 3 + [1] * 3 + [2] * 3
    assert faults(books) == []


def test_a_revision_whose_writer_died_before_the_ledger_had_it_is_finished_by_the_next(books: Books, records: Any) -> None:
    rows = ship(books, records.close(records.open()))
    (revision,) = revisions_of(rows, lambda row: Rate("new", 1, 1, 1), "agreed", LATER_MS)
    data = encode_header(SegmentHeader("revisions-acme", LATER_MS, 1, LATER_MS)) + encode_record(revision)
    assert books.put_once(f"{REVISIONS}acme/000001.seg", data)
    assert (rows[0].event_id + "#0001", Fault.MISSING) in faults(books)
    assert rerate(books, "acme", *SPAN, lambda row: Rate("new", 1, 1, 1), reason="again", now_ms=LATER_MS).num_events == 0
    assert faults(books) == []
    assert len(ledger(books)) == 2


def test_a_dry_run_says_the_same_and_does_nothing(books: Books, records: Any) -> None:
    ship(books, records.close(records.open()))
    done = rerate(books, "acme", *SPAN, lambda row: Rate("new", 0, 0, 0), reason="gift", now_ms=LATER_MS, dry_run=True)
    assert (done.num_events, done.delta_pico_usd) == (1, -(100 * 100_000 + 10 * 400_000))
    assert len(ledger(books)) == 1


def test_hourly_sums_are_the_same_from_segments_and_from_the_ledger(books: Books, records: Any) -> None:
    hours = [records.close(records.open(opened_at_ms=NOON_MS + place * 1_000_000), place) for place in range(8)]
    ship(books, *hours[:5])
    ship(books, *hours[5:], seq=1)
    from_segments = [row for _, segment in books.segments() for row in rows_of(segment)]
    by: Any = ("tenant", "model", "key", "hour")
    report = summarise(ledger(books), *SPAN, by)
    assert [row.hour[-2:] for row in report.rows] == ["12", "13"]
    assert summarise(random.Random(1).sample(from_segments, 8), *SPAN, by) == report
