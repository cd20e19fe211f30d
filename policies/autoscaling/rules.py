"""Rules that turn what is observed into a wish for a number of engines: what `decide_replicas` is judged by.

`work` is also what the ScaledObjects fall back on when nobody decides.

| rule | wishes for | trouble |
|---|---|---|
| `work` | requests that engines hold, running and waiting, over a target for each | needs a target that fits the promise |
| `system-design` | 1.5 times as many when latency is over 1.5 times its target, 0.8 when it and the queue are low | blind |
| `queue` | waiting requests over a target for each | engines queue only when their batch is full: too late for first tokens |
| `cpu` | CPU over a target share, as a plain HorizontalPodAutoscaler | an engine's CPU says nothing of its GPU |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from policies.autoscaling.pace import wish_for

TARGET_SHARE = 1 / 8
"""Of the requests that an engine takes into one batch: the target where nobody knows how long its steps take."""


@dataclass(frozen=True)
class Observed:
    """A class at one moment, over all its engines."""

    ready: int
    """Engines that serve."""
    running: float
    """Requests in their batches."""
    waiting: float
    """Requests that engines hold beyond."""
    ttft_s: float
    """Mean time to first token now."""
    ttft_p99_s: float = 0.0
    kv_ratio: float = 0.0
    """Of the KV cache in use."""
    req_per_s: float = 0.0
    """Requests that arrive."""
    tokens_per_s: float = 0.0
    """In and out, over all engines."""
    slo_ratio: float = 1.0
    """Of all requests, refused ones included: first token within the promise."""


@dataclass(frozen=True)
class Targets:
    """What the rules aim at."""

    in_flight: float
    """Requests that one engine should hold."""
    ttft_s: float = 0.2
    waiting: float = 5.0
    """Waiting requests for each engine, for the rule `queue`: KEDA's usual example."""
    cpu_ratio: float = 0.7


Rule = Callable[[Observed, int, Targets], int]
"""From what is observed, how many there are, starting ones included, and the targets, to a wish."""

ENGINE_CPU_RATIO = 0.35
"""Of its request. vLLM's process polls its GPU at a nearly constant cost, idle or busy: assumed, to show what the rule sees."""


def work(observed: Observed, current: int, targets: Targets) -> int:
    """All requests that engines hold, over what one should hold: what the deployed ScaledObjects ask Prometheus for."""
    return wish_for(observed.running + observed.waiting, targets.in_flight, current)


def system_design(observed: Observed, current: int, targets: Targets) -> int:
    """The system design's `calculate_replicas`, rounded up, since it multiplies and says nothing of whole engines."""
    if observed.ttft_s > targets.ttft_s * 1.5:
        return math.ceil(current * 1.5)
    if observed.waiting < 10 and observed.ttft_s < targets.ttft_s * 0.5:
        return math.ceil(current * 0.8)
    return current


def queue(observed: Observed, current: int, targets: Targets) -> int:
    """Waiting requests alone."""
    return wish_for(observed.waiting, targets.waiting, current)


def cpu(observed: Observed, current: int, targets: Targets) -> int:
    """CPU alone: it is what it is, so the wish depends on nothing that matters."""
    return wish_for(ENGINE_CPU_RATIO * observed.ready, targets.cpu_ratio, current)


RULES: Mapping[str, Rule] = {"work": work, "system-design": system_design, "queue": queue, "cpu": cpu}
