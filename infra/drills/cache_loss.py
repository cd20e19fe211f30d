"""`flotilla drill cache-loss`: a region's cache is killed, stays away for some seconds, and comes back empty.

The cache holds rates, budgets and the lease of the scaling policy's leader, and nothing that cannot be lost. So no request may be
lost; a limited tenant gets no more than docs/limits.md promises (its rate, once more by the gateways' shares while the cache is
away, once more of a cache that has forgotten); and a budget that is spent stays spent, since it is seeded from the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from urllib.request import urlopen

from infra.components.workloads.gateway_fleet import OPS_PORT
from infra.drills import harms
from infra.drills.figures import Part
from infra.drills.load import Load
from infra.drills.scene import Play, Scene
from infra.drills.two_regions import wait
from infra.embedded.desired import PodStatus
from serving.errors import UserError
from serving.gateway import admin_client
from serving.series import LIMITER_FALLBACKS

AWAY_S, HEALTHY_S = 10.0, 20.0
"""How long the cache is away, and how long it is watched afterwards."""
LIMITED, PAYING = "drill-limited", "drill-paying"
REQUESTS_PER_MIN, LIMITED_PER_S = 60, 6.0
BUDGET_MICRO_USD, PAYING_PER_S = 300, 6.0
MIN_SPENT = 0.8
"""A budget that was not nearly spent would have shown nothing."""
BACK_LIMIT_S, SPENT_LIMIT_S = 30.0, 60.0


class CacheLoss(Scene):
    """Kills the Valkey of one region. Two tenants ask that region itself: one above its rate, one beyond its budget."""

    name = "cache-loss"
    heading = "a region's cache is lost"
    title = "cache-loss: us-east-2's Valkey is killed and comes back empty, under load"
    max_until_s = 0.0

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._asking: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._began_s = self._back_s = self._ended_s = 0.0
        self._fallbacks = 0.0

    async def prepare(self, play: Play) -> None:
        target = play.regions.target
        limits = {LIMITED: {"requests_per_min": REQUESTS_PER_MIN}, PAYING: {"budget_day_micro_usd": BUDGET_MICRO_USD}}
        host, _, port = play.regions.estate.region(play.harmed).url.removeprefix("http://").rpartition(":")
        for tenant, its in limits.items():
            await asyncio.to_thread(admin_client.create_tenant, target, tenant, **its)
            key = await asyncio.to_thread(admin_client.create_key, target, tenant, name="drill")
            self._loads[tenant] = Load(host, int(port), [key], play.size.seed)

    async def under_load(self, play: Play) -> None:
        self._began_s = time.monotonic()
        for tenant, per_s in ((LIMITED, LIMITED_PER_S), (PAYING, PAYING_PER_S)):
            self._asking.append(asyncio.create_task(self._loads[tenant].run(per_s, self._stop)))
        self._fallbacks = await asyncio.to_thread(_fallbacks, play)
        ends_s = time.monotonic() + SPENT_LIMIT_S
        while not any(one.seen.status == 429 for one in self._loads[PAYING].asked):
            if time.monotonic() > ends_s:
                raise UserError(
                    f"{PAYING} has not spent its budget in {SPENT_LIMIT_S:.0f} s",
                    "--keep keeps the folder with logs of every process",
                )
            await asyncio.sleep(0.1)
        play.mark("a tenant's budget is spent")

    async def harm(self, play: Play) -> None:
        play.mark(f"{play.harmed}'s cache is killed")

        def caches() -> list[PodStatus]:
            return harms.pods_of(play.regions, play.harmed, harms.CACHE)

        await harms.keep_down(caches, AWAY_S * play.size.seconds)

        def is_back() -> bool:
            return harms.are_ready(play.regions, play.harmed, harms.CACHE, 1)

        await asyncio.to_thread(wait, is_back, BACK_LIMIT_S, "the cache starts again")
        self._back_s = time.monotonic()
        play.mark("it is back, and empty")
        await asyncio.sleep(HEALTHY_S * play.size.seconds)
        self._fallbacks = await asyncio.to_thread(_fallbacks, play) - self._fallbacks

    async def close(self, play: Play) -> None:
        self._stop.set()
        with contextlib.suppress(Exception):  # the scene's own failure is the one to tell
            await asyncio.gather(*self._asking)
        self._ended_s = time.monotonic()
        for load in self._loads.values():
            load.close()
            play.others += load.asked

    def parts(self, play: Play) -> list[Part]:
        limits, budget = Part("limits"), Part("budget")
        limited = self._loads[LIMITED].asked
        num = sum(one.seen.status == 200 for one in limited)
        most = allowed(REQUESTS_PER_MIN, self._ended_s - self._began_s)
        limits.show("decisions made without the cache (> 0)", "num_fallbacks", int(self._fallbacks), self._fallbacks > 0)
        limits.show("asked by the limited tenant", "num_limited_asked", len(limited))
        limits.show(
            f"let in (≤ {most}, of which its rate alone is {most - 2 * REQUESTS_PER_MIN})", "num_limited_in", num, num <= most
        )
        refused = sum(one.seen.status == 429 for one in limited)
        limits.show("refused with 429 (> 0)", "num_limited_refused", refused, refused > 0)
        other = len(limited) - num - refused
        limits.show("otherwise answered (0)", "num_limited_other", other, other == 0)
        spent = sum(row.cost_pico_usd for row in play.rows if row.tenant == PAYING) / 1e6
        budget.show("budget of a day, micro-dollars", "budget_micro_usd", BUDGET_MICRO_USD)
        budget.show("spent of it: no more than all", "spent_micro_usd", round(spent, 3), spent <= BUDGET_MICRO_USD)
        for when, from_s, to_s in (
            ("before", -1e9, play.harmed_s),
            ("without the cache", play.harmed_s, self._back_s),
            ("after", self._back_s, 1e9),
        ):
            its = round(self._spent(play, from_s, to_s), 3)
            budget.show(f"  by requests begun {when}", f"spent_{when.replace(' ', '_')}_micro_usd", its)
        share = spent / BUDGET_MICRO_USD
        budget.show(
            f"  in parts of 1 (≥ {MIN_SPENT}: else nothing was shown)", "spent_ratio", round(share, 3), share >= MIN_SPENT
        )
        late = sum(one.seen.status == 429 for one in self._loads[PAYING].asked if one.began_s > play.harmed_s)
        budget.show("refused after the cache was lost (> 0)", "num_unpaid_refused", late, late > 0)
        return [limits, budget]

    def _spent(self, play: Play, from_s: float, to_s: float) -> float:
        """Micro-dollars billed to the paying tenant for what was begun in [from_s, to_s)."""
        asked = {one.seen.request_id for one in self._loads[PAYING].asked if from_s <= one.began_s < to_s} - {""}
        return sum(row.cost_pico_usd for row in play.rows if row.request_id in asked) / 1e6


def allowed(per_min: int, lasts_s: float) -> int:
    """Most requests that one region lets in of a limit in `lasts_s`, with one loss of the cache.

    A minute's worth at once, the rate from there on, one limit by gateways' shares, one of the empty cache (docs/limits.md).

    >>> allowed(60, 60.0)
    240
    """
    return int(per_min * (1 + lasts_s / 60.0)) + 2 * per_min


def _fallbacks(play: Play) -> float:
    """The series as the region's gateways tell it."""
    lines: list[str] = []
    for pod in harms.pods_of(play.regions, play.harmed, harms.GATEWAYS):
        with urlopen(f"http://{pod.address}:{OPS_PORT}/metrics", timeout=10) as answer:
            lines += answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(LIMITER_FALLBACKS.name))
