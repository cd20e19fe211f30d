"""The write-ahead usage journal: what it has acknowledged survives the process, the kernel and the disk filling up.

One journal a gateway worker, one thread a journal. The event loop only encodes and queues; the thread takes all that waits,
writes it, syncs it once, and wakes its waiters together. A commit starts when the previous one ends: there is no timer, so a
lone request waits for one fdatasync and a thousand concurrent ones share it. PROGRESS waits for nobody, so it goes along with
the next OPEN or CLOSE, after `PROGRESS_WAIT_S` without one by itself: a commit of its own for each would be most of what a
request costs. Who must know that it is on the disk asks `is_durable`, and `progress_event` where it is not. PROGRESS records of
one event that wait together shrink to the last, as counts are totals: a slow disk cannot make the queue grow beyond the events
that are open.

    journal = await Journal.open(directory, settings.journal, source="gateway-0-0")
    await journal.open_event(UsageOpen(...))      # durable: now ask the engine
    ticket = journal.progress(UsageProgress(...)) # never waits
    journal.is_durable(ticket)                    # by now?
    await journal.close_event(UsageClose(...))    # durable: now tell the client that it is over

An `open_event` whose task is cancelled while it waits may have become durable: close that event all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.metering.events import UsageClose, UsageOpen, UsageProgress
from serving.metering.framing import encode_record
from serving.metering.recovery import Recovered, recover
from serving.metering.segment_writer import Entry, JournalUnavailable, SegmentWriter
from serving.metering.segments import WriterLock
from serving.settings import JournalSettings

__all__ = ["Commit", "Journal", "JournalUnavailable"]

LOCK_WAIT_S = 3.0
"""A shipper that takes over a dead writer's segments holds the lock for moments: wait that out, then refuse."""
PROGRESS_WAIT_S = 0.05
"""Longest wait of PROGRESS for a commit to go along with. Much less than its interval (`JournalSettings.progress_s`)."""
STALL_LIMIT_S = 5.0
"""A disk that takes longer over one commit is reported as unhealthy, though it has not failed yet."""

_Waiter = asyncio.Future[None]


@dataclass(frozen=True)
class Commit:
    """One group commit, for metrics."""

    seconds: float
    num_records: int
    num_open_events: int


class Journal:
    """The face of the journal on the event loop. Make one with `Journal.open`."""

    def __init__(
        self, writer: SegmentWriter, lock: WriterLock, recovered: list[Recovered], on_commit: Callable[[Commit], None] | None
    ) -> None:
        self.recovered = recovered
        """What the last life of this writer had left behind, for the log."""
        self._writer = writer
        self._place = lock
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        """Over what waits and the flags."""
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        """The thread sleeps here. Not a Condition: it is Python, and holds up the event loop's thread for longer."""
        self._entries: list[Entry] = []
        self._waiters: list[_Waiter] = []
        self._progress: dict[str, bytes] = {}
        self._num_taken = 0
        """Batches that the thread has begun; the last one that succeeded is `_num_durable`."""
        self._num_durable = 0
        self._is_idle = False
        self._is_closing = False
        self._failure = ""
        self._commit_began_s = 0.0
        self._done: _Waiter = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="usage-journal", daemon=True)
        self._thread.start()

    @classmethod
    async def open(
        cls, directory: Path, settings: JournalSettings, *, source: str, on_commit: Callable[[Commit], None] | None = None
    ) -> Journal:
        """Take the writer's place, seal what its last life left open, and begin a segment. `on_commit` is called on the event
        loop.

        Raises:
            JournalLocked: another process writes `source` here.
            JournalUnavailable: the disk is full, failing or not writable.
            ValueError: `source` cannot stand in a file name.
        """

        def take_over() -> tuple[SegmentWriter, WriterLock, list[Recovered]]:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                lock = WriterLock.acquire(directory, source, LOCK_WAIT_S)
            except OSError as error:
                raise JournalUnavailable(f"{directory}: cannot be used as a journal: {error.strerror or error}") from error
            try:
                recovered = recover(directory, source)
                writer = SegmentWriter(lock, settings)
                writer.begin()
            except OSError as error:
                lock.release()
                raise JournalUnavailable(f"{directory}: cannot be recovered: {error.strerror or error}") from error
            except BaseException:
                lock.release()
                raise
            return writer, lock, recovered

        return cls(*await asyncio.to_thread(take_over), on_commit)

    @property
    def epoch(self) -> int:
        """This life of the writer; greater than that of any before."""
        return self._writer.epoch

    @property
    def healthy(self) -> bool:
        """Records can be made durable now."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why records cannot be made durable; empty while they can."""
        if self._failure or self._writer.reason:
            return self._failure or self._writer.reason
        began_s = self._commit_began_s
        if began_s and time.monotonic() - began_s > STALL_LIMIT_S:
            return f"the journal's disk has not answered for {time.monotonic() - began_s:.0f} s"
        return ""

    @property
    def warning(self) -> str:
        """Why rotation or sealing is late, which delays shipping but loses nothing; empty while it is not."""
        return self._writer.warning

    @property
    def num_open_events(self) -> int:
        """Events opened and not yet closed, as of the last commit."""
        return self._writer.num_open_events

    async def open_event(self, record: UsageOpen) -> None:
        """Return when `record` is durable: from then on the request is billed, whatever happens.

        Raises:
            JournalUnavailable: it is not, and the engine must not be asked.
        """
        await self._commit(Entry(UsageOpen, record.event_id, encode_record(record)))

    def progress(self, record: UsageProgress) -> int:
        """Note what has arrived; durable at the next commit. Gives what `is_durable` asks for. Never waits and never raises."""
        with self._lock:
            self._progress[record.event_id] = encode_record(record)
            return self._num_taken + 1

    def is_durable(self, ticket: int) -> bool:
        """The PROGRESS that got `ticket`, or a later one of its event, is on the disk."""
        return self._num_durable >= ticket

    async def progress_event(self, record: UsageProgress) -> None:
        """Return when `record` is durable. It is committed at once.

        Raises:
            JournalUnavailable: it is not yet; it is kept and written as soon as the disk takes records again.
        """
        waiter: _Waiter = self._loop.create_future()
        with self._lock:
            self._enlist(waiter)
            self._progress[record.event_id] = encode_record(record)
        await waiter

    async def close_event(self, record: UsageClose) -> None:
        """Return when `record` is durable. Only the first CLOSE of an event counts.

        Raises:
            JournalUnavailable: it is not yet. The journal keeps it and writes it as soon as the disk takes records again;
                calling again is allowed and never doubles it.
        """
        await self._commit(Entry(UsageClose, record.open.event_id, encode_record(record)))

    async def aclose(self) -> None:
        """Commit what waits, seal the segment, and give the writer's place up. Calling it again waits for the same end."""
        with self._lock:
            self._is_closing = True
            self._wake()
        await asyncio.shield(self._done)

    async def _commit(self, entry: Entry) -> None:
        waiter: _Waiter = self._loop.create_future()
        with self._lock:
            self._enlist(waiter)
            self._entries.append(entry)
            if entry.kind is UsageClose:
                self._progress.pop(entry.event_id, None)
        await waiter

    def _enlist(self, waiter: _Waiter) -> None:
        """It is told when the next batch is durable, which begins as soon as it can. Call it with the lock held.

        Raises:
            JournalUnavailable: there is no next one.
        """
        if self._is_closing or self._failure:
            raise JournalUnavailable(self._failure or "the journal is closed")
        self._waiters.append(waiter)
        self._wake()

    def _wake(self) -> None:
        """Let the thread go on if it sleeps. Call it with the lock held."""
        if self._is_idle:
            self._is_idle = False
            self._wakeups.put(None)

    def _run(self) -> None:
        """The thread: commit while anything waits; rotate or retry in between; seal at the end."""
        try:
            while True:
                waiters, progress, entries, is_last = self._take()
                if progress or entries:
                    self._commit_batch(waiters, progress, entries)
                elif is_last:
                    break
                self._writer.maintain()
            self._writer.close()
        except BaseException as error:  # a defect, or a disk that refuses the last seal: nobody may wait for ever
            self._failure = f"the journal has stopped: {type(error).__name__}: {error}"
        finally:
            with self._lock:
                self._is_closing = True
                waiters, self._waiters = self._waiters, []
            self._place.release()
            self._on_loop(waiters, self._failure or "the journal is closed", None)
            self._on_loop([self._done], "", None)

    def _take(self) -> tuple[list[_Waiter], dict[str, bytes], list[Entry], bool]:
        """All that waits; empty when maintenance is due or the journal closes."""
        with self._lock:
            self._is_idle = not (self._waiters or self._is_closing)
        if self._is_idle:
            with contextlib.suppress(queue.Empty):
                self._wakeups.get(timeout=self._sleep_s())
        with self._lock:
            self._is_idle = False
            taken = self._waiters, self._progress, self._entries, self._is_closing
            self._waiters, self._progress, self._entries = [], {}, []
            self._num_taken += 1
            return taken

    def _sleep_s(self) -> float | None:
        """How long nothing but an OPEN or CLOSE needs the thread. PROGRESS of open events wakes nobody."""
        due_s = self._writer.next_due_s()
        if not self._writer.num_open_events:
            return due_s
        return PROGRESS_WAIT_S if due_s is None else min(due_s, PROGRESS_WAIT_S)

    def _commit_batch(self, waiters: list[_Waiter], progress: dict[str, bytes], entries: list[Entry]) -> None:
        began_s = self._commit_began_s = time.monotonic()
        reason = ""
        try:
            self._writer.commit(progress, entries)
        except JournalUnavailable as error:
            reason = error.message
        except BaseException:
            with self._lock:  # hand the waiters back: `_run` tells them
                self._waiters = waiters + self._waiters
            raise
        finally:
            self._commit_began_s = 0.0
        if not reason:
            self._num_durable = self._num_taken  # only this thread takes
        num_records = len(progress) + len(entries)
        commit = None if reason else Commit(time.monotonic() - began_s, num_records, self._writer.num_open_events)
        self._on_loop(waiters, reason, commit)

    def _settle(self, waiters: list[_Waiter], reason: str, commit: Commit | None) -> None:
        for waiter in waiters:
            if waiter.done():  # its task was cancelled
                continue
            if reason:
                waiter.set_exception(JournalUnavailable(reason))
            else:
                waiter.set_result(None)
        if commit is not None and self._on_commit is not None:
            self._on_commit(commit)

    def _on_loop(self, waiters: list[_Waiter], reason: str, commit: Commit | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, waiters, reason, commit)
