"""The one hand that writes a journal's segments: commit, rotate, and what happens when the disk says no.

Invariants:
- A batch counts as committed only after write and fdatasync of all of it succeeded on one segment.
- After any error on a segment, nothing is ever acknowledged on it again: the kernel may mark pages clean that it failed to
  write, so a second fsync that succeeds proves nothing. What had been committed is sealed as a copy, and the next batch needs a
  new segment.
- A segment becomes visible (`.open`) only when its head is durable. The head repeats the OPEN and the last PROGRESS of every
  event that is still open, so a reader of the newest segment alone knows what is open.
- The next segment is open before the last is sealed: at no moment does a crash leave the open events nameless.

Everything here blocks, and belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from serving.errors import UserError
from serving.metering.events import UsageClose, UsageOpen
from serving.metering.framing import SegmentHeader, encode_header
from serving.metering.recovery import recover, seal
from serving.metering.segments import OPEN, SEALED, TEMPORARY, SegmentName, WriterLock, sync_directory, write_all
from serving.settings import JournalSettings

RETRY_S = 0.5
"""Least time between two attempts to open a segment while the disk refuses."""


class JournalUnavailable(UserError):
    """The journal cannot make records durable now: no new paid work may start. The message names the file and the cause."""


class Entry(NamedTuple):
    """An OPEN or CLOSE to be committed."""

    kind: type[UsageOpen] | type[UsageClose]
    event_id: str
    frame: bytes


@dataclass
class _Current:
    """The segment being written."""

    path: Path
    descriptor: int
    durable_bytes: int
    first_commit_at_s: float | None = None
    """Monotonic; None while it holds nothing but its head."""


@dataclass
class _OpenEvents:
    """Frames of what is open: the head of the next segment."""

    opens: dict[str, bytes] = field(default_factory=dict)
    progress: dict[str, bytes] = field(default_factory=dict)
    late_closes: dict[str, bytes] = field(default_factory=dict)
    """CLOSE records that could not be acknowledged: the request is over, so the next segment's head carries them too."""

    def head(self) -> bytes:
        return b"".join([*self.opens.values(), *self.progress.values(), *self.late_closes.values()])

    def note_progress(self, progress: dict[str, bytes]) -> None:
        self.progress.update((event_id, frame) for event_id, frame in progress.items() if event_id in self.opens)

    def note_closed(self, event_id: str) -> None:
        self.opens.pop(event_id, None)
        self.progress.pop(event_id, None)


class SegmentWriter:
    """Writes the segments of one source. The lock must be held, and stays the caller's to release."""

    def __init__(self, lock: WriterLock, settings: JournalSettings) -> None:
        self.reason = ""
        """Why nothing can be committed; empty while all is well."""
        self.warning = ""
        """Why rotation or sealing is late; records are still made durable."""
        self._directory = lock.directory
        self._source = lock.source
        self._settings = settings
        self.epoch = lock.next_epoch(time.time_ns() // 1_000_000)
        self._next_seq = 0
        self._current: _Current | None = None
        self._unsealed: list[tuple[Path, int]] = []
        """Segments whose sealing failed so far, with what is durable in each."""
        self._events = _OpenEvents()
        self._closed_late: set[str] = set()
        """Events whose CLOSE was refused, then carried over: closing them again is a success that writes nothing."""
        self._retry_at_s = 0.0

    @property
    def num_open_events(self) -> int:
        """Events opened and not yet closed."""
        return len(self._events.opens)

    def next_due_s(self) -> float | None:
        """Seconds until `maintain` has something to do; None when only a commit can change that."""
        now_s = time.monotonic()
        if self._current is None:
            return max(0.0, self._retry_at_s - now_s)
        if self._current.first_commit_at_s is None:
            return None
        seal_at_s = self._current.first_commit_at_s + self._settings.seal_after_s
        if self._current.durable_bytes >= self._settings.seal_after_bytes:
            seal_at_s = now_s
        return max(0.0, max(seal_at_s, self._retry_at_s) - now_s)

    def begin(self) -> None:
        """Open the first segment: proof that the disk takes records.

        Raises:
            JournalUnavailable: it does not.
        """
        self._open_next()

    def commit(self, progress: dict[str, bytes], entries: Sequence[Entry]) -> None:
        """Make the batch durable. `progress` maps event ids to PROGRESS frames; entries keep their order.

        Raises:
            JournalUnavailable: nothing of the batch is acknowledged. Its PROGRESS and CLOSE records are kept and written at the
                head of the next segment; its OPEN records are dropped, for their requests were refused.
        """
        try:
            current = self._current or self._open_next()
            entries = self._without_late(entries)
            self._append(current, b"".join([*progress.values(), *(entry.frame for entry in entries)]))
        except JournalUnavailable:
            self._keep_unacknowledged(progress, entries)
            raise
        for kind, event_id, frame in entries:
            if kind is UsageOpen:
                self._events.opens[event_id] = frame
            else:
                self._events.note_closed(event_id)
        self._events.note_progress(progress)

    def maintain(self) -> None:
        """Rotate when the segment is due, or try the disk again when it refused. Never raises: `reason` and `warning` tell."""
        if self._current is None:
            with contextlib.suppress(JournalUnavailable):
                self._open_next()
        elif self._is_due(self._current) and time.monotonic() >= self._retry_at_s:
            self._rotate(self._current)

    def close(self) -> None:
        """Seal all that is left. Events that are still open are closed as a crash would close them.

        Raises:
            OSError: the disk refused; the next start resumes.
        """
        if self._current is None:
            self._retry_at_s = 0.0
            with contextlib.suppress(JournalUnavailable):
                self._open_next()  # for the CLOSE records that still wait; where it fails, what is on the disk stands
        if self._current is not None:
            os.close(self._current.descriptor)
            self._current = None
        self._seal_rest()
        self.reason = "the journal is closed"
        recover(self._directory, self._source)

    def _append(self, current: _Current, data: bytes) -> None:
        if not data:
            return
        try:
            write_all(current.descriptor, data)
            os.fdatasync(current.descriptor)
        except OSError as error:
            self._abandon(current, error)
            raise JournalUnavailable(self.reason) from error
        current.durable_bytes += len(data)
        if current.first_commit_at_s is None:
            current.first_commit_at_s = time.monotonic()

    def _without_late(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        if not self._closed_late:
            return entries
        is_late = [entry.kind is UsageClose and entry.event_id in self._closed_late for entry in entries]
        self._closed_late.difference_update(entry.event_id for entry, late in zip(entries, is_late, strict=True) if late)
        return [entry for entry, late in zip(entries, is_late, strict=True) if not late]

    def _keep_unacknowledged(self, progress: dict[str, bytes], entries: Sequence[Entry]) -> None:
        self._events.note_progress(progress)
        for kind, event_id, frame in entries:
            if kind is UsageClose and event_id in self._events.opens:
                self._events.late_closes.setdefault(event_id, frame)

    def _open_next(self) -> _Current:
        """Begin the next segment; once it is there, everything in its head is durable.

        Raises:
            JournalUnavailable: the disk refuses, or refused less than RETRY_S ago.
        """
        if self._current is None and self.reason and time.monotonic() < self._retry_at_s:
            raise JournalUnavailable(self.reason)
        name = SegmentName(self._source, self.epoch, self._next_seq)
        path = self._directory / f"{name.stem}{OPEN}"
        temporary = path.with_name(path.name + TEMPORARY)
        head = (
            encode_header(SegmentHeader(self._source, self.epoch, self._next_seq, time.time_ns() // 1_000_000))
            + self._events.head()
        )
        descriptor, is_visible = -1, False
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640)
            write_all(descriptor, head)
            os.fsync(descriptor)
            temporary.rename(path)
            is_visible = True
            sync_directory(self._directory)
        except OSError as error:
            self._retry_at_s = time.monotonic() + RETRY_S
            with contextlib.suppress(OSError):  # what cannot be removed is swept at the next start
                temporary.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                if descriptor >= 0:
                    os.close(descriptor)
            if is_visible:  # a reader may take it for the newest, so nothing may be acknowledged on an older one any more
                self._next_seq += 1
                self._unsealed.append((path, len(head)))
                if self._current is not None:
                    self._abandon(self._current, error)
            problem = f"{path}: cannot begin a segment: {error.strerror or error}"
            if self._current is None:
                self.reason = problem
            raise JournalUnavailable(problem, "free space on the journal's disk; it is tried again by itself") from error
        self._next_seq += 1
        for event_id in self._events.late_closes:
            self._events.note_closed(event_id)
            self._closed_late.add(event_id)
        self._events.late_closes.clear()
        self._current = _Current(path, descriptor, len(head))
        self.reason = self.warning = ""
        self._seal_rest()
        return self._current

    def _abandon(self, current: _Current, error: OSError) -> None:
        self.reason = f"{current.path}: cannot be written: {error.strerror or error}"
        self._unsealed.append((current.path, current.durable_bytes))
        self._current = None
        with contextlib.suppress(OSError):
            os.close(current.descriptor)  # may report the same error again; the segment is given up already

    def _is_due(self, current: _Current) -> bool:
        if current.first_commit_at_s is None:
            return False
        age_s = time.monotonic() - current.first_commit_at_s
        return age_s >= self._settings.seal_after_s or current.durable_bytes >= self._settings.seal_after_bytes

    def _rotate(self, last: _Current) -> None:
        try:
            self._open_next()
        except JournalUnavailable as error:
            self.warning = error.message  # the old segment is sound: it goes on taking records
            return
        os.close(last.descriptor)
        try:
            last.path.rename(last.path.with_suffix(SEALED))  # every byte of it is durable: each commit saw to that
            sync_directory(self._directory)
        except OSError as error:
            self.warning = f"{last.path}: cannot be sealed: {error.strerror or error}"
            self._unsealed.append((last.path, last.durable_bytes))

    def _seal_rest(self) -> None:
        rest, self._unsealed = self._unsealed, []
        for path, durable_bytes in rest:
            try:
                if path.exists():
                    seal(path, is_newest=False, durable_bytes=durable_bytes)
            except OSError as error:
                self.warning = f"{path}: cannot be sealed: {error.strerror or error}"
                self._unsealed.append((path, durable_bytes))
