"""`flotilla drill slow-region`: a region's engines answer ten times slower, and people leave the region by the runbook.

Health checks must not move traffic here: the region answers, all that is asked is served, and what takes regions out by latency
takes out the survivor next, which then has twice the load. So the drill holds that the edge goes on sending to it, that nothing
is lost meanwhile, and that `flotilla failover run` ends it. How long a person takes to notice is on no clock of ours: figures
begin when the command is typed.
"""

from __future__ import annotations

import asyncio
import time

from infra.drills import failover_runs, harms
from infra.drills.figures import Part
from infra.drills.scene import Play, Scene, took_p95_s
from serving.errors import UserError

S_PER_TOKEN = 0.08
"""A twin of an A100 takes some 8 ms."""
SLOW_S, SETTLED_S, LEFT_S = 15.0, 2.0, 10.0
"""Slow before anybody acts; until requests that began before are out of what is compared; watched once it was left."""
KEPT = (0.35, 0.65)
"""Share of two equal regions in a load that nothing moves."""
MAX_SLOWER = 2.0
MAX_LEFT = 0.01


class SlowRegion(Scene):
    """Slows the home region's engines; `failover run`, then mended, then `failback`."""

    name = "slow-region"
    heading = "a region is slow"
    title = "slow-region: us-east-2's engines take ten times as long, and the region is left by the runbook"
    max_until_s = 0.0

    def __init__(self) -> None:
        self._acted_s = self._left_s = self._back_s = 0.0
        self._num_engines = 0
        self._run = self._failback = failover_runs.Ran(0, 0.0, "")

    async def harm(self, play: Play) -> None:
        seconds = play.size.seconds
        self._num_engines = await asyncio.to_thread(harms.slow_engines, play.regions, play.harmed, S_PER_TOKEN)
        play.mark(f"{play.harmed}'s engines are slow")
        await asyncio.sleep(SLOW_S * seconds)
        self._acted_s = time.monotonic()
        play.mark("failover run")
        self._run = await _flotilla(play, "run", play.harmed, "--reason", "drill: slow")
        self._left_s = time.monotonic()
        play.mark("failover over")
        await asyncio.sleep(LEFT_S * seconds)
        await asyncio.to_thread(harms.slow_engines, play.regions, play.harmed, 0.0)
        self._back_s = time.monotonic()
        play.mark("engines are well; failback")
        self._failback = await _flotilla(play, "failback", play.harmed)
        play.mark("failback over")

    async def close(self, play: Play) -> None:
        await asyncio.to_thread(harms.slow_engines, play.regions, play.harmed, 0.0)

    def parts(self, play: Play) -> list[Part]:
        part = Part("slow region")
        part.show("engines slowed (> 0)", "num_engines", self._num_engines, self._num_engines > 0)
        before = took_p95_s(play.asked, -1e9, play.harmed_s)
        slow = took_p95_s(play.asked, play.harmed_s + SETTLED_S, self._acted_s)
        left = took_p95_s(play.asked, self._left_s, self._back_s)
        part.show("answers took before, s, p95", "took_before_p95_s", before)
        part.show("while it was slow (more than twice that: else nothing was shown)", "took_slow_p95_s", slow, slow > 2 * before)
        part.show(f"once it was left (≤ {MAX_SLOWER:.0f} times before)", "took_left_p95_s", left, left <= MAX_SLOWER * before)
        kept = self._share(play, play.harmed_s + SETTLED_S, self._acted_s)
        low, high = KEPT
        what = f"its share while it was slow, and nobody acted ({low} to {high}: health checks do not move traffic)"
        part.show(what, "share_slow_ratio", kept, low <= kept <= high)
        gone = self._share(play, self._left_s, self._back_s)
        part.show(f"its share once it was left (≤ {MAX_LEFT})", "share_left_ratio", gone, gone <= MAX_LEFT)
        part.show("flotilla failover run, s (≤ 60)", "failover_run_s", round(self._run.took_s, 1), self._run.took_s <= 60.0)
        part.show("flotilla failover failback, s", "failback_s", round(self._failback.took_s, 1))
        return [part]

    def _share(self, play: Play, from_s: float, to_s: float) -> float:
        region_of = play.region_of()
        its = [region_of.get(one.seen.request_id, "") for one in play.asked if from_s <= one.began_s < to_s]
        known = [region for region in its if region]
        return round(known.count(play.harmed) / len(known), 3) if known else -1.0


async def _flotilla(play: Play, *arguments: str) -> failover_runs.Ran:
    ran = await failover_runs.run(play.regions, *arguments, on_line=lambda line: play.view.say(f"  {line}"))
    if ran.exit_code:
        raise UserError(f"flotilla failover {' '.join(arguments)} exited with {ran.exit_code}: {ran.last_line}")
    return ran
