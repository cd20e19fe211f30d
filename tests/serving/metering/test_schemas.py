"""Segments of every schema that was ever written stay readable, and give the rows that they gave on the day they were written.

The golden segments are bytes that code of their day wrote. They are never written again: if a test here fails, old bills would
change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.metering.events import SCHEMA_VERSION
from serving.metering.framing import decode_segment, encode_record, open_events
from serving.metering.rows import item_of, ledger_hash, row_from, row_of, row_of_revision

GOLDEN = Path(__file__).with_name("golden")
ROWS = {  # by schema: rows, and the ledger hash of them
    1: (2, "ea614199e81595d87944ad519de97141afdfa6ea6a75d250d45d6f4edf1c8609"),
    2: (3, "92abdaa59f32cd99615fbda5a173dba0367f0cd30749a0ff3a9fbf8f12d916af"),
}


def golden(schema: int) -> Any:
    return decode_segment((GOLDEN / f"segment-v{schema}.seg").read_bytes())


def rows_of(segment: Any) -> list[Any]:
    return [*map(row_of, segment.closes), *map(row_of_revision, segment.revisions)]


def test_there_is_a_golden_segment_of_every_schema() -> None:
    assert set(ROWS) == set(range(1, SCHEMA_VERSION + 1))


@pytest.mark.parametrize("schema", ROWS)
def test_a_segment_gives_the_rows_that_it_gave_when_it_was_written(schema: int) -> None:
    segment = golden(schema)
    assert not segment.is_torn
    rows = rows_of(segment)
    assert (len(rows), ledger_hash(rows)) == ROWS[schema]
    assert {row.schema for row in rows} == {schema}
    first = rows[0]
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens, first.attempts) == (101, 30, 211, 2)
    assert first.cost_pico_usd == 71 * 100_000 + 30 * 50_000 + 211 * 400_000
    (left_open,) = open_events(segment.records)
    assert left_open.progress is not None and left_open.progress.output_tokens == 64


def test_what_schema_1_did_not_know_is_said_to_be_unknown() -> None:
    close = golden(1).closes[0]
    assert (close.open.request_id, close.engines, close.reasoning_tokens, close.total_ms) == ("", (), -1, -1.0)


def test_schema_2_tells_who_asked_for_what_and_who_answered_when() -> None:
    row = rows_of(golden(2))[0]
    assert row.request_id == "req_000000000000000000000001"
    assert (row.adapter, row.adapter_release_id) == ("acme-support", "b" * 64)
    assert (row.engines, row.routing_reason, row.reasoning_tokens) == ("engine-small-0 engine-small-1", "prefix", 40)
    assert (row.queue_us, row.ttft_us, row.total_us) == (2500, 120_250, 1_499_000)


def test_a_segment_that_an_upgrade_found_open_holds_records_of_both_schemas(records: Any) -> None:
    """Recovery of a dead gateway of the last version appends CLOSE records of this one."""
    data = (GOLDEN / "segment-v1.seg").read_bytes() + encode_record(records.close(records.open()))
    segment = decode_segment(data)
    assert not segment.is_torn
    assert [close.open.schema for close in segment.closes] == [1, 1, SCHEMA_VERSION]


def test_an_item_stores_nothing_that_is_unknown_and_reads_back_as_the_row(records: Any) -> None:
    plain = row_of(records.close(records.open()))
    full = row_of(records.close(records.open(is_batch=True, adapter="a"), engines=("e0",), reasoning_tokens=0))
    for row in (plain, full):
        assert row_from(item_of(row)) == row
    assert item_of(full)["is_batch"] == {"BOOL": True}
    assert not {"is_batch", "adapter", "engines", "reasoning_tokens", "revision"} & set(item_of(plain))


def test_a_revision_counts_no_request_and_no_token_and_stands_beside_its_event() -> None:
    event, _, revision = rows_of(golden(2))
    assert (revision.prompt_tokens, revision.cached_tokens, revision.output_tokens, revision.attempts) == (0, 0, 0, 0)
    assert revision.cost_pico_usd == 71 * (90_000 - 100_000)
    assert (revision.key.pk, revision.key.sk) == (event.key.pk, f"{event.key.sk}#0001")
