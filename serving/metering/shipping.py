"""Shipping sealed segments: to the archive, then into the ledger, then marked; kept for a while, and checked against both.

A segment is marked only when archive and ledger have all of it, and every step can be repeated: a shipper that dies anywhere,
or two at once, ship the same. What cannot be shipped now is tried again, apart from the rest, at growing, jittered intervals:
an AWS that is down delays everything and loses nothing, one bad segment delays only itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError

from serving.metering.archive import Stored, archive_key, missing_keys, put_segment
from serving.metering.framing import Segment, SegmentError, decode_segment
from serving.metering.ledger import PutResult, missing_rows, write_rows
from serving.metering.recovery import Recovered, recover
from serving.metering.rows import RowKey, row_of
from serving.metering.segments import (
    LOCK,
    OPEN,
    SEALED,
    SHIPPED,
    TORN,
    JournalLocked,
    SegmentName,
    WriterLock,
    list_segments,
    write_durably,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

TAKE_OVER_AFTER_S = 30.0
"""A writer that is gone this long is taken for dead: a gateway that restarts seals its segments itself, much sooner."""
SHIP_LIMIT_S = 10.0
"""A long backlog is shipped in turns this long, so that the process stays answerable and stops when told."""
BACK_OFF_FIRST_S = 0.5
BACK_OFF_MAX_S = 30.0

log = structlog.get_logger()


class Marker(msgspec.Struct, frozen=True):
    """Content of a `.shipped` file: what is where, so that it can be checked without reading the segment."""

    key: str
    sha256: str
    size_bytes: int
    num_records: int
    shipped_at_ms: int
    last_row: RowKey | None
    """Row of the segment's last CLOSE; None where it has none."""


@dataclass(frozen=True)
class Destination:
    """Where segments of a region go."""

    s3: S3Client
    dynamodb: DynamoDBClient
    region: str
    archive_bucket: str
    ledger_table: str


@dataclass(frozen=True)
class Backlog:
    """What is sealed and not yet shipped."""

    num_segments: int
    num_stuck: int
    """Those of them that need a person: unreadable, or in conflict with the archive."""
    num_bytes: int
    oldest_s: float
    """Age of the oldest; 0 where there is none."""


class Observer(Protocol):
    """Told what happened, for metrics; results are those of the series."""

    def segment(self, result: str) -> None:
        """One attempt to ship a segment ended."""

    def rows(self, result: str, count: int) -> None:
        """So many ledger puts ended."""


class BackOff:
    """Times of the next attempt: each failure doubles the longest wait, and the wait is drawn at random below it (full
    jitter)."""

    def __init__(self) -> None:
        self._failures = 0
        self._next_s = 0.0

    def is_ready(self) -> bool:
        """Now is not before the next attempt."""
        return time.monotonic() >= self._next_s

    def failed(self) -> None:
        """An attempt failed."""
        longest_s = min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2 ** min(self._failures, 16))
        self._failures += 1
        self._next_s = time.monotonic() + random.uniform(BACK_OFF_FIRST_S / 2, longest_s)  # noqa: S311 (jitter)


class Shipper:
    """Ships one journal directory, whoever writes into it. Everything here blocks, and belongs to one thread at a time."""

    def __init__(self, directory: Path, destination: Destination, retain_s: float, observer: Observer) -> None:
        self._directory = directory
        self._to = destination
        self._retain_s = retain_s
        self._observer = observer
        self._back_off: defaultdict[str, BackOff] = defaultdict(BackOff)
        """By segment; under "" for AWS as a whole."""
        self._stuck: set[str] = set()

    def ship(self, limit_s: float = SHIP_LIMIT_S) -> int:
        """Ship sealed segments whose time has come, oldest first, and begin none after `limit_s`; how many were shipped.

        Failures are logged and counted, never raised.
        """
        num_shipped = 0
        deadline_s = time.monotonic() + limit_s
        for path in self._unshipped():
            if not self._back_off[""].is_ready() or (num_shipped and time.monotonic() >= deadline_s):
                break
            if path.name not in self._back_off or self._back_off[path.name].is_ready():
                num_shipped += self._ship_or_back_off(path)
        return num_shipped

    def take_over(self, after_s: float = TAKE_OVER_AFTER_S) -> list[Recovered]:
        """Seal what writers left open who have been gone for `after_s`. A living writer holds its lock and is left alone.

        Raises:
            OSError: the disk is full or failing; calling again resumes.
        """
        recovered: list[Recovered] = []
        for source in sorted({name.source for path in list_segments(self._directory, OPEN) if (name := SegmentName.of(path))}):
            with contextlib.suppress(JournalLocked, FileNotFoundError):  # alive, or it has just sealed the file itself
                ages_s = [time.time() - path.stat().st_mtime for path in list_segments(self._directory, OPEN, source)]
                if min(ages_s, default=0.0) < after_s:
                    continue
                lock = WriterLock.acquire(self._directory, source)
                try:
                    recovered += recover(self._directory, source)
                finally:
                    lock.release()
        return recovered

    def has_living_writer(self) -> bool:
        """Some process holds the lock of a source here, and may still seal a segment."""
        for path in self._directory.glob(f"*{LOCK}"):
            try:
                WriterLock.acquire(self._directory, path.stem).release()
            except JournalLocked:
                return True
        return False

    def backlog(self) -> Backlog:
        """What waits."""
        sizes, times, num_stuck = [], [], 0
        for path in self._unshipped():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                sizes.append(status.st_size)
                times.append(status.st_mtime)
                num_stuck += path.name in self._stuck
        return Backlog(len(sizes), num_stuck, sum(sizes), max(0.0, time.time() - min(times)) if times else 0.0)

    def recheck(self, *, full: bool) -> int:
        """Check that archive and ledger still have what was shipped and is retained; what is missing is shipped again.

        Not `full` looks at the oldest and the newest segment alone, and at all only if one of them is missing: an archive that
        was lost, or put back to an earlier state, lacks one of the two.

        Returns: how many segments are to be shipped again.
        Raises:
            botocore.exceptions.BotoCoreError, ClientError: one of the two did not answer, which says nothing about what it has.
        """
        paths = list_segments(self._directory, SHIPPED)
        sample = paths if full else [*paths[:1], *paths[1:][-1:]]
        missing = self._missing(sample)
        if missing and not full:
            missing = self._missing(paths)
        for path in missing:
            path.unlink(missing_ok=True)
        if missing:
            log.warning("shipped segments are no longer in archive and ledger; shipping them again", num_segments=len(missing))
        return len(missing)

    def retire(self) -> int:
        """Remove segments that were shipped longer ago than they are to be retained, with what lies beside them; how many."""
        now_s = time.time()
        num_removed = 0
        for path in list_segments(self._directory, SHIPPED):
            with contextlib.suppress(FileNotFoundError):
                if now_s - path.stat().st_mtime > self._retain_s:
                    path.with_suffix(SEALED).unlink(missing_ok=True)
                    path.with_suffix(TORN).unlink(missing_ok=True)
                    path.unlink()  # last: a segment without its marker would be shipped again
                    num_removed += 1
        return num_removed

    def _unshipped(self) -> list[Path]:
        shipped = {path.stem for path in list_segments(self._directory, SHIPPED)}
        return [path for path in list_segments(self._directory, SEALED) if path.stem not in shipped]

    def _ship_or_back_off(self, path: Path) -> bool:
        try:
            result = self._ship_one(path)
        except SegmentError as error:
            log.error("segment cannot be read; it is kept", segment=path.name, error=str(error))
            result = "unreadable"
        except ClientError as error:  # AWS answered: the others may fare better
            log.warning("segment not shipped yet", segment=path.name, error=str(error))
            result = "failed"
        except (BotoCoreError, OSError) as error:  # AWS or the disk does not answer: neither will it for the others
            log.warning("shipping halts", segment=path.name, error=str(error))
            self._back_off[""].failed()
            self._observer.segment("failed")
            return False
        self._observer.segment(result)
        self._back_off.pop("", None)
        if result in (Stored.WRITTEN, Stored.PRESENT):
            self._back_off.pop(path.name, None)
            self._stuck.discard(path.name)
            return True
        self._back_off[path.name].failed()
        if result != "failed":
            self._stuck.add(path.name)
        return False

    def _ship_one(self, path: Path) -> str:
        data = path.read_bytes()
        segment = decode_segment(data)
        name = SegmentName.of(path)
        assert name is not None  # list_segments lists nothing else
        if segment.is_torn:
            raise SegmentError(f"only {segment.whole_bytes} of {segment.size_bytes} bytes of the sealed segment are whole")
        key = archive_key(self._to.region, name, segment)
        stored = put_segment(self._to.s3, self._to.archive_bucket, key, data, segment)
        if stored is Stored.CONFLICT:
            log.error("the archive holds another segment under this key; both are kept", segment=path.name, key=key)
            return stored
        self._write_rows(segment, is_again=stored is Stored.PRESENT)
        marker = Marker(
            key=key,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            num_records=len(segment.records),
            shipped_at_ms=time.time_ns() // 1_000_000,
            last_row=row_of(segment.closes[-1]).key if segment.closes else None,
        )
        write_durably(path.with_suffix(SHIPPED), msgspec.json.encode(marker))
        return stored

    def _write_rows(self, segment: Segment, *, is_again: bool) -> None:
        try:
            results = write_rows(self._to.dynamodb, self._to.ledger_table, segment.closes, is_again=is_again)
        except (BotoCoreError, ClientError):
            self._observer.rows("failed", 1)
            raise
        for result in PutResult:
            self._observer.rows(result, results[result])

    def _missing(self, paths: list[Path]) -> list[Path]:
        markers: dict[Path, Marker] = {}
        unreadable = []
        for path in paths:
            if path.with_suffix(SEALED).exists():
                try:
                    markers[path] = msgspec.json.decode(path.read_bytes(), type=Marker)
                except msgspec.MsgspecError:
                    unreadable.append(path)
        keys = missing_keys(self._to.s3, self._to.archive_bucket, (marker.key for marker in markers.values()))
        last_rows = (marker.last_row for marker in markers.values() if marker.last_row is not None)
        rows = missing_rows(self._to.dynamodb, self._to.ledger_table, last_rows)
        return unreadable + [path for path, marker in markers.items() if marker.key in keys or marker.last_row in rows]
