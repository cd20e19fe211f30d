"""`flotilla drill az-loss`: a third of one region's replicas, gateways and engines, are killed at once and stay away.

On one machine a zone is no more than that: a third of the replicas that the region's own spreading rules put there. No network
is cut and no node is lost, and a gateway's journal is on its volume when it comes back, as EBS's is when a zone does. What AWS
adds is drilled by its FIS template of the same name (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from infra.drills import harms
from infra.drills.figures import Part
from infra.drills.scene import Play, Scene
from infra.drills.two_regions import wait
from infra.embedded import lifecycle
from infra.embedded import state as files
from infra.embedded.desired import PodStatus, Workload

REPLICAS = 3
AWAY_S = 20.0
UP_LIMIT_S, BACK_LIMIT_S = 90.0, 120.0
MAX_UNTIL_S = 5.0
"""Health checks of load balancers take an instance out in that time; here connections are refused at once."""


class ZoneLoss(Scene):
    """Three gateways and three engines stand in one region; one of each goes."""

    name = "az-loss"
    heading = "a third of a region is lost"
    title = "az-loss: a third of us-east-2's gateways and engines is killed at once, under load"
    max_until_s = MAX_UNTIL_S

    def __init__(self) -> None:
        self._num_killed = 0
        self._back_after_s = 0.0

    async def prepare(self, play: Play) -> None:
        await asyncio.to_thread(_grow, play)
        play.view.say(f"{play.harmed} has {REPLICAS} gateways and {REPLICAS} engines")

    async def harm(self, play: Play) -> None:
        names = {harms.pods_of(play.regions, play.harmed, workload)[-1].name for workload in (harms.GATEWAYS, harms.ENGINES)}
        self._num_killed = len(names)

        def zone() -> list[PodStatus]:
            both = (harms.GATEWAYS, harms.ENGINES)
            return [pod for workload in both for pod in harms.pods_of(play.regions, play.harmed, workload) if pod.name in names]

        play.mark(f"{', '.join(sorted(names))} are killed")
        await harms.keep_down(zone, AWAY_S * play.size.seconds)
        play.mark("the zone is back")
        began_s = time.monotonic()

        def are_back() -> bool:
            both = (harms.GATEWAYS, harms.ENGINES)
            return all(harms.are_ready(play.regions, play.harmed, workload, REPLICAS) for workload in both)

        await asyncio.to_thread(wait, are_back, BACK_LIMIT_S, "what was killed starts again")
        self._back_after_s = time.monotonic() - began_s
        play.mark("all replicas are ready")

    def parts(self, play: Play) -> list[Part]:
        part = Part("zone")
        part.show(f"replicas killed, of {2 * REPLICAS}", "num_killed", self._num_killed, self._num_killed == 2)
        part.show("ready again, s after the zone is back", "zone_back_s", round(self._back_after_s, 1))
        region_of = play.region_of()
        away = [one for one in play.asked if 0.0 <= one.began_s - play.harmed_s < AWAY_S * play.size.seconds]
        num = sum(region_of.get(one.seen.request_id) == play.harmed and one.is_served for one in away)
        part.show("served meanwhile by what was left of the region (> 0)", "num_served_by_rest", num, num > 0)
        return [part]


def _grow(play: Play) -> None:
    """The harmed region gets `REPLICAS` of what it has one of, and has them ready."""
    state = play.regions.state
    with files.exclusively(state):
        desired = state.desired()
        workloads = tuple(_grown(each) if _is_spread(each, play.harmed) else each for each in desired.workloads)
        lifecycle.hand_over(state, msgspec.structs.replace(desired, workloads=workloads))
        keys = {each.key for each in workloads if _is_spread(each, play.harmed)}
        lifecycle.wait_for(state, keys, time.monotonic() + UP_LIMIT_S)
    both = (harms.GATEWAYS, harms.ENGINES)
    wait(
        lambda: all(harms.are_ready(play.regions, play.harmed, workload, REPLICAS) for workload in both),
        UP_LIMIT_S,
        f"{play.harmed} has {REPLICAS} gateways and engines",
    )


def _is_spread(workload: Workload, region: str) -> bool:
    return workload.region == region and workload.name in (harms.GATEWAYS, harms.ENGINES)


def _grown(workload: Workload) -> Workload:
    scaling = workload.scaling and msgspec.structs.replace(workload.scaling, minimum=REPLICAS, maximum=REPLICAS)
    return msgspec.structs.replace(workload, replicas=REPLICAS, scaling=scaling)
