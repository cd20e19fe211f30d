"""What is done to a gateway's process before it starts, to see what becomes of its bills. Each is named for what it is.

eio FILE       fsync and fdatasync of a journal fail with EIO, once for each byte that FILE has at the time (it loses one)
memory         the journal acknowledges at once and writes 2,000 records at a time, as a queue in memory does: the control
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.gateway import service
from serving.metering.events import UsageClose, UsageOpen, UsageProgress
from serving.metering.framing import SegmentHeader, encode_header, encode_record
from serving.metering.segments import OPEN, TEMPORARY, SegmentName

MEMORY_RECORDS = 2000


class MemoryQueue:
    """A journal's face without its promise."""

    healthy = True
    reason = warning = ""
    recovered = ()

    def __init__(self, directory: Path, source: str) -> None:
        self.epoch = time.time_ns() // 1_000_000
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / f"{SegmentName(source, self.epoch, 0).stem}{OPEN}").open("wb", buffering=0)
        self._file.write(encode_header(SegmentHeader(source, self.epoch, 0, self.epoch)))
        self._queue: list[bytes] = []

    @classmethod
    async def open(cls, directory: Path, _settings: Any, *, source: str, **_: Any) -> MemoryQueue:
        return cls(directory, source)

    def progress(self, record: UsageOpen | UsageProgress | UsageClose) -> int:
        self._queue.append(encode_record(record))
        if len(self._queue) >= MEMORY_RECORDS:
            self._flush()
        return 0

    def is_durable(self, _ticket: int) -> bool:
        return True

    async def progress_event(self, record: UsageProgress) -> None:
        self.progress(record)

    async def open_event(self, record: UsageOpen) -> None:
        self.progress(record)
        await asyncio.sleep(0)

    async def close_event(self, record: UsageClose) -> None:
        self.progress(record)
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        self._flush()

    def _flush(self) -> None:
        self._file.write(b"".join(self._queue))
        self._queue.clear()


def install(faults: dict[str, str]) -> None:
    """Do it to this process."""
    if "memory" in faults:
        service.Journal = MemoryQueue  # type: ignore[misc, assignment]
    if "eio" in faults:
        _break_syncs(Path(faults["eio"]))


def _break_syncs(orders: Path) -> None:
    def broken(sync: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            is_journal = Path(f"/proc/self/fd/{descriptor}").readlink().suffix in (OPEN, TEMPORARY)
            num_left = orders.stat().st_size if is_journal and orders.exists() else 0
            if num_left:
                os.truncate(orders, num_left - 1)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(descriptor)

        return call

    os.fdatasync, os.fsync = broken(os.fdatasync), broken(os.fsync)  # type: ignore[assignment]
