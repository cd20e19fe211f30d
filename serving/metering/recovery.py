"""Sealing what a dead writer left open.

Its newest segment names every event that was still open (rotation carries them over), so that one alone is asked who never got a
CLOSE; each of those gets one, made of nothing but the segment's bytes: recovering twice, or by another process, writes the same
records. A request whose engine never reported progress bills nothing: nothing had been received, so no count can be proven.
Otherwise the last PROGRESS is billed, which is never over, and under by at most one PROGRESS interval.

The caller must hold the source's `WriterLock`. No evidence is lost: a damaged original is kept beside what was sealed of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from serving.metering.events import CountSource, Outcome, UsageClose
from serving.metering.framing import OpenEvent, Segment, SegmentError, decode_segment, encode_record, last_time_ms, open_events
from serving.metering.segments import (
    CORRUPT,
    OPEN,
    SEALED,
    TEMPORARY,
    TORN,
    SegmentName,
    list_segments,
    sync_directory,
    write_durably,
)


@dataclass(frozen=True)
class Recovered:
    """What became of one segment."""

    name: str
    num_records: int
    """Whole records found, before any was added."""
    num_crashed: int
    """Events that were given a CLOSE here."""
    torn_bytes: int
    problem: str = ""
    """Why the segment was set aside unread; empty where it was sealed."""


def crash_close(event: OpenEvent, closed_at_ms: int) -> UsageClose:
    """The CLOSE of an event whose gateway died. `closed_at_ms` is the last moment at which the writer is known to have lived."""
    if event.progress is None:
        return UsageClose(event.open, Outcome.GATEWAY_CRASH, CountSource.NONE, 0, 0, 0, closed_at_ms)
    return UsageClose(
        event.open,
        Outcome.GATEWAY_CRASH,
        CountSource.ENGINE_RUNNING,
        event.progress.prompt_tokens,
        event.progress.cached_tokens,
        event.progress.output_tokens,
        closed_at_ms,
    )


def crash_closes(segment: Segment) -> tuple[UsageClose, ...]:
    """The CLOSE of every event that `segment` leaves open; a pure function of its bytes."""
    closed_at_ms = last_time_ms(segment.header, segment.records)
    return tuple(crash_close(event, closed_at_ms) for event in open_events(segment.records))


def seal(path: Path, *, is_newest: bool, durable_bytes: int | None = None) -> Recovered:
    """Turn the `.open` segment at `path` into a `.seg`; the events that a newest one leaves open are closed in it.

    `durable_bytes`, where given, cuts off what was written behind it: its writer was told that this may not be on the disk.

    Raises:
        OSError: the disk is full or failing. Nothing is lost: calling again resumes.
    """
    data = path.read_bytes()
    sealed_path = path.with_suffix(SEALED)
    try:
        segment = decode_segment(data[:durable_bytes])
    except SegmentError as error:
        path.rename(path.with_suffix(CORRUPT))
        sync_directory(path.parent)
        return Recovered(path.stem, 0, 0, len(data), str(error))
    closes = crash_closes(segment) if is_newest else ()
    result = Recovered(path.stem, len(segment.records), len(closes), len(data) - segment.whole_bytes)
    if not result.torn_bytes and segment.records and not closes and not sealed_path.exists():
        _sync_file(path)  # the writer may have died between write and sync
        path.rename(sealed_path)
    else:
        if segment.records and not sealed_path.exists():  # exists: an earlier recovery was cut off right here
            write_durably(sealed_path, data[: segment.whole_bytes] + b"".join(map(encode_record, closes)))
        if result.torn_bytes:
            path.rename(path.with_suffix(TORN))
        else:
            path.unlink()  # all of it stands at the front of the sealed one
    sync_directory(path.parent)
    return result


def recover(directory: Path, source: str) -> list[Recovered]:
    """Seal every segment that a dead writer of `source` left open, and say what was found. Nothing to do is an empty list.

    Raises:
        OSError: the disk is full or failing; calling again resumes.
    """
    for suffix in (OPEN, SEALED):  # never acknowledged: begun by a writer or a recovery that was cut off
        for path in directory.glob(f"*{suffix}{TEMPORARY}"):
            name = SegmentName.of(Path(path.name.removesuffix(TEMPORARY)))
            if name is not None and name.source == source:
                path.unlink()
    newest: dict[int, int] = {}  # epoch -> seq, whatever state the segment is in
    for path in directory.iterdir():
        name = SegmentName.of(path)
        if name is not None and name.source == source:
            newest[name.epoch] = max(name.seq, newest.get(name.epoch, 0))
    recovered = []
    for path in list_segments(directory, OPEN, source):
        name = SegmentName.of(path)
        assert name is not None  # list_segments lists nothing else
        recovered.append(seal(path, is_newest=name.seq == newest[name.epoch]))
    return recovered


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
