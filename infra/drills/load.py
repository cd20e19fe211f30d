"""An open load through one address: requests begin when they are due, whatever became of those before.

A closed loop would ask less exactly while things are bad, and count the outage small. So a closed loop is used only to learn what
this machine bears; what is judged is asked at moments that are fixed beforehand.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from infra.drills.streams import Clients, Seen, chat

MIN_TOKENS, MAX_TOKENS = 16, 96
LEAVE_SHARE = 0.03
"""Clients that hang up after some tokens: their bills are the hardest."""
LIMIT_S = 30.0
SETTLE_S = 2.0
"""Of a closed loop's beginning, not counted."""
WORDS = ("region", "cache", "queue", "bill", "token", "edge", "drain", "record", "limit", "stream")


@dataclass(frozen=True)
class Asked:
    """One request and what became of it."""

    began_s: float
    """On the monotonic clock, as all times here."""
    ended_s: float
    seen: Seen
    left: bool = False
    """Its client meant to hang up."""
    why: str = ""
    """How it failed, where it did."""

    @property
    def is_served(self) -> bool:
        """The whole answer arrived; or all that a client who left had waited for."""
        return self.seen.status == 200 and (self.seen.is_done or (self.left and not self.why))


@dataclass
class Load:
    """A load on `host`:`port` with the tenants' `keys`. All of what was asked is in `asked`, in the order in which it ended."""

    host: str
    port: int
    keys: Sequence[str]
    seed: int
    asked: list[Asked] = field(default_factory=list)
    num_running: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)  # noqa: S311 (a load, not a secret)
        self._clients = Clients(self.port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None

    async def bears_per_s(self, workers: int, lasts_s: float) -> float:
        """Requests a second that `workers` get answered, each asking again at once."""
        ends_s = time.monotonic() + SETTLE_S + lasts_s
        first = len(self.asked)

        async def work() -> None:
            while time.monotonic() < ends_s:
                await self._ask()

        await asyncio.gather(*(work() for _ in range(workers)))
        counted = [one for one in self.asked[first:] if ends_s - lasts_s <= one.ended_s < ends_s and one.is_served]
        return len(counted) / lasts_s

    async def run(self, per_s: float, stop: asyncio.Event) -> None:
        """Asks `per_s` times a second, at random moments, until `stop`; then waits for the answers."""
        due_s = time.monotonic()
        while not stop.is_set():
            due_s += self._rng.expovariate(per_s)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(self._ask())
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            if self._broken is not None:
                raise self._broken
        await asyncio.gather(*self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:  # a defect here, and no answer of anybody's
            self._broken = task.exception()

    def close(self) -> None:
        """Ends the connections."""
        self._clients.close()

    async def _ask(self) -> None:
        rng = self._rng
        num_tokens = rng.randint(MIN_TOKENS, MAX_TOKENS)
        cut_after = rng.randint(2, num_tokens - 4) if rng.random() < LEAVE_SHARE else None
        question = " ".join(rng.choices(WORDS, k=rng.randint(8, 40)))
        wire = chat(
            self.host,
            rng.choice(self.keys),
            messages=[{"role": "user", "content": question}],
            max_tokens=num_tokens,
        )
        began_s, seen, why = time.monotonic(), Seen(), ""
        self.num_running += 1
        try:
            seen = await self._clients.ask(self.host, wire, cut_after=cut_after, limit_s=LIMIT_S)
        except TimeoutError:
            why = f"no end within {LIMIT_S:.0f} s"
        except OSError as error:
            why = f"no answer: {error}"
        finally:
            self.num_running -= 1
        if not why and seen.status != 200:
            why = f"{seen.status} {seen.error}".strip() if seen.status else "no head of an answer"
        elif not why and not seen.is_done and not (cut_after is not None and seen.num_tokens >= cut_after):
            why = f"broke off{f' ({seen.error})' if seen.error else ''}"
        self.asked.append(Asked(began_s, time.monotonic(), seen, cut_after is not None, why))
