"""Part `storm`: live streams while gateways and the cache are killed, journals are torn, and the ledger throttles.

Each kill is a SIGKILL in the middle of whatever the gateway does; before its next life the segment it left open gets a torn tail,
as a disk may leave one that was written and never synced. All sealed segments are then shipped three times by three shippers,
each in an order of its own, one of them in another region.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.drills.streams import Clients, Seen, chat
from serving.metering.events import CountSource, Outcome, UsageClose
from serving.metering.framing import decode_segment, encode_record, open_events
from serving.metering.ledger import read_rows
from serving.metering.recovery import recover, seal
from serving.metering.rows import LedgerRow, ledger_hash, row_of
from serving.metering.segments import OPEN, SEALED, list_segments

from .world import ARCHIVE, FAR_REGION, REGION, ROOT, DrillWorld, GatewayProcess

CONCURRENCY = 64
CUT_SHARE = 0.05
"""Of the clients so many hang up at a random token."""
MAX_TOKENS = 96
NUM_PROMPTS = 40
NUM_KILLERS = 2
SERVED_BEFORE_KILL = 50
"""Answers that a gateway has given in a life before it is killed: an idle one has nothing to lose."""
THROTTLED, TIMED_OUT = 0.02, 0.01
FOREVER_MS = 1 << 52


@dataclass
class Load:
    """What the storm's clients did and saw."""

    seen: dict[str, Seen] = field(default_factory=dict)
    num_sent: int = 0
    num_unheard: int = 0
    """Connections that were gone before a byte of the answer."""
    refusals: Counter[str] = field(default_factory=Counter)


class Storm:
    """Requests and kills, by one seed."""

    def __init__(self, world: DrillWorld, seed: int, say: Callable[[str], None]) -> None:
        self.load = Load()
        self.num_torn_tails = 0
        self.num_torn_alike = 0
        """Copies of dead journals that were torn again, and gave the same bill."""
        self.down: set[str] = set()
        """Names of the gateways between a kill and the end of their recovery."""
        self.served: Counter[str] = Counter()
        """Answers of each gateway in its present life."""
        self._world = world
        self._rng = random.Random(seed)
        self._say = say

    async def run(self, num_requests: int, num_kills: int, num_valkey_kills: int) -> None:
        """At least so many requests have ended, all kills have been made in their midst, and all gateways are up."""
        kills = [
            asyncio.create_task(self._at_progress(num_requests, (num_kills + number) // NUM_KILLERS, self._kill_gateway))
            for number in range(NUM_KILLERS)
        ]
        kills.append(asyncio.create_task(self._at_progress(num_requests, num_valkey_kills, self._kill_valkey)))
        clients, numbers = Clients(), itertools.count()
        prompts = [" ".join(self._rng.choices(["sea", "hill", "rain", "wind"], k=8)) for _ in range(NUM_PROMPTS)]

        def is_over() -> bool:
            return self.load.num_sent >= num_requests and all(kill.done() for kill in kills)

        try:
            workers = [asyncio.create_task(self._worker(clients, numbers, prompts, is_over)) for _ in range(CONCURRENCY)]
            await asyncio.gather(*kills, *workers)
        finally:
            clients.close()
            for task in kills:
                task.cancel()

    async def _worker(
        self, clients: Clients, numbers: Iterator[int], prompts: Sequence[str], is_over: Callable[[], bool]
    ) -> None:
        rng = self._rng
        while not is_over():
            number = next(numbers)
            how = {"cut_after": rng.randint(1, 24)} if rng.random() < CUT_SHARE else {}
            fields = {
                "messages": [{"role": "user", "content": rng.choice(prompts)}],
                "max_tokens": rng.randint(8, MAX_TOKENS),
                "seed": number,
                "temperature": 1,
            }
            while True:
                gateway = rng.choice(self._up() or self._world.gateways)
                wire = chat(gateway.address, rng.choice(self._world.keys), **fields)
                try:
                    answer = await clients.ask(gateway.address, wire, **how)
                except OSError:
                    self.load.num_unheard += 1
                    await asyncio.sleep(0.02)
                    continue
                self.served[gateway.name] += 1
                if answer.request_id:
                    self.load.seen[answer.request_id] = answer
                if answer.status == 503:
                    self.load.refusals[answer.error] += 1
                    await asyncio.sleep(0.05)
                    continue
                break
            self.load.num_sent += 1
            if self.load.num_sent % 5000 == 0:
                self._say(f"{self.load.num_sent} requests have ended")

    async def _at_progress(self, num_requests: int, times: int, act: Callable[[], Any]) -> None:
        for number in range(times):
            due = (number + 1) * num_requests // (times + 1)
            while self.load.num_sent < due:
                await asyncio.sleep(0.005)
            await act()

    async def _kill_gateway(self) -> None:
        while not (busy := self.busy()):
            await asyncio.sleep(0.005)
        gateway = self._rng.choice(busy)
        self.down.add(gateway.name)
        self.served[gateway.name] = 0
        await asyncio.to_thread(gateway.kill)
        self._tear(gateway)
        began_s = time.monotonic()
        gateway.start()
        await asyncio.to_thread(gateway.wait_ready)
        gateway.recoveries_s.append(time.monotonic() - began_s)
        self.served[gateway.name] = 0
        self.down.discard(gateway.name)

    def _up(self) -> list[GatewayProcess]:
        return [gateway for gateway in self._world.gateways if gateway.name not in self.down]

    def busy(self) -> list[GatewayProcess]:
        """Those that are up and have served. What a kill cut counts as served too, so one that is coming up may have plenty."""
        return [gateway for gateway in self._up() if self.served[gateway.name] >= SERVED_BEFORE_KILL]

    async def _kill_valkey(self) -> None:
        await asyncio.to_thread(self._world.restart_valkey)

    def _tear(self, gateway: GatewayProcess) -> None:
        """Torn tails for what the dead gateway left open; and the bill of a copy that is torn elsewhere is the same."""
        for path in list_segments(gateway.journal, OPEN):
            data = path.read_bytes()
            torn, whole = (
                _bill(gateway.folder / name, path, found)
                for name, found in (
                    (f"torn-{self.num_torn_tails}", data + self._tail(data)),
                    (f"whole-{self.num_torn_tails}", data),
                )
            )
            self.num_torn_alike += torn == whole
            with path.open("ab") as file:
                file.write(self._tail(data))
            self.num_torn_tails += 2

    def _tail(self, data: bytes) -> bytes:
        """The front of a record that never became whole: it would bill a million tokens."""
        opened = open_events(decode_segment(data).records)
        if not opened or self._rng.random() < 0.2:
            return bytes(self._rng.randint(1, 64))  # a file that was made longer and never written
        close = UsageClose(opened[0].open, Outcome.FINISHED, CountSource.ENGINE_FINAL, 1, 0, 1_000_000, 1)
        record = encode_record(close)
        return record[: self._rng.randint(1, len(record) - 1)]


def _bill(folder: Path, path: Path, data: bytes) -> list[UsageClose]:
    """What recovery makes of a copy of `path` that has these bytes."""
    folder.mkdir()
    (folder / path.name).write_bytes(data)
    seal(folder / path.name, is_newest=True)
    return [close for path in list_segments(folder, SEALED) for close in decode_segment(path.read_bytes()).closes]


def sealed_segments(world: DrillWorld) -> list[Path]:
    """Stop every gateway, seal what the killed ones left, and name all sealed segments."""
    for gateway in world.gateways:
        gateway.stop()
        recover(gateway.journal, gateway.name)
    return [path for gateway in world.gateways for path in list_segments(gateway.journal, SEALED)]


def ship_three_times(world: DrillWorld, segments: Sequence[Path], seed: int) -> dict[str, Counter[str]]:
    """Every segment by three shippers, two at a time; what became of segments, rows and faults."""
    total: dict[str, Counter[str]] = {"segments": Counter(), "rows": Counter(), "faults": Counter()}
    running: list[subprocess.Popen[str]] = []
    for number, region in enumerate((REGION, REGION, FAR_REGION)):
        folder = world.folder / f"shipper-{seed}-{number}"
        folder.mkdir()
        (folder / "segments").write_text("\n".join(map(str, segments)))
        command = [sys.executable, "-m", "tests.drills.metering.shipping", str(folder), "--aws", world.aws_url]
        command += ["--bucket", ARCHIVE, "--region", region, "--seed", str(seed + number)]
        command += ["--throttled", str(THROTTLED), "--timed-out", str(TIMED_OUT)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (folder / "log").open("w") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True))
        if len(running) == 2:
            _collect(running.pop(0), total)
    for process in running:
        _collect(process, total)
    return total


def _collect(process: subprocess.Popen[str], total: dict[str, Counter[str]]) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a shipper ended with {process.returncode}")
    document = json.loads(output.splitlines()[-1])
    for name, counts in document.items():
        total[name].update(counts)


def ledger(world: DrillWorld) -> list[LedgerRow]:
    """Every row there is."""
    return list(read_rows(world.client("dynamodb"), "ledger", None, 0, FOREVER_MS))


def request_ids(segments: Iterable[Path]) -> dict[str, str]:
    """The id that clients and twins know, by event."""
    closes = (close for path in segments for close in decode_segment(path.read_bytes()).closes)
    return {close.open.event_id: close.open.request_id for close in closes}


def hashes_in_any_order(segments: Sequence[Path], seed: int, times: int = 3) -> set[str]:
    """Ledger hashes of the same segments in different orders, where the first row of an event is kept, as the table keeps it."""
    rng, found = random.Random(seed), set()
    closes = [decode_segment(path.read_bytes()).closes for path in segments]
    for _ in range(times):
        rng.shuffle(closes)
        rows: dict[str, LedgerRow] = {}
        for close in (close for segment in closes for close in segment):
            rows.setdefault(close.open.event_id, row_of(close))
        found.add(ledger_hash(rows.values()))
    return found
