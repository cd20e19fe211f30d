"""Which claims on idempotency keys a dead writer may have left unfinished, by its journals alone.

The answer to a key is kept after its event's CLOSE and before its client is told that it is whole. So an event that its writer
never closed has no answer, and one that it closed in its last moments may have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from serving.metering.events import Outcome, UsageOpen
from serving.metering.framing import decode_segment, last_time_ms
from serving.metering.segments import SEALED, SegmentName, list_segments

LAST_MOMENTS_MS = 60_000
"""An answer is kept within seconds of its CLOSE, or never."""


def unfinished_claims(directory: Path, source: str, *, since: int, before: int) -> Iterator[UsageOpen]:
    """The claimed events of `source`'s lives with epochs in [since, before) that ended badly or in the last minute of a life.

    What the lives left open must have been sealed.

    Raises:
        OSError: the disk is failing.
        SegmentError: a segment cannot be read.
    """
    ends_ms: dict[int, int] = {}  # epoch -> last sign of life
    for path in reversed(list_segments(directory, SEALED, source)):
        name = SegmentName.of(path)
        assert name is not None  # list_segments lists nothing else
        if not since <= name.epoch < before:
            continue
        if name.epoch in ends_ms and path.stat().st_mtime * 1000 < ends_ms[name.epoch] - LAST_MOMENTS_MS:
            continue
        segment = decode_segment(path.read_bytes())
        end_ms = ends_ms.setdefault(name.epoch, last_time_ms(segment.header, segment.records))
        for close in segment.closes:
            is_last = close.closed_at_ms >= end_ms - LAST_MOMENTS_MS
            if close.open.claim and (is_last or close.outcome is Outcome.GATEWAY_CRASH):
                yield close.open
