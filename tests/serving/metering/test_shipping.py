"""Segments reach archive and ledger once in effect, however often they are shipped, in whatever order, after whatever loss."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from serving.metering.events import CountSource, Outcome
from serving.metering.framing import decode_segment
from serving.metering.ledger import PutResult, missing_rows, put_row, read_rows, rebuild_from_segments
from serving.metering.report import usage_report
from serving.metering.rows import item_of, ledger_hash, row_of
from serving.metering.segments import OPEN, SEALED, SHIPPED, TORN, WriterLock, list_segments
from serving.metering.shipping import BackOff, Destination, Marker, Shipper

pytestmark = pytest.mark.emulated_aws
REGION = "us-east-2"
DAY_MS = 86_400_000
FAR_MS = 2 * 1_763_812_800_000


class Counts:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.segments: Counter[str] = Counter()
        self.ledger: Counter[str] = Counter()

    def segment(self, result: str) -> None:
        self.segments[result] += 1

    def rows(self, result: str, count: int) -> None:
        self.ledger[result] += count


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def shipper(folder: Any, aws: Any, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> Shipper:
    monkeypatch.setattr(BackOff, "failed", lambda self: None)
    return Shipper(folder.path, Destination(aws.s3, aws.dynamodb, REGION, aws.bucket, aws.table), 3600, counts)


def ledger(aws: Any, table: str | None = None) -> list[Any]:
    return list(read_rows(aws.dynamodb, table or aws.table, None, 0, FAR_MS))


def write_segments(folder: Any, records: Any, num: int = 4) -> list[Any]:
    """Segments of three requests each; the rows they must give."""
    rows = []
    for seq in range(num):
        events = [records.open() for _ in range(3)]
        closes = [
            records.close(events[0], 10 + seq),
            records.close(events[1], 3, outcome=Outcome.CLIENT_GONE, source=CountSource.ENGINE_RUNNING, cached_tokens=16),
            records.close(events[2], 0, outcome=Outcome.NOT_SERVED, source=CountSource.NONE, prompt_tokens=0, ttft_ms=-1.0),
        ]
        folder.write(*events, *closes, seq=seq)
        rows += map(row_of, closes)
    return rows


def test_a_segment_goes_to_its_key_its_rows_to_the_ledger_and_a_marker_says_so(
    folder: Any, records: Any, aws: Any, shipper: Shipper, counts: Counts
) -> None:
    rows = write_segments(folder, records, 1)
    assert shipper.backlog().num_bytes > 0
    assert shipper.ship() == 1
    (path,) = list_segments(folder.path, SEALED)
    key = f"usage/v1/us-east-2/2025-11-22/12/{path.name}"
    assert aws.objects() == {key: path.read_bytes()}
    head = aws.s3.head_object(Bucket=aws.bucket, Key=key)
    marker = msgspec.json.decode(path.with_suffix(SHIPPED).read_bytes(), type=Marker)
    assert head["Metadata"] == {"sha256": marker.sha256, "records": "6", "closes": "3"}
    assert (marker.key, marker.size_bytes, marker.num_records, marker.last_row) == (key, path.stat().st_size, 6, rows[-1].key)
    assert sorted(ledger(aws), key=lambda row: row.key) == sorted(rows, key=lambda row: row.key)
    assert (counts.segments, counts.ledger) == ({"written": 1}, {"written": 3, "present": 0, "conflict": 0})
    assert shipper.ship() == 0
    assert (shipper.backlog().num_segments, shipper.backlog().oldest_s) == (0, 0.0)


def test_shipped_three_times_out_of_order_the_ledger_is_the_same(
    folder: Any, records: Any, aws: Any, shipper: Shipper, counts: Counts
) -> None:
    rows = write_segments(folder, records, 6)
    shipper.ship()
    first = ledger_hash(ledger(aws))
    for _ in range(2):
        for path in list_segments(folder.path, SHIPPED):
            path.unlink()
        assert shipper.ship() == 6
    segments = [path.read_bytes() for path in list_segments(folder.path, SEALED)]
    for seed in range(2):
        aws.make_table(f"{aws.table}-{seed}")
        shuffled = random.Random(seed).sample(segments * 3, len(segments) * 3)
        results = rebuild_from_segments(aws.dynamodb, f"{aws.table}-{seed}", shuffled)
        assert results == {PutResult.WRITTEN: len(rows), PutResult.PRESENT: 2 * len(rows)}
        assert ledger_hash(ledger(aws, f"{aws.table}-{seed}")) == first
    assert ledger_hash(ledger(aws)) == first == ledger_hash(rows)
    assert counts.segments == {"written": 6, "present": 12}
    assert len(aws.objects()) == 6


def test_other_bytes_under_the_key_are_never_overwritten(
    folder: Any, records: Any, aws: Any, shipper: Shipper, counts: Counts
) -> None:
    write_segments(folder, records, 2)
    first, second = list_segments(folder.path, SEALED)
    key = f"usage/v1/us-east-2/2025-11-22/12/{first.name}"
    aws.s3.put_object(Bucket=aws.bucket, Key=key, Body=b"something else")
    assert shipper.ship() == 1, "the other one"
    assert aws.objects()[key] == b"something else"
    assert not first.with_suffix(SHIPPED).exists()
    assert second.with_suffix(SHIPPED).exists()
    assert counts.segments == {"conflict": 1, "written": 1}
    assert (shipper.backlog().num_segments, shipper.backlog().num_stuck) == (1, 1)
    assert len(ledger(aws)) == 3, "no row without its segment in the archive"


def test_a_row_that_differs_is_kept_and_counted_and_the_segment_ships(
    folder: Any, records: Any, aws: Any, shipper: Shipper, counts: Counts
) -> None:
    rows = write_segments(folder, records, 1)
    altered = msgspec.structs.replace(rows[0], output_tokens=999)
    aws.dynamodb.put_item(TableName=aws.table, Item=item_of(altered))
    assert shipper.ship() == 1
    assert counts.ledger == {"written": 2, "present": 0, "conflict": 1}
    assert {row.event_id: row for row in ledger(aws)}[altered.event_id] == altered


def test_attributes_that_replication_adds_make_no_difference(records: Any, aws: Any) -> None:
    row = row_of(records.close(records.open()))
    aws.dynamodb.put_item(TableName=aws.table, Item={**item_of(row), "aws:rep:updateregion": {"S": "us-west-2"}})
    assert put_row(aws.dynamodb, aws.table, row) is PutResult.PRESENT


def test_an_archive_that_was_lost_is_filled_again_from_the_journals(
    folder: Any, records: Any, aws: Any, shipper: Shipper
) -> None:
    write_segments(folder, records, 5)
    shipper.ship()
    before = aws.objects()
    assert shipper.recheck(full=True) == 0
    aws.empty_bucket()
    assert shipper.recheck(full=False) == 5
    assert shipper.ship() == 5
    assert aws.objects() == before


def test_a_ledger_that_was_put_back_to_an_earlier_state_is_filled_again(
    folder: Any, records: Any, aws: Any, shipper: Shipper
) -> None:
    """An emulated AWS saves its tables at a graceful stop: after a kill the newest rows are gone, the objects are not."""
    rows = write_segments(folder, records, 5)
    shipper.ship()
    for row in rows[6:]:
        aws.dynamodb.delete_item(TableName=aws.table, Key=row.key.item())
    assert shipper.recheck(full=False) == 3
    assert shipper.ship() == 3
    assert ledger_hash(ledger(aws)) == ledger_hash(rows)


def test_one_object_missing_in_the_middle_is_found_by_the_full_check(
    folder: Any, records: Any, aws: Any, shipper: Shipper
) -> None:
    write_segments(folder, records, 5)
    shipper.ship()
    lost = sorted(aws.objects())[2]
    aws.s3.delete_object(Bucket=aws.bucket, Key=lost)
    assert shipper.recheck(full=False) == 0
    assert shipper.recheck(full=True) == 1
    shipper.ship()
    assert lost in aws.objects()


def test_a_marker_that_cannot_be_read_is_no_proof(folder: Any, records: Any, aws: Any, shipper: Shipper) -> None:
    write_segments(folder, records, 1)
    shipper.ship()
    list_segments(folder.path, SHIPPED)[0].write_bytes(b"{")
    assert shipper.recheck(full=True) == 1
    assert shipper.ship() == 1


def test_a_bucket_that_is_gone_says_nothing_about_what_was_shipped(folder: Any, records: Any, aws: Any, shipper: Shipper) -> None:
    write_segments(folder, records, 2)
    shipper.ship()
    aws.empty_bucket()
    aws.s3.delete_bucket(Bucket=aws.bucket)
    with pytest.raises(ClientError, match="NoSuchBucket"):
        shipper.recheck(full=True)
    assert len(list_segments(folder.path, SHIPPED)) == 2


def test_an_aws_that_does_not_answer_loses_nothing(folder: Any, records: Any, aws: Any, no_aws: Any, counts: Counts) -> None:
    rows = write_segments(folder, records, 3)
    away = Destination(*no_aws, REGION, aws.bucket, aws.table)
    cut_off = Shipper(folder.path, away, 3600, counts)
    assert cut_off.ship() == 0
    assert counts.segments == {"failed": 1}, "the first failure halts the rest"
    assert cut_off.backlog().num_segments == 3
    marker = list_segments(folder.path, SEALED)[0].with_suffix(SHIPPED)
    marker.write_bytes(msgspec.json.encode(Marker("usage/v1/us-east-2/2025-11-22/12/gateway-0-0-1-1.seg", "", 0, 0, 0, None)))
    with pytest.raises(EndpointConnectionError):
        cut_off.recheck(full=True)
    marker.unlink()
    back = Shipper(folder.path, Destination(aws.s3, aws.dynamodb, REGION, aws.bucket, aws.table), 3600, counts)
    assert back.ship() == 3
    assert ledger_hash(ledger(aws)) == ledger_hash(rows)


def test_a_table_that_throttles_delays_the_segment_and_no_row_is_lost(
    folder: Any, records: Any, aws: Any, shipper: Shipper, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the puts time out after they were committed: the segment is not marked, and is put again whole."""
    rows = write_segments(folder, records, 1)
    calls = itertools.count()
    real = aws.dynamodb.put_item

    def throttled(**arguments: Any) -> Any:
        real(**arguments)
        if next(calls) % 2:
            raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, "PutItem")

    with monkeypatch.context() as patch:
        patch.setattr(aws.dynamodb, "put_item", throttled)
        assert shipper.ship() == 0
    assert not list_segments(folder.path, SHIPPED)
    assert shipper.ship() == 1
    assert counts.ledger["conflict"] == 0
    assert counts.ledger["failed"] == 1
    assert ledger_hash(ledger(aws)) == ledger_hash(rows)


def test_a_long_backlog_is_shipped_in_turns_the_oldest_first(folder: Any, records: Any, shipper: Shipper) -> None:
    write_segments(folder, records, 3)
    assert shipper.ship(limit_s=0) == 1
    assert [path.stem for path in list_segments(folder.path, SHIPPED)] == [list_segments(folder.path, SEALED)[0].stem]
    assert shipper.ship() == 2


def test_a_damaged_segment_is_kept_and_delays_no_other(folder: Any, records: Any, shipper: Shipper, counts: Counts) -> None:
    write_segments(folder, records, 3)
    damaged = list_segments(folder.path, SEALED)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert shipper.ship() == 2
    assert counts.segments == {"unreadable": 1, "written": 2}
    assert damaged.exists()
    assert (shipper.backlog().num_segments, shipper.backlog().num_stuck) == (1, 1)


def test_shipped_segments_are_removed_when_their_time_is_over_and_others_never(
    folder: Any, records: Any, shipper: Shipper
) -> None:
    write_segments(folder, records, 2)
    shipper.ship()
    write_segments(folder, records, 3)
    old, kept, _ = list_segments(folder.path, SEALED)
    old.with_suffix(TORN).write_bytes(b"evidence")
    for path in folder.path.iterdir():
        os.utime(path, (time.time() - 7200,) * 2)
    os.utime(kept.with_suffix(SHIPPED))
    assert shipper.retire() == 1
    assert [path.stem for path in list_segments(folder.path, SEALED)] == [kept.stem, folder.names()[-1].removesuffix(SEALED)]
    assert not [path for path in folder.path.iterdir() if path.stem == old.stem]


def test_a_living_writer_is_left_alone_and_a_dead_one_taken_over_after_its_time(
    folder: Any, records: Any, shipper: Shipper
) -> None:
    event = records.open()
    path: Path = folder.write(event, records.progress(event, 6), suffix=OPEN)
    lock = WriterLock.acquire(folder.path, "gateway-0-0")
    assert shipper.has_living_writer()
    assert shipper.take_over(after_s=0) == []
    lock.release()
    assert not shipper.has_living_writer()
    assert shipper.take_over(after_s=30) == [], "it may be restarting"
    os.utime(path, (time.time() - 60,) * 2)
    (found,) = shipper.take_over(after_s=30)
    assert found.num_crashed == 1
    assert shipper.ship() == 1
    assert [close.output_tokens for close in decode_segment(path.with_suffix(SEALED).read_bytes()).closes] == [6]


def test_the_report_reads_one_tenant_several_or_all_and_only_the_span_asked_for(records: Any, aws: Any) -> None:
    midnight_ms = 1_763_856_000_000
    for tenant, opened_at_ms in itertools.product(("acme", "zoo"), (midnight_ms - 1, midnight_ms, midnight_ms + DAY_MS)):
        put_row(aws.dynamodb, aws.table, row_of(records.close(records.open(tenant=tenant, opened_at_ms=opened_at_ms))))

    def requests(tenants: Any, from_ms: int, to_ms: int) -> dict[str, int]:
        report = usage_report(aws.dynamodb, aws.table, tenants, from_ms, to_ms, ("tenant",))
        return {row.tenant: row.requests for row in report.rows}

    assert requests("acme", 0 + midnight_ms - DAY_MS, midnight_ms + 2 * DAY_MS) == {"acme": 3}
    assert requests(["acme", "zoo", "nobody"], midnight_ms, midnight_ms + DAY_MS) == {"acme": 1, "zoo": 1}
    assert requests(None, midnight_ms - 1, midnight_ms + 1) == {"acme": 2, "zoo": 2}
    assert requests([], midnight_ms - 1, midnight_ms + 1) == {}


def test_missing_rows_asks_for_more_than_one_batch(records: Any, aws: Any) -> None:
    rows = [row_of(records.close(records.open())) for _ in range(105)]
    for row in rows[:103]:
        put_row(aws.dynamodb, aws.table, row)
    assert missing_rows(aws.dynamodb, aws.table, (row.key for row in rows)) == {row.key for row in rows[103:]}


def test_a_segment_that_is_shipped_again_reads_its_rows_puts_what_is_missing_and_names_what_differs(
    folder: Any, records: Any, aws: Any, shipper: Shipper, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a takeover whole volumes are shipped again: a put for each row would be a hundred times the requests."""
    gone, changed, _ = write_segments(folder, records, 1)
    shipper.ship()
    aws.dynamodb.delete_item(TableName=aws.table, Key=gone.key.item())
    aws.dynamodb.put_item(TableName=aws.table, Item=item_of(msgspec.structs.replace(changed, output_tokens=999)))
    for path in list_segments(folder.path, SHIPPED):
        path.unlink()
    counts.ledger.clear()
    put_item, num_puts = aws.dynamodb.put_item, []

    def counted(**arguments: Any) -> Any:
        num_puts.append(1)
        return put_item(**arguments)

    monkeypatch.setattr(aws.dynamodb, "put_item", counted)
    assert shipper.ship() == 1
    assert counts.ledger == {"written": 1, "present": 1, "conflict": 1}
    assert len(num_puts) == 1
    assert gone in ledger(aws)
