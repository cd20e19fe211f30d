"""Part `disk`: a journal's disk fills up, and its fdatasync fails, under live streams.

The disk is a real small tmpfs where one may be mounted. EIO comes from the wrapper in `gateway_faults.py`, since no disk here
fails on demand. In both cases the gateway must stop to acknowledge, say so, ask no engine, and heal by itself.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from infra.drills.streams import Clients, Seen, chat
from serving import series

from .world import DrillWorld, GatewayProcess

CONCURRENCY = 16
DISK_KIB, LEFT_KIB = 2048, 192
REFUSED = "metering_unavailable"
HEAL_S = 15.0


class NoMountError(Exception):
    """A small file system cannot be mounted here."""


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of `DISK_KIB`.

    Raises:
        NoMountError: it needs rights that this process does not have.
    """
    path.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(path)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        raise NoMountError
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@dataclass
class Trouble:
    """What was seen of one."""

    seen: dict[str, Seen] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    """`200`, or the code of the refusal."""
    was_unready: bool = False
    was_unhealthy: bool = False
    """By the metric that alerts."""
    healed_s: float = -1.0


class Sufferer:
    """One gateway under load, with a disk that is about to fail."""

    def __init__(self, world: DrillWorld, gateway: GatewayProcess, seed: int) -> None:
        self.trouble = Trouble()
        self._world, self._gateway = world, gateway
        self._rng, self._clients = random.Random(seed), Clients()
        self._is_over = False

    async def load(self) -> None:
        """Streams until told to stop."""
        await asyncio.gather(*(self._worker() for _ in range(CONCURRENCY)))
        self._clients.close()

    async def _worker(self) -> None:
        while not self._is_over:
            content = [{"role": "user", "content": "the sea"}]
            number = self._rng.randrange(1 << 30)
            fields = {"messages": content, "max_tokens": self._rng.randint(4, 48), "seed": number, "temperature": 1}
            answer = await self._clients.ask(self._gateway.address, chat(self._gateway.address, self._world.keys[0], **fields))
            self.trouble.seen[answer.request_id] = answer
            self.trouble.answers["200" if answer.status == 200 else answer.error] += 1
            if answer.status != 200:
                await asyncio.sleep(0.05)

    async def until_refused(self) -> None:
        """The gateway refuses for its journal's sake, and its readiness and metric say so."""
        deadline_s = time.monotonic() + 60
        while not (self.trouble.answers[REFUSED] and self.trouble.was_unready and self.trouble.was_unhealthy):
            if time.monotonic() > deadline_s:
                return
            status, _ = await asyncio.to_thread(self._gateway.readiness)
            self.trouble.was_unready |= status == 503
            self.trouble.was_unhealthy |= await asyncio.to_thread(self._gateway.metric, series.JOURNAL_HEALTHY.name) == 0
            await asyncio.sleep(0.01)

    async def until_healed(self) -> None:
        """It takes work again, and has."""
        began_s = time.monotonic()
        while not await asyncio.to_thread(self._gateway.ready):
            if time.monotonic() - began_s > HEAL_S:
                break
            await asyncio.sleep(0.02)
        else:
            self.trouble.healed_s = time.monotonic() - began_s
        before = self.trouble.answers["200"]
        while self.trouble.answers["200"] < before + 50 and time.monotonic() - began_s < HEAL_S:
            await asyncio.sleep(0.02)
        self._is_over = True


async def fill_up(world: DrillWorld, gateway: GatewayProcess, disk: Path, seed: int) -> Trouble:
    """The disk fills up while streams run, and is emptied again."""
    sufferer = Sufferer(world, gateway, seed)
    ballast = disk / "ballast"
    running = asyncio.create_task(sufferer.load())
    await asyncio.sleep(0.5)
    ballast.write_bytes(bytes((DISK_KIB - LEFT_KIB) * 1024 - sum(file.stat().st_size for file in gateway.journal.iterdir())))
    await sufferer.until_refused()
    ballast.unlink()
    await sufferer.until_healed()
    await running
    return sufferer.trouble


async def fail_syncs(world: DrillWorld, gateway: GatewayProcess, seed: int, times: int = 6) -> Trouble:
    """The journal's syncs fail, `times` in a row, while streams run: each new segment fails as well, and then one does not."""
    sufferer = Sufferer(world, gateway, seed)
    running = asyncio.create_task(sufferer.load())
    await asyncio.sleep(0.5)
    Path(gateway.faults["eio"]).write_bytes(bytes(times))
    await sufferer.until_refused()
    await sufferer.until_healed()
    await running
    return sufferer.trouble
