"""A gateway's journal at full speed, to be killed: says on stdout what was acknowledged, right after it was.

    writer_process.py DIRECTORY SOURCE FIRST_NUMBER journal|memory

Lines: `O id` (OPEN acknowledged), `P id n` (PROGRESS of n tokens is about to be noted), `C id n` (CLOSE of n tokens
acknowledged). With `memory` it acknowledges at once and writes 2,000 records at a time, as a queue in memory does: the control
of the experiment.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen, UsageProgress
from serving.metering.framing import SegmentHeader, encode_header, encode_record
from serving.metering.journal import Journal
from serving.metering.segments import OPEN, SegmentName
from serving.settings import JournalSettings

NUM_STREAMS = 32
SETTINGS = JournalSettings(seal_after_s=0.1, seal_after_bytes=64 * 1024)


class MemoryQueue:
    """The same face as a journal, without its promise."""

    def __init__(self, directory: Path, source: str) -> None:
        epoch = time.time_ns() // 1_000_000
        self._file = (directory / f"{SegmentName(source, epoch, 0).stem}{OPEN}").open("wb", buffering=0)
        self._file.write(encode_header(SegmentHeader(source, epoch, 0, epoch)))
        self._queue: list[bytes] = []

    def progress(self, record: UsageOpen | UsageProgress | UsageClose) -> None:
        self._queue.append(encode_record(record))
        if len(self._queue) == 2000:
            self._file.write(b"".join(self._queue))
            self._queue.clear()

    async def open_event(self, record: UsageOpen) -> None:
        self.progress(record)
        await asyncio.sleep(0)

    async def close_event(self, record: UsageClose) -> None:
        self.progress(record)
        await asyncio.sleep(0)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def stream(journal: Any, numbers: Any) -> None:
    for number in numbers:
        names = "acme", "k1", "small", "release", "us-east-2", "gateway-0-0", "completions"
        event = UsageOpen(f"event-{number:09d}", *names, number, 7, "2025-11", 100_000, 50_000, 400_000)
        await journal.open_event(event)
        say(f"O {event.event_id}")
        for output_tokens in (3, 6, 9):
            say(f"P {event.event_id} {output_tokens}")
            journal.progress(UsageProgress(event.event_id, 7, 0, output_tokens))
            await asyncio.sleep(0.002)  # others open and close meanwhile, and it goes along
        output_tokens = 10 + number % 5
        await journal.close_event(UsageClose(event, Outcome.FINISHED, CountSource.ENGINE_FINAL, 7, 0, output_tokens, number + 1))
        say(f"C {event.event_id} {output_tokens}")


async def main() -> None:
    directory, source, first, kind = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    journal = await Journal.open(directory, SETTINGS, source=source) if kind == "journal" else MemoryQueue(directory, source)
    numbers = itertools.count(first)
    await asyncio.gather(*(stream(journal, numbers) for _ in range(NUM_STREAMS)))


asyncio.run(main())
