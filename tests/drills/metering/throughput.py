"""Parts `journal` and `latency`: what a durable record costs, against SQLite and against no journal at all.

Both pairs are measured in turns in one run on one disk, so that what else the machine does falls on both. The journal is fed as a
gateway feeds it: many requests that wait for their OPEN and CLOSE at once, in one event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.drills.streams import chat
from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen
from serving.metering.framing import encode_record
from serving.metering.journal import Journal
from serving.settings import JournalSettings

from .world import ROOT, DrillWorld, GatewayProcess

sys.path.insert(0, str(ROOT / "tests" / "bench"))

import stream_load
from bare_syncs import bare_syncs

NUM_WAITING = 512
"""Requests that wait for the disk at once: what one worker holds at some thousand a second."""


@dataclass(frozen=True)
class Throughput:
    """Records made durable, of one way to do it."""

    per_s: float
    per_cpu_s: float
    mean_batch: float


def record(number: int) -> UsageOpen:
    """An OPEN as a gateway writes it."""
    return UsageOpen(
        event_id=f"019aab7c-0000-7000-8000-{number:012d}",
        tenant="tenant-0",
        key_id="0123456789abcdef",
        model="small",
        release_id="a" * 64,
        region="us-east-2",
        gateway="gateway-0",
        endpoint="chat.completions",
        opened_at_ms=1_795_000_000_000 + number,
        prompt_tokens=1000,
        price_version="2026-11",
        input_micro_usd_per_mtok=100_000,
        cached_input_micro_usd_per_mtok=50_000,
        output_micro_usd_per_mtok=400_000,
        request_id=f"req_{number:024x}",
    )


def close_of(opened: UsageOpen) -> UsageClose:
    """Its CLOSE."""
    return UsageClose(opened, Outcome.FINISHED, CountSource.ENGINE_FINAL, 1000, 0, 200, opened.opened_at_ms + 5000, "stop", 150.0)


async def journal(folder: Path, num: int) -> Throughput:
    """`num` events, OPEN and CLOSE, through the journal."""
    batches: list[int] = []
    written = await Journal.open(
        folder, JournalSettings(), source="bench", on_commit=lambda commit: batches.append(commit.num_records)
    )
    numbers = iter(range(num))

    async def requests() -> None:
        for number in numbers:
            opened = record(number)
            await written.open_event(opened)
            await written.close_event(close_of(opened))

    began_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(requests() for _ in range(NUM_WAITING)))
    lasted_s, used_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    await written.aclose()
    return Throughput(2 * num / lasted_s, 2 * num / used_s, statistics.fmean(batches))


def sqlite(path: Path, num: int, batch: int) -> Throughput:
    """The same records, `batch` a transaction, into SQLite with a WAL and `synchronous=FULL`."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE usage (event_id TEXT, kind INTEGER, record BLOB, PRIMARY KEY (event_id, kind)) WITHOUT ROWID")
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for start in range(0, num, batch):
        opened = [record(number) for number in range(start, min(num, start + batch))]
        for kind, records in enumerate((opened, [close_of(one) for one in opened])):
            database.execute("BEGIN")
            rows = [(made.event_id, kind, encode_record(written)) for made, written in zip(opened, records, strict=True)]
            database.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
            database.execute("COMMIT")
    lasted_s, used_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    database.close()
    return Throughput(2 * num / lasted_s, 2 * num / used_s, batch)


async def latency(
    world: DrillWorld, durable: GatewayProcess, memory: GatewayProcess, *, rounds: int, num: int, per_s: float, seed: int
) -> dict[str, list[float]]:
    """p99 of the first token in ms, round by round: with the journal; without it; and a bare fdatasync's, as often as requests
    come and beside those without the journal."""
    found: dict[str, list[float]] = {"journal": [], "memory": [], "fdatasync": []}
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "the sea"}], "max_tokens": 8}
    for number in range(rounds):
        pair = (("journal", durable), ("memory", memory))
        for name, gateway in pair if number % 2 else reversed(pair):
            wire = chat(gateway.address, world.keys[0], **fields)
            with bare_syncs(durable.folder / "bare", per_s) if gateway is memory else nullcontext([]) as bare:
                measured = await stream_load.run(
                    gateway.address, 8080, wire, num=num, per_s=per_s, num_chunks=8, seed=seed + number
                )
            if measured.failures:
                raise RuntimeError(f"{name}: {measured.failures[0]}")
            found[name].append(measured.ttft_ms(0.99))
            if bare:
                found["fdatasync"].append(bare[int(0.99 * len(bare))])
    return found
