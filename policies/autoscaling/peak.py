"""Whether a class keeps all its promises at once at the peak of its day: engines well used, first tokens in time, nobody shed.

One number hides the others: engines at 95 % are cheap and late, at 30 % quick and dear. So they are asserted together, for the
hour around the busiest minute. Where a bucket of prompts is late, the bound says whether anything could be done about it: an idle
engine needs `base + uncached tokens × prefill`, and no number of engines makes that shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from policies.autoscaling.fleet import Scaler
from policies.autoscaling.outcome import Outcome
from policies.autoscaling.scenario import Bounds, EngineModel, Load
from policies.autoscaling.simulation import simulate
from policies.capacity.step_law import Profile
from policies.capacity.traffic import bucket_of

MIN_UTILIZATION_RATIO = 0.7
MAX_SHED_RATIO = 0.001


class Holds(StrEnum):
    """Whether a bucket's P50 is within the promise."""

    YES = "holds"
    NO = "does not hold"
    BEYOND = "cannot hold"
    """An idle engine is later than the promise already."""


@dataclass(frozen=True)
class BucketAtPeak:
    """First tokens of one bucket."""

    bucket: int
    share_ratio: float
    """Of the class's requests."""
    p50_s: float
    bound_s: float
    """What an idle engine takes for the bucket's median prompt."""
    holds: Holds


@dataclass(frozen=True)
class Peak:
    """A class at its peak."""

    name: str
    req_per_s: float
    engines: int
    utilization_ratio: float
    ttft_p50_s: float
    """Over all."""
    ttft_limit_s: float
    shed_ratio: float
    buckets: tuple[BucketAtPeak, ...]

    @property
    def holds(self) -> bool:
        """All at once: utilization, P50 over all and of each bucket that physics allows, and nobody shed."""
        return (
            self.utilization_ratio >= MIN_UTILIZATION_RATIO
            and self.ttft_p50_s < self.ttft_limit_s
            and self.shed_ratio <= MAX_SHED_RATIO
            and all(item.holds is not Holds.NO for item in self.buckets)
        )


def at_peak(name: str, scaler: Scaler, load: Load, engine: EngineModel, bounds: Bounds) -> Peak:
    """The hour around the busiest minute of a load, which has at least that."""
    hour = busiest_hour(load.arrivals_per_s)
    outcome = simulate(name, scaler, load, engine, bounds, measured_s=hour)
    return Peak(
        name=name,
        req_per_s=outcome.num_requests / len(hour),
        engines=max(outcome.engines),
        utilization_ratio=outcome.utilization_ratio,
        ttft_p50_s=outcome.ttft_p50_s,
        ttft_limit_s=bounds.ttft_slo_s,
        shed_ratio=outcome.shed_ratio,
        buckets=_buckets(outcome, load, engine.profile, bounds.ttft_slo_s),
    )


def busiest_hour(arrivals_per_s: Sequence[float], seconds: int = 3600) -> range:
    """The hour around the busiest minute; all there is, where that is less."""
    seconds = min(seconds, len(arrivals_per_s))
    minutes = range(0, len(arrivals_per_s), 60)
    busiest = max(minutes, key=lambda begin: sum(arrivals_per_s[begin : begin + 60]), default=0)
    begin = max(0, min(busiest - seconds // 2, len(arrivals_per_s) - seconds))
    return range(begin, begin + seconds)


def _buckets(outcome: Outcome, load: Load, profile: Profile, limit_s: float) -> tuple[BucketAtPeak, ...]:
    found = []
    for bucket, times in outcome.buckets.items():
        prompts = sorted(
            tokens for item in load.lengths if bucket_of(tokens := item.input_tokens * (1 - load.cached_ratio)) == bucket
        )
        median = prompts[len(prompts) // 2]
        bound_s = profile.law.base_s + median * profile.law.prefill_s_per_token
        holds = Holds.YES if times.p50_s < limit_s else Holds.BEYOND if bound_s >= limit_s else Holds.NO
        share = times.num_requests / outcome.num_requests
        found.append(BucketAtPeak(bucket, share, times.p50_s, bound_s, holds))
    return tuple(found)
