"""How long first tokens take at a given load of an engine, by bucket of uncached prompt tokens: taken from runs event by event.

What a closed form gets wrong is the spread: a short prompt is late because a long one is in the step before it. So a small
fleet is run request by request at a dozen loads, once, and the fluid simulation looks its first tokens up in what came of it.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from policies.autoscaling.events import Arrival, first_tokens
from policies.capacity.operating_point import BLOCK_TOKENS, work_s
from policies.capacity.step_law import Profile
from policies.capacity.traffic import Length, bucket_of, mix_of

BATCH_SHARES = (0.002, 0.02, 0.05, 0.09, 0.125, 0.19, 0.25, 0.31, 0.375, 0.5, 0.65, 0.8, 1.0)
"""Loads that are run, as shares of the fullest batch."""
NUM_ENGINES, WARM_UP_S, DURATION_S = 16, 30.0, 100.0
POINTS = 25
"""Quantiles that are kept of each distribution."""


@dataclass(frozen=True)
class Spread:
    """First tokens at one load."""

    by_bucket: Mapping[int, tuple[float, ...]]
    """Bucket → sorted times, every one that was seen."""
    reachable: tuple[float, ...]
    """Sorted times of those requests that an idle engine would serve within the promise."""

    @cached_property
    def mean_s(self) -> float:
        """Over all."""
        times = self._all
        return sum(times) / len(times) if times else 0.0

    @cached_property
    def p50_s(self) -> float:
        """Over all."""
        return _at(self._all, 0.5)

    @cached_property
    def p99_s(self) -> float:
        """Over all."""
        return _at(self._all, 0.99)

    def in_time_ratio(self, limit_s: float) -> float:
        """Of the reachable ones, within `limit_s`; 1 where there are none."""
        return bisect_right(self.reachable, limit_s) / len(self.reachable) if self.reachable else 1.0

    def points(self) -> Iterator[tuple[int, float, float]]:
        """Bucket, time and weight; weights add up to 1."""
        total = sum(len(times) for times in self.by_bucket.values())
        for bucket, times in self.by_bucket.items():
            number = min(POINTS, len(times))
            for index in range(number):
                yield bucket, _at(times, (index + 0.5) / number), len(times) / total / number

    @cached_property
    def _all(self) -> tuple[float, ...]:
        return tuple(sorted(time for times in self.by_bucket.values() for time in times))


@dataclass(frozen=True)
class FirstTokens:
    """What was found at each load, in order of the batch."""

    batches: tuple[float, ...]
    spreads: tuple[Spread, ...]
    reachable_ratio: float
    """Share of requests that an idle engine would serve within the promise: no fleet is large enough for the rest."""

    def around(self, batch: float) -> tuple[tuple[int, float], tuple[int, float]]:
        """The two loads next to `batch`, with their weights; beyond the last one it is the last."""
        above = min(max(bisect_left(self.batches, batch), 1), len(self.batches) - 1)
        low, high = self.batches[above - 1], self.batches[above]
        weight = min(max((batch - low) / (high - low), 0.0), 1.0)
        return (above - 1, 1 - weight), (above, weight)


def largest_batch(profile: Profile, lengths: Sequence[Length], max_batch: int) -> float:
    """Sequences that an engine runs at once: `max_batch`, or what its KV cache has blocks for, whole lives of mean requests."""
    mix = mix_of(lengths)
    return min(float(max_batch), profile.num_blocks * BLOCK_TOKENS / (mix.input_tokens + mix.output_tokens))


@lru_cache(maxsize=32)
def measured(
    profile: Profile, lengths: tuple[Length, ...], cached_ratio: float, max_batch: int, ttft_slo_s: float, seed: int = 1
) -> FirstTokens:
    """The table of an engine under requests of such lengths. Takes a second or two; the same every time."""
    fullest = largest_batch(profile, lengths, max_batch)
    batches = tuple(max(0.25, share * fullest) for share in BATCH_SHARES)
    mix, law = mix_of(lengths, cached_ratio), profile.law
    work = work_s(profile, mix)
    found = []
    for batch in batches:
        step_s = law.base_s + batch * work / mix.output_tokens
        req_per_s = batch / (mix.output_tokens * step_s) * NUM_ENGINES
        found.append(_spread(profile, lengths, cached_ratio, max_batch, req_per_s, ttft_slo_s, seed))
    reachable = sum(is_reachable(profile, item.input_tokens * (1 - cached_ratio), ttft_slo_s) for item in lengths) / len(lengths)
    return FirstTokens(batches, tuple(found), reachable)


def poisson(
    req_per_s: float, duration_s: float, lengths: Sequence[Length], cached_ratio: float, rng: random.Random
) -> Iterator[Arrival]:
    """Requests that know nothing of each other."""
    now_s = rng.expovariate(req_per_s)
    while now_s < duration_s:
        length = rng.choice(lengths)
        yield Arrival(now_s, round(length.input_tokens * (1 - cached_ratio)), *length)
        now_s += rng.expovariate(req_per_s)


def _spread(
    profile: Profile,
    lengths: Sequence[Length],
    cached_ratio: float,
    max_batch: int,
    req_per_s: float,
    ttft_slo_s: float,
    seed: int,
) -> Spread:
    rng = random.Random(seed)  # noqa: S311 (a load, no secret)
    # Few requests a second need a longer look, or a bucket has no sample at all.
    duration_s = max(DURATION_S, 2000 / req_per_s)
    arrivals = poisson(req_per_s, duration_s, lengths, cached_ratio, rng)
    by_bucket: dict[int, list[float]] = {}
    reachable: list[float] = []
    for token in first_tokens(profile, max_batch, NUM_ENGINES, arrivals):
        if token.arrival.at_s < WARM_UP_S:
            continue
        by_bucket.setdefault(bucket_of(token.arrival.uncached_tokens), []).append(token.ttft_s)
        if is_reachable(profile, token.arrival.uncached_tokens, ttft_slo_s):
            reachable.append(token.ttft_s)
    return Spread({bucket: tuple(sorted(times)) for bucket, times in sorted(by_bucket.items())}, tuple(sorted(reachable)))


def is_reachable(profile: Profile, uncached_tokens: float, ttft_slo_s: float) -> bool:
    """Whether an idle engine gives the first token of such a prompt within `ttft_slo_s`."""
    return profile.law.base_s + uncached_tokens * profile.law.prefill_s_per_token <= ttft_slo_s


def _at(times: Sequence[float], share: float) -> float:
    return times[min(int(share * len(times)), len(times) - 1)] if times else 0.0
