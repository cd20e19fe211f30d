"""What a drill does within a region that is up: some of its processes are killed and kept dead, or its engines answer slowly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from urllib.request import Request, urlopen

from infra.drills.two_regions import TwoRegions
from infra.embedded.desired import PodStatus

AGAIN_S = 0.1
TWIN_PORT = 8000
ENGINES, GATEWAYS, CACHE = "engine-small", "gateway", "cache"
"""Workloads of a region, by the ends of their keys."""


def pods_of(regions: TwoRegions, region: str, workload: str) -> list[PodStatus]:
    """The region's pods of a workload, by name."""
    status = regions.state.status()
    found = status.pods if status is not None else ()
    mine = [pod for pod in found if pod.region == region and pod.workload.rpartition(".")[2] == workload]
    return sorted(mine, key=lambda pod: pod.name)


def are_ready(regions: TwoRegions, region: str, workload: str, num: int) -> bool:
    """Whether the workload has `num` pods, all of them ready."""
    found = pods_of(regions, region, workload)
    return len(found) == num and all(pod.ready for pod in found)


def kill(pods: Collection[PodStatus]) -> None:
    """SIGKILL to every container of the pods at once; the node agent ends what they leave behind."""
    for pid in [container.pid for pod in pods for container in pod.containers if container.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def keep_down(find: Callable[[], Collection[PodStatus]], lasts_s: float) -> None:
    """Kills what `find` finds, and again whenever it starts, for `lasts_s`."""
    ends_s = time.monotonic() + lasts_s
    while time.monotonic() < ends_s:
        kill(await asyncio.to_thread(find))
        await asyncio.sleep(AGAIN_S)


def slow_engines(regions: TwoRegions, region: str, s_per_token: float) -> int:
    """Every small engine of the region takes `s_per_token` for each token of what it is asked from now on; 0 ends it. How many
    engines were told."""
    faults = [{"kind": "drip", "delay_s": s_per_token}] if s_per_token else []
    pods = pods_of(regions, region, ENGINES)
    for pod in pods:
        body = json.dumps({"faults": faults}).encode()
        urlopen(Request(f"http://{pod.address}:{TWIN_PORT}/twin/faults", data=body, method="POST"), timeout=10).close()
    return len(pods)
