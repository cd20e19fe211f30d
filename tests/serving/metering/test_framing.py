"""A reader takes whole records from the front of a segment, stops at the first that is not whole, and never invents one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.metering import framing
from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen, UsageProgress, UsageRecord
from serving.metering.framing import MAGIC, SegmentError, SegmentHeader, decode_segment, encode_header, encode_record, open_events

HEADER = SegmentHeader("gateway-0-0", 1_763_812_800_000, 7, 1_763_812_800_123)

ids = st.uuids().map(str)
counts = st.integers(0, 2**40)
texts = st.text(max_size=40)
names, prices = [texts] * 7, [counts] * 3
opens = st.builds(UsageOpen, ids, *names, counts, counts, texts, *prices, schema=st.just(2))
progresses = st.builds(UsageProgress, ids, counts, counts, counts)
closes = st.builds(
    UsageClose,
    opens,
    st.sampled_from(Outcome),
    st.sampled_from(CountSource),
    counts,
    counts,
    counts,
    counts,
    texts,
    st.floats(-1, 1e6, allow_nan=False),
    st.integers(1, 5),
)
sequences = st.lists(st.one_of(opens, progresses, closes), max_size=6)


def encode(records: list[UsageRecord]) -> tuple[bytes, list[int]]:
    """A segment, and the length of its header and of each prefix of whole records."""
    data = encode_header(HEADER)
    borders = [len(data)]
    for record in records:
        data += encode_record(record)
        borders.append(len(data))
    return data, borders


@given(sequences)
def test_what_is_written_is_read(written: list[UsageRecord]) -> None:
    data, _ = encode(written)
    segment = decode_segment(data)
    assert (segment.header, list(segment.records), segment.is_torn) == (HEADER, written, False)


@settings(max_examples=15, deadline=None)
@given(sequences)
def test_cut_at_any_byte_it_yields_exactly_the_records_that_are_whole(written: list[UsageRecord]) -> None:
    data, borders = encode(written)
    for length in range(borders[0], len(data) + 1):
        segment = decode_segment(data[:length])
        num_whole = sum(border <= length for border in borders) - 1
        assert list(segment.records) == written[:num_whole]
        assert segment.whole_bytes == borders[num_whole]
        assert segment.is_torn == (length not in borders)


@settings(max_examples=15, deadline=None)
@given(sequences, st.integers(1, 255))
def test_with_any_byte_changed_it_stops_at_the_record_that_holds_it(written: list[UsageRecord], flip: int) -> None:
    data, borders = encode(written)
    for at in range(borders[0], len(data)):
        damaged = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
        num_before = sum(border <= at for border in borders) - 1
        assert list(decode_segment(damaged).records) == written[:num_before]


@settings(max_examples=20)
@given(st.integers(0, len(encode_header(HEADER)) - 1), st.integers(1, 255))
def test_a_damaged_header_is_refused_and_never_misread(at: int, flip: int) -> None:
    data, _ = encode([])
    with pytest.raises(SegmentError):
        decode_segment(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])


def test_a_tail_of_zeros_is_torn_and_no_run_of_empty_records(records: Any) -> None:
    """A file grown before its data was written reads as zeros after a power cut; CRC-32 of nothing is zero."""
    data, _ = encode([records.open()])
    segment = decode_segment(data + bytes(4096))
    assert (len(segment.records), segment.is_torn) == (1, True)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not a usage segment"),
        (MAGIC[:5], "not a usage segment"),
        (b"PK\x03\x04" + bytes(100), "not a usage segment"),
        (MAGIC, "header at byte 8 is not whole"),
        (MAGIC + framing._frame(msgspec.msgpack.encode({"source": "x"})), "no segment header"),
        (encode_header(SegmentHeader("gateway-0-0", 1, 0, 1, schema=99)), "schema 99 is newer"),
        (encode_header(HEADER) + framing._frame(msgspec.msgpack.encode({"type": "refund"})), "whole but unknown"),
    ],
)
def test_what_it_cannot_read_it_refuses_and_says_where(data: bytes, complaint: str) -> None:
    """A record with a good checksum and an unknown kind is newer, not torn: dropping it would lose usage."""
    with pytest.raises(SegmentError, match=complaint):
        decode_segment(data)


def test_open_events_are_those_without_a_close_each_with_its_last_progress(records: Any) -> None:
    silent, running, over = records.open(), records.open(), records.open()
    opened = [silent, running, over]
    counted = [records.progress(running, 3), records.progress(over, 4), records.progress(running, 9)]
    found = open_events([*opened, *counted, records.close(over)])
    assert [(event.open, event.progress and event.progress.output_tokens) for event in found] == [(silent, None), (running, 9)]
