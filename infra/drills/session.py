"""What every drill on two regions does: says what it does, shows its load, and follows what twins know while they live."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from infra.drills import failover_runs
from infra.drills.failover_runs import Ran
from infra.drills.live import LiveView
from infra.drills.load import Load
from infra.drills.timeline import Mark
from infra.drills.two_regions import TwoRegions
from serving.errors import UserError

POLL_TWINS_S = 1.0
T = TypeVar("T")


class Session:
    """One drill's way to its regions and to whoever looks on."""

    def __init__(self, regions: TwoRegions, view: LiveView) -> None:
        self.regions = regions
        self.marks: list[tuple[float, str]] = []
        self._view = view

    def mark(self, what: str) -> None:
        """Something was done: said, and kept for the picture."""
        self.marks.append((time.monotonic(), what))
        self.say(what)

    def say(self, line: str) -> None:
        """For who looks on."""
        self._view.say(line)

    @contextlib.asynccontextmanager
    async def load(self, load: Load) -> AsyncIterator[asyncio.Task[None]]:
        """Shows the load, and asks twins what they know until it is over.

        Raises:
            Exception: what twins told is not all of it, so no figure would be true.
        """
        self._view.load = load
        following = asyncio.create_task(self._follow())
        try:
            yield following
            if following.done():
                following.result()
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            load.close()

    async def flotilla(self, *arguments: str) -> Ran:
        """`flotilla failover …` as a process, to its end.

        Raises:
            UserError: it exited otherwise than 0.
        """
        ran = await failover_runs.run(self.regions, *arguments, on_line=lambda line: self.say(f"  {line}"))
        if ran.exit_code:
            raise UserError(f"flotilla failover {' '.join(arguments)} exited with {ran.exit_code}: {ran.last_line}")
        return ran

    async def _follow(self) -> None:
        while True:
            await asyncio.to_thread(self.regions.poll_twins)
            self._view.tick()
            await asyncio.sleep(POLL_TWINS_S)


def on_uvloop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs what `make` makes; clients cost half there."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(make())


def since(at_s: float, marks: Sequence[tuple[float, str]]) -> list[Mark]:
    """What was done, from `at_s`."""
    return [Mark(when_s - at_s, what) for when_s, what in marks]


def served_ratio(some: Sequence[tuple[float, bool]]) -> float:
    """Of requests as (when begun, whether served): the share that was served; 0 of none."""
    return sum(is_served for _, is_served in some) / len(some) if some else 0.0
