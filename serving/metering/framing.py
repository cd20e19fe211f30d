"""The bytes of a journal segment, encoded and decoded by pure functions.

    segment = MAGIC · frame(SegmentHeader) · frame(UsageRecord)*
    frame   = length (u32, little endian) · CRC-32 (u32) · MessagePack payload

The CRC covers the length too, so neither a damaged length nor a run of zeros (whose length and CRC would otherwise agree) passes
for a record. A reader takes whole records from the front and stops at the first that is not whole: it never skips, never guesses,
never invents one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from serving.metering.events import SCHEMA_VERSION, UsageClose, UsageOpen, UsageProgress, UsageRecord, UsageRevision
from serving.metering.events_v1 import decode_v1

MAGIC = b"FLUSAGE1"
MAX_PAYLOAD_BYTES = 1024 * 1024
"""A record is about 500 bytes; a larger length is damage, and must not make a reader allocate it."""

_PREFIX = struct.Struct("<II")
_LENGTH = struct.Struct("<I")


class SegmentError(Exception):
    """A segment cannot be read at all, or holds a whole record that this code does not know; the message says where."""


class SegmentHeader(msgspec.Struct, frozen=True):
    """Which writer wrote the segment, and when it began."""

    source: str
    """Pod and worker."""
    epoch: int
    """The writer's life: Unix time in ms at its start, greater in every life."""
    seq: int
    """Counts the segments of an epoch from 0."""
    created_at_ms: int
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Segment:
    """What could be read of a segment."""

    header: SegmentHeader
    records: tuple[UsageRecord, ...]
    whole_bytes: int
    """Length of the header and the whole records."""
    size_bytes: int

    @property
    def is_torn(self) -> bool:
        """Bytes follow the last whole record."""
        return self.whole_bytes < self.size_bytes

    @property
    def revisions(self) -> tuple[UsageRevision, ...]:
        """The REVISION records, in file order."""
        return tuple(record for record in self.records if isinstance(record, UsageRevision))

    @property
    def closes(self) -> tuple[UsageClose, ...]:
        """The CLOSE records, in file order: all that a first bill needs."""
        return tuple(record for record in self.records if isinstance(record, UsageClose))


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(SegmentHeader)
_record_decoder: msgspec.msgpack.Decoder[UsageRecord] = msgspec.msgpack.Decoder(UsageRecord)


def _frame(payload: bytes) -> bytes:
    length = _LENGTH.pack(len(payload))
    return length + _LENGTH.pack(zlib.crc32(payload, zlib.crc32(length))) + payload


def encode_header(header: SegmentHeader) -> bytes:
    """The first bytes of a segment."""
    return MAGIC + _frame(_encoder.encode(header))


def encode_record(record: UsageRecord) -> bytes:
    """One record, framed. Equal records give equal bytes."""
    return _frame(_encoder.encode(record))


def _decode(payload: memoryview) -> UsageRecord:
    """The record in a payload. Schema 1 wrote maps, all later ones write arrays; MessagePack's first byte tells which."""
    is_map = payload[:1] and (payload[0] & 0xF0 == 0x80 or payload[0] in (0xDE, 0xDF))
    return decode_v1(payload) if is_map else _record_decoder.decode(payload)


def _payload_at(data: memoryview, at: int) -> memoryview | None:
    """The payload of the frame at byte `at`; None where no whole frame stands there."""
    start = at + _PREFIX.size
    if start > len(data):
        return None
    length, checksum = _PREFIX.unpack_from(data, at)
    if length > MAX_PAYLOAD_BYTES or start + length > len(data):
        return None
    payload = data[start : start + length]
    if zlib.crc32(payload, zlib.crc32(data[at : at + _LENGTH.size])) != checksum:
        return None
    return payload


def decode_segment(data: bytes) -> Segment:
    """The header and the whole records at the front of `data`; a torn tail is left out and shows in `is_torn`.

    Raises:
        SegmentError: the header is not whole, its schema is newer than this code, or a record whose checksum holds is none that
            this code knows. The last two are no damage: dropping such a record would lose usage that newer code can read.
    """
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise SegmentError(f"not a usage segment: it begins with {data[: len(MAGIC)]!r}, expected {MAGIC!r}")
    payload = _payload_at(view, len(MAGIC))
    if payload is None:
        raise SegmentError(f"the header at byte {len(MAGIC)} is not whole")
    try:
        header = _header_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise SegmentError(f"the header at byte {len(MAGIC)} is no segment header: {error}") from error
    if header.schema > SCHEMA_VERSION:
        raise SegmentError(f"schema {header.schema} is newer than {SCHEMA_VERSION}, the newest that this code reads")
    at = len(MAGIC) + _PREFIX.size + len(payload)
    records: list[UsageRecord] = []
    while (payload := _payload_at(view, at)) is not None:
        try:
            records.append(_decode(payload))
        except msgspec.MsgspecError as error:
            raise SegmentError(f"the record at byte {at} is whole but unknown: {error}") from error
        at += _PREFIX.size + len(payload)
    return Segment(header, tuple(records), whole_bytes=at, size_bytes=len(data))


def last_time_ms(header: SegmentHeader, records: Iterable[UsageRecord]) -> int:
    """Latest Unix time that the records name, in ms; the header's for records that name none.

    It is read from the bytes alone, so whoever asks, whenever, gets the same answer: the archive key's hour and the end of a
    crashed request are taken from it.
    """
    times = [record.opened_at_ms for record in records if isinstance(record, UsageOpen)]
    times += [record.closed_at_ms for record in records if isinstance(record, UsageClose)]
    times += [record.revised_at_ms for record in records if isinstance(record, UsageRevision)]
    return max(times, default=header.created_at_ms)


@dataclass(frozen=True)
class OpenEvent:
    """An event that has no CLOSE yet, and what had arrived of it."""

    open: UsageOpen
    progress: UsageProgress | None


def open_events(records: Iterable[UsageRecord]) -> tuple[OpenEvent, ...]:
    """The events that `records` open and do not close, in the order of their OPEN, each with its last PROGRESS."""
    opened: dict[str, UsageOpen] = {}
    progress: dict[str, UsageProgress] = {}
    closed: set[str] = set()
    for record in records:
        match record:
            case UsageOpen():
                opened.setdefault(record.event_id, record)
            case UsageProgress():
                progress[record.event_id] = record
            case UsageClose():
                closed.add(record.open.event_id)
    return tuple(OpenEvent(record, progress.get(event_id)) for event_id, record in opened.items() if event_id not in closed)
