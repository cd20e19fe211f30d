"""Acknowledged means durable: one sync serves all who wait, rotation forgets no open event, a failing disk is never hidden."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen
from serving.metering.framing import decode_segment, open_events
from serving.metering.journal import Commit, Journal, JournalUnavailable
from serving.metering.segments import OPEN, SEALED, TEMPORARY, TORN, JournalLocked, list_segments
from serving.settings import JournalSettings

SOURCE = "gateway-0-0"


async def settled(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
        await asyncio.sleep(0.01)


def event_id(close: UsageClose) -> str:
    return close.open.event_id


class Disk:
    """The disk as the journal's thread meets it: may be slow, full or broken; remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self.num_broken_syncs = 0
        self.sync_s = 0.0
        self.events: list[str] = []
        self._write, self._sync = os.write, os.fdatasync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def write(self, descriptor: int, data: Any) -> int:
        if self.is_full and Path(f"/proc/self/fd/{descriptor}").readlink().suffix in (OPEN, TEMPORARY):
            if len(data) > 1:
                return self._write(descriptor, bytes(data[: len(data) // 2]))  # the last free bytes, then nothing
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(descriptor, data)

    def fdatasync(self, descriptor: int) -> None:
        time.sleep(self.sync_s)
        if self.num_broken_syncs:
            self.num_broken_syncs -= 1
            self.events.append("broken sync")
            raise OSError(errno.EIO, "Input/output error")
        self._sync(descriptor)
        self.events.append("sync")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_one_sync_serves_all_who_wait_and_starts_when_the_last_one_ends(
    folder: Any, records: Any, never_sealed: JournalSettings, disk: Disk
) -> None:
    commits: list[Commit] = []
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE, on_commit=commits.append)
    disk.sync_s = 0.1

    async def opened(name: str) -> None:
        await journal.open_event(records.open())
        disk.events.append(name)

    first = asyncio.create_task(opened("A"))
    await asyncio.sleep(0.03)  # its commit is under way
    await asyncio.gather(first, *(opened(name) for name in "BCD"))
    assert disk.events == ["sync", "A", "sync", "B", "C", "D"]
    assert [(commit.num_records, commit.num_open_events) for commit in commits] == [(1, 1), (3, 4)]
    assert all(commit.seconds >= 0.1 for commit in commits)
    await journal.aclose()


async def test_progress_never_waits_and_shrinks_to_the_last(
    folder: Any, records: Any, never_sealed: JournalSettings, disk: Disk
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    event = records.open()
    await journal.open_event(event)
    disk.sync_s = 0.3
    began_s = time.monotonic()
    for output_tokens in range(1, 1001):
        journal.progress(records.progress(event, output_tokens))
    assert time.monotonic() - began_s < disk.sync_s
    await settled(lambda: disk.events.count("sync") >= 2)
    (path,) = list_segments(folder.path, OPEN)
    found = decode_segment(path.read_bytes()).records
    assert len(found) <= 1 + 2, "the one that was taken at once, and the last"
    await settled(lambda: open_events(decode_segment(path.read_bytes()).records)[0].progress == records.progress(event, 1000))
    await journal.close_event(records.close(event))
    await journal.aclose()


async def test_progress_can_be_asked_after_and_waited_for(
    folder: Any, records: Any, disk: Disk, never_sealed: JournalSettings
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    event = records.open()
    await journal.open_event(event)
    disk.sync_s = 0.1
    ticket = journal.progress(records.progress(event, 16))
    waiting = asyncio.create_task(journal.progress_event(records.progress(event, 40)))
    await asyncio.sleep(0.02)
    assert not journal.is_durable(ticket)
    assert not waiting.done()
    await waiting
    assert journal.is_durable(ticket)
    await journal.aclose()


async def test_progress_that_the_disk_refuses_is_not_called_durable(
    folder: Any, records: Any, disk: Disk, never_sealed: JournalSettings
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    event = records.open()
    await journal.open_event(event)
    disk.num_broken_syncs = 1
    with pytest.raises(JournalUnavailable):
        await journal.progress_event(records.progress(event, 40))
    await journal.aclose()


async def test_a_waiter_that_is_cancelled_harms_no_other(
    folder: Any, records: Any, never_sealed: JournalSettings, disk: Disk
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    disk.sync_s = 0.05
    gone, staying = records.open(), records.open()
    leaving = asyncio.create_task(journal.open_event(gone))
    waiting = asyncio.create_task(journal.open_event(staying))
    await asyncio.sleep(0.01)
    leaving.cancel()
    await waiting
    await asyncio.gather(
        journal.close_event(records.close(gone, 0, outcome=Outcome.NOT_SERVED)), journal.close_event(records.close(staying))
    )
    await journal.aclose()
    assert {close.open.event_id for close in folder.closes()} == {gone.event_id, staying.event_id}


async def test_close_seals_what_was_acknowledged_and_takes_nothing_more(
    folder: Any, records: Any, never_sealed: JournalSettings
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    event = records.open()
    await journal.open_event(event)
    closing = asyncio.create_task(journal.close_event(records.close(event)))
    await asyncio.sleep(0)
    await asyncio.gather(journal.aclose(), journal.aclose(), closing)
    assert folder.records() == [event, records.close(event)]
    assert folder.is_settled()
    assert not journal.healthy
    with pytest.raises(JournalUnavailable, match="closed"):
        await journal.open_event(records.open())
    journal.progress(records.progress(event, 1))


async def test_an_idle_life_leaves_nothing_behind(folder: Any, never_sealed: JournalSettings) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    assert [path.suffix for path in folder.path.iterdir() if path.suffix != ".lock"] == [OPEN]
    await journal.aclose()
    assert folder.names() == []


async def test_events_open_at_the_end_are_closed_as_a_crash_would_close_them(
    folder: Any, records: Any, never_sealed: JournalSettings
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    event = records.open()
    await journal.open_event(event)
    journal.progress(records.progress(event, 12))
    await journal.aclose()
    (close,) = folder.closes()
    assert (close.open, close.outcome, close.output_tokens) == (event, Outcome.GATEWAY_CRASH, 12)


async def test_a_second_writer_refuses_clearly(
    folder: Any, records: Any, never_sealed: JournalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.metering.journal.LOCK_WAIT_S", 0.1)
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    with pytest.raises(JournalLocked, match=f"{SOURCE} in .* is being written by another process"):
        await Journal.open(folder.path, never_sealed, source=SOURCE)
    neighbour = await Journal.open(folder.path, never_sealed, source="gateway-0-1")
    await asyncio.gather(journal.aclose(), neighbour.aclose())
    await (await Journal.open(folder.path, never_sealed, source=SOURCE)).aclose()


async def test_what_the_last_life_left_is_sealed_before_anything_is_accepted(
    folder: Any, records: Any, never_sealed: JournalSettings
) -> None:
    event = records.open()
    folder.write(event, records.progress(event, 3), suffix=OPEN)
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    assert [(found.num_records, found.num_crashed) for found in journal.recovered] == [(2, 1)]
    assert [close.output_tokens for close in folder.closes()] == [3]
    await journal.aclose()


async def test_time_seals_a_segment_from_its_first_record_on(folder: Any, records: Any) -> None:
    journal = await Journal.open(folder.path, JournalSettings(seal_after_s=0.5), source=SOURCE)
    await asyncio.sleep(0.6)
    assert not list_segments(folder.path, SEALED), "nothing was recorded"
    event = records.open()
    await journal.open_event(event)
    await asyncio.sleep(0.1)
    assert not list_segments(folder.path, SEALED)
    await settled(lambda: len(list_segments(folder.path, SEALED)) == 1)
    await asyncio.sleep(0.7)
    assert len(list_segments(folder.path, SEALED)) == 1, "what is only carried over is not sealed again and again"
    await journal.close_event(records.close(event))
    await journal.aclose()
    assert len(list_segments(folder.path, SEALED)) == 2


async def test_rotation_carries_open_events_over_so_that_the_newest_segment_knows_them(folder: Any, records: Any) -> None:
    journal = await Journal.open(folder.path, JournalSettings(seal_after_bytes=4096), source=SOURCE)
    running, silent = records.open(), records.open()
    await journal.open_event(running)
    await journal.open_event(silent)
    journal.progress(records.progress(running, 77))
    for _ in range(40):
        event = records.open()
        await journal.open_event(event)
        await journal.close_event(records.close(event))
    await settled(lambda: len(list_segments(folder.path, SEALED)) >= 4)
    (newest,) = list_segments(folder.path, OPEN)
    carried = open_events(decode_segment(newest.read_bytes()).records)
    assert [(event.open, event.progress and event.progress.output_tokens) for event in carried] == [(running, 77), (silent, None)]
    await asyncio.gather(*(journal.close_event(records.close(event)) for event in (running, silent)))
    await journal.aclose()
    ids = [close.open.event_id for close in folder.closes()]
    assert len(ids) == len(set(ids)) == 42


async def test_after_a_failed_sync_nothing_is_acknowledged_on_that_segment_again(
    folder: Any, records: Any, never_sealed: JournalSettings, disk: Disk
) -> None:
    """The kernel may call pages clean that it failed to write, so a second sync that succeeds proves nothing."""
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    acknowledged, refused, later = records.open(), records.open(), records.open()
    await journal.open_event(acknowledged)
    journal.progress(records.progress(acknowledged, 5))
    await settled(lambda: disk.events == ["sync"] * 2)
    (broken,) = list_segments(folder.path, OPEN)
    disk.num_broken_syncs = 1
    with pytest.raises(JournalUnavailable, match=f"{broken.name}: cannot be written: Input/output error"):
        await journal.open_event(refused)
    await journal.open_event(later)
    assert journal.healthy
    (fresh,) = list_segments(folder.path, OPEN)
    assert fresh != broken
    assert decode_segment(fresh.read_bytes()).records == (acknowledged, records.progress(acknowledged, 5), later)
    sealed = decode_segment(broken.with_suffix(SEALED).read_bytes()).records
    assert sealed == (acknowledged, records.progress(acknowledged, 5)), "only what had been acknowledged"
    assert refused in decode_segment(broken.with_suffix(TORN).read_bytes()).records, "the evidence is kept"
    await asyncio.gather(*(journal.close_event(records.close(event)) for event in (acknowledged, later)))
    await journal.aclose()
    assert [close.open for close in folder.closes()] == [acknowledged, later]


async def test_a_close_that_was_refused_is_written_later_and_never_twice(
    folder: Any, records: Any, never_sealed: JournalSettings, disk: Disk
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    again, given_up = records.open(), records.open()
    await asyncio.gather(journal.open_event(again), journal.open_event(given_up))
    disk.num_broken_syncs = 1
    results = await asyncio.gather(
        *(journal.close_event(records.close(event, 42)) for event in (again, given_up)), return_exceptions=True
    )
    assert [type(result) for result in results] == [JournalUnavailable] * 2
    await journal.close_event(records.close(again, 0, outcome=Outcome.ENGINE_LOST))
    assert journal.num_open_events == 0
    await journal.aclose()
    assert sorted(folder.closes(), key=event_id) == [records.close(again, 42), records.close(given_up, 42)]


async def test_a_full_disk_refuses_new_work_says_why_and_heals_by_itself(
    folder: Any, records: Any, never_sealed: JournalSettings, disk: Disk
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    event, refused, after = records.open(), records.open(), records.open()
    await journal.open_event(event)
    disk.is_full = True
    for _ in range(3):
        with pytest.raises(JournalUnavailable, match="No space left on device"):
            await journal.open_event(refused)
    assert not journal.healthy
    assert "No space left on device" in journal.reason
    with pytest.raises(JournalUnavailable):
        await journal.close_event(records.close(event, 9))
    disk.is_full = False
    await settled(lambda: journal.healthy, 2)
    await journal.open_event(after)
    await journal.close_event(records.close(after))
    await journal.aclose()
    assert sorted(folder.closes(), key=event_id) == [records.close(event, 9), records.close(after)]
    assert refused not in folder.records()


async def test_a_disk_too_full_to_rotate_goes_on_taking_records_on_the_old_segment(
    folder: Any, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await Journal.open(folder.path, JournalSettings(seal_after_bytes=4096), source=SOURCE)
    real_open = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for _ in range(20):
            event = records.open()
            await journal.open_event(event)
            await journal.close_event(records.close(event))
        assert journal.healthy
        assert "cannot begin a segment" in journal.warning
        assert not list_segments(folder.path, SEALED)
    await settled(lambda: bool(list_segments(folder.path, SEALED)), 2)
    assert journal.warning == ""
    await journal.aclose()
    assert len(folder.closes()) == 20


async def test_a_disk_that_does_not_answer_is_reported_before_it_fails(
    folder: Any, records: Any, never_sealed: JournalSettings, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.metering.journal.STALL_LIMIT_S", 0.1)
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)
    disk.sync_s = 1.0
    waiting = asyncio.create_task(journal.open_event(records.open()))
    await settled(lambda: not journal.healthy, 0.9)
    assert "has not answered" in journal.reason
    await waiting
    await settled(lambda: journal.healthy)
    await journal.aclose()


async def test_a_defect_in_the_thread_wakes_everybody_with_its_reason(
    folder: Any, records: Any, never_sealed: JournalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await Journal.open(folder.path, never_sealed, source=SOURCE)

    def broken(*_: Any) -> None:
        raise RuntimeError("defect")

    monkeypatch.setattr("serving.metering.segment_writer.SegmentWriter.commit", broken)
    with pytest.raises(JournalUnavailable, match="the journal has stopped: RuntimeError: defect"):
        await journal.open_event(records.open())
    assert not journal.healthy
    await journal.aclose()


@pytest.mark.parametrize("name", ["a-file", "a-file/below"])
async def test_a_place_that_cannot_hold_a_journal_is_one_clear_line(
    tmp_path: Path, never_sealed: JournalSettings, name: str
) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(JournalUnavailable, match=r"a-file.*: cannot be used as a journal: "):
        await Journal.open(tmp_path / name, never_sealed, source=SOURCE)
    assert not [thread for thread in threading.enumerate() if thread.name == "usage-journal"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_disk_that_really_is_full_loses_nothing_that_was_acknowledged(
    small_disk: Path, records: Any, never_sealed: JournalSettings, tmp_path: Path
) -> None:
    journal = await Journal.open(small_disk, never_sealed, source=SOURCE)
    opened: list[UsageOpen] = []
    closed: list[UsageClose] = []
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(140 * 1024))
    while True:
        try:
            event = records.open()
            await journal.open_event(event)
            opened.append(event)
            await journal.close_event(records.close(event))
            closed.append(records.close(event))
        except JournalUnavailable as error:
            assert "No space left on device" in error.message
            break
    assert len(closed) > 50
    ballast.unlink()
    await settled(lambda: journal.healthy, 3)
    last = records.open()
    await journal.open_event(last)
    await journal.close_event(records.close(last))
    await journal.aclose()
    found = [close for path in list_segments(small_disk, SEALED) for close in decode_segment(path.read_bytes()).closes]
    assert len({close.open.event_id for close in found}) == len(found)
    assert {event.event_id for event in opened} <= {close.open.event_id for close in found}
    assert [close for close in found if close in closed] == closed
    assert records.close(last) in found
    assert all(close.source is CountSource.ENGINE_FINAL for close in found)
