"""Drills within a region: two regions of twins under load, one harm to one of them, and what clients saw of it.

Every scene has the same order: prepare; a load through the edge; the harm; what is done about it, if anything; the harm's end;
some seconds more; then every bill is held against what clients and twins saw. What differs is a scene's own: what it harms, for
how long, and what must hold. Nothing asks a gateway for the truth.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from infra.drills.bills import bills, held
from infra.drills.figures import Part
from infra.drills.judge import Verdict
from infra.drills.live import LiveView
from infra.drills.load import Asked, Load
from infra.drills.region_loss import MIN_SERVED, time_until
from infra.drills.session import Session, on_uvloop, since
from infra.drills.timeline import Mark
from infra.drills.two_regions import REGIONS, TwoRegions
from serving.metering.rows import LedgerRow

BEFORE_S, AFTER_S = 15.0, 10.0
GRACE_S = 10.0
"""What begins later than that after the harm is held to `MIN_SERVED`."""


@dataclass(frozen=True)
class Size:
    """How long and how hard."""

    seconds: float = 1.0
    """Times the usual lengths."""
    per_s: float = 25.0
    seed: int = 1


@dataclass
class Play:
    """A scene as it is played. Times are on the monotonic clock."""

    regions: TwoRegions
    size: Size
    view: LiveView
    harmed: str = REGIONS[0]
    """The region: the home region, the harder one to harm."""
    other: str = REGIONS[1]
    harmed_s: float = 0.0
    mended_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    others: list[Asked] = field(default_factory=list)
    """What a scene asked beside the load; its bills are held too."""
    rows: list[LedgerRow] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def mark(self, what: str) -> None:
        """Something was done."""
        self.marks.append((time.monotonic(), what))
        self.view.say(what)

    def begun(self) -> list[tuple[float, bool]]:
        """When each request of the load began, from the harm, and whether it was served."""
        return [(one.began_s - self.harmed_s, one.is_served) for one in self.asked]

    def timeline(self) -> list[Mark]:
        """What was done, from the harm."""
        return since(self.harmed_s, self.marks)

    def region_of(self) -> dict[str, str]:
        """By request, the region that billed it."""
        return {row.request_id: row.region for row in self.rows if row.request_id}


class Scene:
    """One kind of loss. A scene does nothing but what it overrides."""

    name: str
    heading: str
    title: str
    max_until_s: float
    """By then after the harm, `MIN_SERVED` of new requests are served."""

    async def prepare(self, play: Play) -> None:
        """Before the load."""

    async def under_load(self, play: Play) -> None:
        """Once the load runs, before the harm."""

    async def harm(self, play: Play) -> None:
        """Does the harm, and whatever is done about it; returns when it is over and mended."""
        raise NotImplementedError

    def parts(self, play: Play) -> list[Part]:
        """What must hold of this scene alone."""
        raise NotImplementedError

    async def close(self, play: Play) -> None:
        """Ends what it began, however the scene went."""


def play_scene(scene: Scene, regions: TwoRegions, size: Size, view: LiveView) -> Play:
    """Plays it on regions that are up.

    Raises:
        UserError: a step of it could not be done.
    """
    play = Play(regions, size, view)
    on_uvloop(lambda: _play(scene, play))
    return play


async def _play(scene: Scene, play: Play) -> None:
    size, regions = play.size, play.regions
    await scene.prepare(play)
    load = Load(*regions.edge, [regions.target.api_key], size.seed)
    async with Session(regions, play.view).load(load) as following:
        stop = asyncio.Event()
        play.mark(f"load: {size.per_s:.0f} requests/s")
        asking = asyncio.create_task(load.run(size.per_s, stop))
        try:
            await scene.under_load(play)
            await asyncio.sleep(BEFORE_S * size.seconds)
            play.harmed_s = time.monotonic()
            await scene.harm(play)
            play.mended_s = time.monotonic()
            await asyncio.sleep(AFTER_S * size.seconds)
            for task in (following, asking):
                if task.done():
                    task.result()  # what was asked, or what twins told, is not all of it: no figure would be true
        finally:
            stop.set()
            await asyncio.gather(asking, scene.close(play), return_exceptions=True)
    play.asked = load.asked
    play.view.say("every bill is held against what clients and twins saw")
    play.rows, play.verdict = await held(regions, play.other, [*play.asked, *play.others])


def judged(scene: Scene, play: Play) -> list[Part]:
    """The figures, and whether each holds."""
    return [_requests(scene, play), *scene.parts(play), bills(play.rows, play.verdict)]


def _requests(scene: Scene, play: Play) -> Part:
    part, begun = Part("requests"), play.begun()
    part.show("asked, requests/s", "load_per_s", play.size.per_s)
    part.show("begun in all", "num_requests", len(begun))
    part.show("served before the harm", "served_before_ratio", share(begun, -1e9, 0.0))
    part.show(f"served of those begun in the first {GRACE_S:.0f} s", "served_within_10_s_ratio", share(begun, 0.0, GRACE_S))
    later = share(begun, GRACE_S, 1e9)
    part.show("served of those begun later (≥ 99.9 %)", "served_later_ratio", later, later >= MIN_SERVED)
    until = time_until(begun, MIN_SERVED)
    what = f"RTO: until ≥ 99.9 % of new requests are served, s (≤ {scene.max_until_s:.0f})"
    part.show(what, "rto_s", until, until <= scene.max_until_s)
    lost = [one for one in play.asked if not one.is_served]
    part.show("requests lost", "num_requests_lost", len(lost))
    part.show("  why", "lost_why", dict(Counter(one.why for one in lost).most_common(5)))
    served = {one.seen.request_id for one in play.asked if one.is_served}
    missing = len(served - {row.request_id for row in play.rows} - {""})
    part.show("RPO: served, and in no bill (0)", "num_rpo_requests", missing, missing == 0)
    return part


def share(begun: Sequence[tuple[float, bool]], from_s: float, to_s: float) -> float:
    """Served of those begun in [from_s, to_s) from the harm; 1 where there were none."""
    some = [is_served for at_s, is_served in begun if from_s <= at_s < to_s]
    return round(sum(some) / len(some), 5) if some else 1.0


def took_p95_s(asked: Sequence[Asked], from_s: float, to_s: float) -> float:
    """95th percentile of how long whole answers took that were begun in [from_s, to_s) of the monotonic clock; 0 for none."""
    took = sorted(one.ended_s - one.began_s for one in asked if one.seen.is_done and from_s <= one.began_s < to_s)
    return round(took[min(len(took) - 1, int(0.95 * len(took)))], 3) if took else 0.0
