"""Whatever kills the writer, and whenever: every acknowledged event is billed once, and none for more than had arrived."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serving.metering.events import CountSource, Outcome, UsageClose
from serving.metering.framing import SegmentError, decode_segment
from serving.metering.journal import Journal
from serving.metering.recovery import recover
from serving.metering.rows import row_of
from serving.metering.segments import SEALED, list_segments
from serving.settings import JournalSettings

SOURCE = "gateway-0-0"
NUM_KILLS = 10
NUM_POWER_CUTS = 25


@dataclass
class Acknowledged:
    """What a writer was told is durable, and what it had reported as received."""

    opened: set[str] = field(default_factory=set)
    closed: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)

    def read(self, output: bytes) -> None:
        """Add what a killed writer said; its last line may be cut."""
        for line in output.decode().split("\n")[:-1]:
            kind, event_id, *tokens = line.split(" ")
            if kind == "O":
                self.opened.add(event_id)
            elif kind == "P":
                self.received[event_id] = int(tokens[0])
            else:
                self.closed[event_id] = int(tokens[0])


def check_bill(directory: Path, acknowledged: Acknowledged) -> dict[str, UsageClose]:
    """The CLOSE of each event; fails where one is lost, doubled, or bills more than had arrived."""
    found: dict[str, UsageClose] = {}
    times = Counter[str]()
    for path in list_segments(directory, SEALED):
        segment = decode_segment(path.read_bytes())
        assert not segment.is_torn
        for close in segment.closes:
            times[close.open.event_id] += 1
            assert found.setdefault(close.open.event_id, close) == close
    assert acknowledged.opened <= found.keys(), f"{len(acknowledged.opened - found.keys())} acknowledged events are lost"
    assert times.most_common(1)[0][1] == 1, "an event is closed twice"
    for event_id, output_tokens in acknowledged.closed.items():
        assert (found[event_id].outcome, found[event_id].output_tokens) == (Outcome.FINISHED, output_tokens)
    for event_id, close in found.items():
        if close.outcome is Outcome.GATEWAY_CRASH:
            assert close.output_tokens <= acknowledged.received.get(event_id, 0)
            assert close.source is (CountSource.ENGINE_RUNNING if close.output_tokens else CountSource.NONE)
    return found


def kill_writers(directory: Path, kind: str, num_kills: int) -> Acknowledged:
    """Run writers one after the other in one directory, each killed at a random moment."""
    moments = random.Random(3)
    acknowledged = Acknowledged()
    for number in range(num_kills):
        script = Path(__file__).with_name("writer_process.py")
        writer = subprocess.Popen(
            [sys.executable, str(script), str(directory), SOURCE, str(number * 1_000_000), kind], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        os.set_blocking(writer.stdout.fileno(), True)
        output = os.read(writer.stdout.fileno(), 65_536)
        kill_at_s = time.monotonic() + moments.uniform(0.05, 0.3)
        while time.monotonic() < kill_at_s:
            output += os.read(writer.stdout.fileno(), 65_536)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        output += writer.stdout.read()
        writer.stdout.close()
        acknowledged.read(output)
    recover(directory, SOURCE)
    return acknowledged


def test_a_writer_that_is_killed_again_and_again_loses_and_doubles_nothing(folder: Any) -> None:
    acknowledged = kill_writers(folder.path, "journal", NUM_KILLS)
    found = check_bill(folder.path, acknowledged)
    crashed = [close for close in found.values() if close.outcome is Outcome.GATEWAY_CRASH]
    assert len(acknowledged.closed) > 200
    assert crashed, "the kills came in mid-stream"
    assert any(close.output_tokens for close in crashed)
    cost_pico_usd = sum(row_of(found[event_id]).cost_pico_usd for event_id in acknowledged.closed)
    assert cost_pico_usd == sum(7 * 100_000 + output_tokens * 400_000 for output_tokens in acknowledged.closed.values())


def test_the_check_has_teeth_a_queue_in_memory_fails_it(folder: Any) -> None:
    acknowledged = kill_writers(folder.path, "memory", 2)
    with pytest.raises(AssertionError, match="acknowledged events are lost"):
        check_bill(folder.path, acknowledged)


class PowerCuts:
    """A disk that keeps what was synced, and of the rest a random part. At random syncs the power goes: the disk is copied."""

    def __init__(self, directory: Path, copies: Path, monkeypatch: pytest.MonkeyPatch, acknowledged: Acknowledged) -> None:
        self.directory = directory
        self.copies = copies
        self.acknowledged = acknowledged
        self.cuts: list[tuple[Path, Acknowledged]] = []
        self.keeps_unsynced_promise = False
        self._random = random.Random(7)
        self._synced_bytes: dict[int, int] = {}
        self._sync = os.fdatasync, os.fsync
        monkeypatch.setattr(os, "fdatasync", lambda descriptor: self.sync(descriptor, 0))
        monkeypatch.setattr(os, "fsync", lambda descriptor: self.sync(descriptor, 1))

    def sync(self, descriptor: int, kind: int) -> None:
        if len(self.cuts) < NUM_POWER_CUTS and self._random.random() < 0.3:
            self.cut()
        if self.keeps_unsynced_promise:
            return
        self._sync[kind](descriptor)
        status = os.fstat(descriptor)
        self._synced_bytes[status.st_ino] = status.st_size

    def cut(self) -> None:
        known = Acknowledged(set(self.acknowledged.opened), dict(self.acknowledged.closed), dict(self.acknowledged.received))
        copy = self.copies / str(len(self.cuts))
        shutil.copytree(self.directory, copy)
        for path in self.directory.iterdir():
            status = path.stat()
            synced = self._synced_bytes.get(status.st_ino, 0)
            if path.suffix != ".lock":
                os.truncate(copy / path.name, self._random.randint(min(synced, status.st_size), status.st_size))
        self.cuts.append((copy, known))


async def write_streams(directory: Path, records: Any, acknowledged: Acknowledged, num_events: int) -> None:
    journal = await Journal.open(directory, JournalSettings(seal_after_bytes=4096), source=SOURCE)

    async def stream() -> None:
        for _ in range(num_events // 8):
            event = records.open()
            await journal.open_event(event)
            acknowledged.opened.add(event.event_id)
            acknowledged.received[event.event_id] = 5
            journal.progress(records.progress(event, 5))
            await asyncio.sleep(0.001)
            await journal.close_event(records.close(event, 8))
            acknowledged.closed[event.event_id] = 8

    await asyncio.gather(*(stream() for _ in range(8)))
    await journal.aclose()


async def test_the_power_going_at_any_moment_loses_nothing_that_was_acknowledged(
    folder: Any, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves the page cache alone, so it cannot show a missing sync; this does, torn tails included."""
    acknowledged = Acknowledged()
    with monkeypatch.context() as patch:
        disk = PowerCuts(folder.path, tmp_path / "cuts", patch, acknowledged)
        await write_streams(folder.path, records, acknowledged, 240)
    assert len(disk.cuts) == NUM_POWER_CUTS
    num_torn = 0
    for copy, known in disk.cuts:
        num_torn += sum(bool(found.torn_bytes) for found in recover(copy, SOURCE))
        if known.opened:
            check_bill(copy, known)
    assert num_torn
    check_bill(folder.path, acknowledged)


async def test_that_check_has_teeth_too_a_journal_that_does_not_sync_fails_it(
    folder: Any, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged = Acknowledged()
    with monkeypatch.context() as patch:
        disk = PowerCuts(folder.path, tmp_path / "cuts", patch, acknowledged)
        disk.keeps_unsynced_promise = True
        await write_streams(folder.path, records, acknowledged, 240)
    num_failed = 0
    for copy, known in disk.cuts:
        recover(copy, SOURCE)
        try:
            check_bill(copy, known)
        except (AssertionError, IndexError, SegmentError):
            num_failed += 1
    assert num_failed > NUM_POWER_CUTS / 2
