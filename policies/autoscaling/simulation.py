"""A day of one model class in seconds: a fluid model of its engines under a load, with the deployed pace and a real cold start.

Each second, requests arrive, engines take what their batches hold, and finish what an engine at that batch finishes
(`policies.capacity.operating_point`: a step lasts `base + B · g / O`). A first token waits for those before it, for half a step,
for its own step, and for its prompt. New engines serve after their cold start and are paid for from the beginning; removed ones
go at once. Requests whose first token would come later than `Limits.shed_after_s` are refused, and counted.

Fluid means that requests are a real number, spread evenly over engines, all of the mean length: what it cannot show is bad luck
among few engines. So compare rules by it, and take its absolute numbers for what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.autoscaling.pace import Pace, Pacer
from policies.autoscaling.rules import Observed, Rule, Targets
from policies.capacity.operating_point import Mix, ttft_s, work_s
from policies.capacity.step_law import Profile

SYNC_S = 15
"""How often the autoscaler looks (Kubernetes' default, and KEDA's for its metrics is not longer in our objects)."""


@dataclass(frozen=True)
class EngineModel:
    """One engine of the class."""

    profile: Profile
    mix: Mix
    max_batch: int
    cold_start_s: float
    gpus: int
    usd_per_h: float


@dataclass(frozen=True)
class Limits:
    """Bounds and promises of the class."""

    minimum: int
    maximum: int
    ttft_slo_s: float = 0.2
    shed_after_s: float = 10.0


@dataclass(frozen=True)
class Outcome:
    """What came of a rule."""

    rule: str
    num_requests: float
    slo_ratio: float
    """Of all requests, shed ones included: first token within the promise."""
    shed_ratio: float
    ttft_p50_s: float
    ttft_p99_s: float
    max_waiting: float
    utilization_ratio: float
    """Useful-token utilization of what was paid for."""
    gpu_hours: float
    usd: float
    num_changes: int
    engines: tuple[int, ...]
    """Ready and starting, at the end of each minute."""


def simulate(
    name: str,
    rule: Rule,
    arrivals_per_s: Sequence[float],
    engine: EngineModel,
    limits: Limits,
    targets: Targets,
    pace: Pace | None = None,
    silent: range = range(0),
) -> Outcome:
    """Runs `rule` over a load of one number a second. In `silent` seconds the metrics give no answer, and nothing may change."""
    pacer = Pacer(pace or Pace(), limits.minimum, limits.maximum)
    work, law, mix = work_s(engine.profile, engine.mix), engine.profile.law, engine.mix
    ready, starting = limits.minimum, list[float]()
    running = waiting = useful_s = paid_s = shed = max_waiting = 0.0
    waits: list[tuple[float, float]] = []
    sizes: list[int] = []
    changes = 0
    for second, arriving in enumerate(arrivals_per_s):
        ready += sum(at_s <= second for at_s in starting)
        starting = [at_s for at_s in starting if at_s > second]
        room = ready * engine.max_batch - running
        batch = max(running / ready, 1e-9)
        rate = ready * batch / (mix.output_tokens * law.base_s + batch * work)
        step_s = law.base_s + batch * work / mix.output_tokens
        ttft = ttft_s(engine.profile, step_s, mix.uncached_tokens) + max(0.0, waiting - room) / max(rate, 1e-9)
        refused = arriving if ttft > limits.shed_after_s else 0.0
        shed += refused
        waiting += arriving - refused
        taken = min(waiting, max(0.0, room))
        waiting -= taken
        finished = min(running, rate)
        running += taken - finished
        useful_s += finished * work
        paid_s += ready + len(starting)
        waits.append((ttft, arriving - refused))
        max_waiting = max(max_waiting, waiting)
        if second % SYNC_S == 0:
            current = ready + len(starting)
            observed = Observed(ready, running, waiting, ttft)
            size = pacer.size(None if second in silent else rule(observed, current, targets), current, float(second))
            changes += size != current
            if size > current:
                starting += [second + engine.cold_start_s] * (size - current)
            for _ in range(current - size):
                if starting:
                    starting.pop()
                else:
                    ready -= 1
        if second % 60 == 59:
            sizes.append(ready + len(starting))
    total = sum(arrivals_per_s)
    served = total - shed
    good = sum(number for wait_s, number in waits if wait_s <= limits.ttft_slo_s)
    return Outcome(
        rule=name,
        num_requests=total,
        slo_ratio=good / total if total else 1.0,
        shed_ratio=shed / total if total else 0.0,
        ttft_p50_s=_quantile(waits, 0.5, served),
        ttft_p99_s=_quantile(waits, 0.99, served),
        max_waiting=max_waiting,
        utilization_ratio=useful_s / paid_s if paid_s else 0.0,
        gpu_hours=paid_s * engine.gpus / 3600,
        usd=paid_s * engine.usd_per_h / 3600,
        num_changes=changes,
        engines=tuple(sizes),
    )


def _quantile(waits: list[tuple[float, float]], share: float, total: float) -> float:
    """The wait that `share` of all requests did not exceed; 0 where there were none."""
    left = share * total
    if left <= 0:
        return 0.0
    for wait_s, number in sorted(waits):
        left -= number
        if left <= 0:
            return wait_s
    return 0.0
