"""How many engines a model class should have now. Pure: what was seen, what was decided before, and the time are arguments.

    need    = the largest of what each signal asks for: requests in flight, KV memory, tokens a second, P99 of first tokens,
              the share of them in time, and requests in flight a cold start from now
    grow    to the need of a minute, two engines a minute; and at once to two thirds of what a quarter of that minute asks for,
              by at most doubling (a panic)
    shrink  to what nothing in a quarter of an hour has needed, with a tenth to spare, one engine every five minutes

Every step is a maximum, a minimum or a mean, so more load never gives fewer engines. After it grew by need, a class does not
shrink for `down_window_s`: that bounds flapping. And a doubt never shrinks: old or missing samples, too few engines heard,
engines that were there and are not (a spot node went: what is left holds only the requests that still fit), a history with a gap.

    32 in flight an engine, 10 engines, 500 requests for a minute: need 15.6;  panic 15.6 / 1.5 = 10.4;  10 + 2 -> 12
    the same with 1,300: need 40.6;  panic 40.6 / 1.5 = 27, at most 2 × 10 -> 20 at once
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from policies.autoscaling.policy import Limits, ScalingPolicy

PERIOD_SLACK_RATIO = 0.04
"""Looks come at a beat, and a little off it: a period of four of them would be five whenever the fourth comes early."""


@dataclass(frozen=True)
class Sample:
    """A class at one moment, over all its engines. None is a signal that nobody could read."""

    at_s: float
    ready: int
    """Engines that serve."""
    heard: int
    """Those whose own numbers are in the sums below."""
    running: float
    """Requests in their batches."""
    waiting: float
    """Requests that they hold beyond, and those that wait for one of them in gateways: the queue."""
    kv_ratio: float | None = None
    """Mean share of their KV memory in use."""
    tokens_per_s: float | None = None
    """Computed by all of them, prompts and answers."""
    ttft_p99_s: float | None = None
    slo_ratio: float | None = None
    """Of requests, refused ones included: first token within `ttft_promise_s`."""


@dataclass(frozen=True)
class Size:
    """A number of engines that was decided, or was found."""

    at_s: float
    replicas: int


@dataclass(frozen=True)
class Need:
    """What was needed: the largest need of all signals, a real number of engines."""

    at_s: float
    replicas: float
    floor: int = 0
    """That was to be kept then: what was grown for it does not go the moment that it is lowered."""


@dataclass(frozen=True)
class Observed:
    """All that a decision looks at, each list from the oldest to the newest and over at least `policy.horizon_s`."""

    samples: Sequence[Sample]
    sizes: Sequence[Size]
    """Changes of size; the last is the size now. Empty where nobody remembers one."""
    needs: Sequence[Need]
    """Of earlier decisions."""


class Signal(StrEnum):
    """What asks for engines."""

    IN_FLIGHT = "in_flight"
    KV = "kv"
    TOKENS = "tokens"
    TTFT_P99 = "ttft_p99"
    PROMISE = "promise"
    FORECAST = "forecast"


class Data(StrEnum):
    """How far the samples may be believed."""

    FRESH = "fresh"
    PARTIAL = "partial"
    SILENT = "silent"


class Reason(StrEnum):
    """Why a size is what it is."""

    SILENT = "silent"
    """No sample is fresh: the size stays, and nothing is exported."""
    LEARNING = "learning"
    """Nobody remembers a size, and engines may be starting: nothing is exported yet."""
    NEED = "need"
    PANIC = "panic"
    PACE = "pace"
    """More is needed than may be added now."""
    FLOOR = "floor"
    CEILING = "ceiling"
    ENOUGH = "enough"
    SURPLUS = "surplus"
    """Fewer would do, and one goes."""
    COOLING = "cooling"
    """Fewer would do now, but not long enough, or one has just gone."""
    PARTIAL = "partial"
    """Fewer would do by what was heard, and too few were heard."""
    LOST = "lost"
    """Fewer would do, but engines have been lost: their requests may be gone with them."""
    PROMISE = "promise"
    """Fewer would do, but first tokens are late."""


@dataclass(frozen=True)
class ScaleDecision:
    """A size, why, and the numbers behind it, where nothing changes too."""

    replicas: int
    before: int
    reason: Reason
    data: Data
    need: float = 0.0
    """The largest of `needs`; 0 where nothing is known."""
    needs: Mapping[Signal, float] = field(default_factory=dict)
    base: int = 0
    overflow: int = 0

    @property
    def is_known(self) -> bool:
        """Whether it may be told to others. One that is not must not be exported: its absence is what they fall back on."""
        return self.reason not in (Reason.SILENT, Reason.LEARNING)

    @property
    def strongest(self) -> Signal | None:
        """The signal that asks for most."""
        return max(self.needs, key=lambda signal: self.needs[signal]) if self.needs else None

    def text(self) -> str:
        """One line for people: `12 from 10 (pace): in_flight needs 15.6`."""
        what = f"{self.replicas}" if self.replicas == self.before else f"{self.replicas} from {self.before}"
        return f"{what} ({self.reason}){f': {self.strongest} needs {self.need:.1f}' if self.strongest else ''}"


def decide_replicas(observed: Observed, policy: ScalingPolicy, limits: Limits, now_s: float) -> ScaleDecision:
    """The size that the class should have now. Times of `observed` and `now_s` are of one clock."""
    samples = _since(observed.samples, now_s - policy.horizon_s)
    newest = samples[-1] if samples else None
    current = _current(observed, samples, policy, now_s)
    if newest is None or now_s - newest.at_s > policy.stale_after_s or (newest.ready and not newest.heard):
        return _decision(current if current is not None else limits.floor, current, limits, Reason.SILENT, Data.SILENT, {})
    if current is None:
        return _decision(newest.ready, None, limits, Reason.LEARNING, Data.FRESH, {})
    # Where none is ready nobody can say what is needed: requests are refused, and no queue grows.
    data = Data.FRESH if newest.ready and newest.heard >= policy.min_heard_ratio * newest.ready else Data.PARTIAL
    needs = _needs(samples, policy, now_s)
    need = max(needs.values())
    sizes = observed.sizes or [Size(samples[0].at_s, current)]

    wanted = max(_grown(samples, sizes, need, policy, now_s), current)
    if wanted > current:
        is_panic = wanted > _least(sizes, policy.up_period_s, now_s) + policy.step_up
        reason = Reason.PANIC if is_panic else Reason.NEED if wanted >= math.ceil(need) else Reason.PACE
        return _decision(wanted, current, limits, reason, data, needs)
    if math.ceil(need) > current:
        return _decision(current, current, limits, Reason.PACE, data, needs)
    smaller, reason = _shrunk(observed, samples, sizes, need, data, policy, limits, now_s)
    return _decision(smaller, current, limits, reason, data, needs)


def _current(observed: Observed, samples: Sequence[Sample], policy: ScalingPolicy, now_s: float) -> int | None:
    """The size now. Where nobody remembers it, it is what was ready, once whatever may have been starting is ready too."""
    if observed.sizes:
        return observed.sizes[-1].replicas
    if samples and now_s - samples[0].at_s >= policy.lead_time_s:
        return max(sample.ready for sample in samples)
    return None


def _decision(
    wanted: int, current: int | None, limits: Limits, reason: Reason, data: Data, needs: Mapping[Signal, float]
) -> ScaleDecision:
    """`wanted` within its bounds. Floors are kept whatever is known."""
    replicas = min(max(wanted, limits.floor), limits.maximum)
    if replicas != wanted and reason not in (Reason.SILENT, Reason.LEARNING):
        reason = Reason.FLOOR if replicas > wanted else Reason.CEILING
    base, overflow = limits.placed(replicas)
    before = wanted if current is None else current
    return ScaleDecision(replicas, before, reason, data, max(needs.values(), default=0.0), needs, base, overflow)


def _needs(samples: Sequence[Sample], policy: ScalingPolicy, now_s: float) -> dict[Signal, float]:
    """What each signal asks for, a mean over the stable window."""
    window = _since(samples, now_s - policy.stable_window_s) or samples[-1:]
    needs: dict[Signal, float] = {Signal.IN_FLIGHT: _mean(map(_in_flight, window)) / policy.target_in_flight}
    each: Mapping[Signal, Callable[[Sample], float | None]] = {
        Signal.KV: lambda it: None if it.kv_ratio is None else it.kv_ratio * it.ready / policy.target_kv_ratio,
        Signal.TOKENS: lambda it: (
            None if it.tokens_per_s is None or not policy.target_tokens_per_s else it.tokens_per_s / policy.target_tokens_per_s
        ),
        Signal.TTFT_P99: lambda it: (
            None if it.ttft_p99_s is None else _late(it, it.ttft_p99_s / policy.ttft_p99_target_s, policy)
        ),
        Signal.PROMISE: lambda it: (
            None if it.slo_ratio is None else _late(it, policy.promise_ratio / max(it.slo_ratio, 1e-6), policy)
        ),
    }
    for signal, ask in each.items():
        asked = [value for sample in window if (value := ask(sample)) is not None]
        if asked:
            needs[signal] = _mean(asked)
    if policy.lead_time_s:
        needs[Signal.FORECAST] = _foreseen(samples, policy, now_s) / policy.target_in_flight
    return needs


def _late(sample: Sample, ratio: float, policy: ScalingPolicy) -> float:
    """Engines that lateness asks for: of those that serve, so that it asks for no more while the new ones start. (The system
    design multiplies what it has asked for already, again at every look.)"""
    is_busy = _in_flight(sample) >= policy.busy_ratio * policy.target_in_flight * sample.ready
    return sample.ready * min(ratio, policy.max_growth_ratio) if is_busy and ratio > 1 else 0.0


def _foreseen(samples: Sequence[Sample], policy: ScalingPolicy, now_s: float) -> float:
    """Requests in flight when an engine that is begun now will serve: by the trend between the halves of its window."""
    half_s = policy.trend_window_s / 2
    window = _since(samples, now_s - policy.trend_window_s)
    newer = [_in_flight(sample) for sample in window if sample.at_s > now_s - half_s]
    older = [_in_flight(sample) for sample in window if sample.at_s <= now_s - half_s]
    if not newer or not older:
        return 0.0
    now = _mean(newer)
    slope_per_s = max(0.0, now - _mean(older)) / half_s
    return min(now + slope_per_s * (half_s / 2 + policy.lead_time_s), now * policy.max_growth_ratio)


def _grown(samples: Sequence[Sample], sizes: Sequence[Size], need: float, policy: ScalingPolicy, now_s: float) -> int:
    """What may be had now of what is needed."""
    base = _least(sizes, policy.up_period_s, now_s)
    ordinary = min(math.ceil(need), base + policy.step_up)
    short = _since(samples, now_s - policy.panic_window_s) or samples[-1:]
    panic = _mean(map(_in_flight, short)) / policy.target_in_flight / policy.panic_ratio
    return max(ordinary, min(math.floor(panic), math.floor(base * policy.max_growth_ratio)))


def _shrunk(
    observed: Observed,
    samples: Sequence[Sample],
    sizes: Sequence[Size],
    need: float,
    data: Data,
    policy: ScalingPolicy,
    limits: Limits,
    now_s: float,
) -> tuple[int, Reason]:
    """The size, where no more are needed than there are; smaller where nothing speaks against it."""
    current, newest = sizes[-1].replicas, samples[-1]
    enough = max(_with_margin(need, policy), limits.floor)
    if enough >= current:
        return current, Reason.FLOOR if enough == limits.floor > _with_margin(need, policy) else Reason.ENOUGH
    if data is Data.PARTIAL:
        return current, Reason.PARTIAL
    most_ready = max(sample.ready for sample in _since(samples, now_s - policy.down_window_s) or [newest])
    if min(current, most_ready) > newest.ready:
        return current, Reason.LOST
    is_busy = _in_flight(newest) >= policy.busy_ratio * policy.target_in_flight * newest.ready
    if is_busy and newest.slo_ratio is not None and newest.slo_ratio < policy.promise_ratio:
        return current, Reason.PROMISE
    known = _unbroken(observed.needs, policy.stale_after_s, now_s)
    if not known or known[0].at_s > now_s - policy.down_window_s:
        return current, Reason.COOLING
    recent = [it for it in known if it.at_s >= now_s - policy.down_window_s]
    needed, floor = max((it.replicas for it in recent), default=need), max((it.floor for it in recent), default=0)
    least = _most(sizes, policy.down_period_s, now_s) - policy.step_down
    smaller = max(enough, floor, _with_margin(needed, policy), least)
    return (smaller, Reason.SURPLUS) if smaller < current else (current, Reason.COOLING)


def _unbroken(needs: Sequence[Need], gap_s: float, now_s: float) -> Sequence[Need]:
    """The newest of `needs` between which there is no gap: what happened in one is not known."""
    begin, later_s = len(needs), now_s
    while begin and later_s - needs[begin - 1].at_s <= gap_s:
        begin -= 1
        later_s = needs[begin].at_s
    return needs[begin:]


def _with_margin(need: float, policy: ScalingPolicy) -> int:
    return math.ceil(need * (1 + policy.shrink_margin_ratio))


def _in_flight(sample: Sample) -> float:
    return sample.running + sample.waiting


def _least(sizes: Sequence[Size], period_s: float, now_s: float) -> int:
    return min(_in_force(sizes, now_s - period_s * (1 - PERIOD_SLACK_RATIO)))


def _most(sizes: Sequence[Size], period_s: float, now_s: float) -> int:
    return max(_in_force(sizes, now_s - period_s * (1 - PERIOD_SLACK_RATIO)))


def _in_force(sizes: Sequence[Size], since_s: float) -> list[int]:
    """Sizes that were in force at `since_s` or after it: one that was decided before lasts until the next."""
    newer = next((index for index, size in enumerate(sizes) if size.at_s > since_s), len(sizes))
    return [size.replicas for size in sizes[max(0, newer - 1) :]]


def _since(samples: Sequence[Sample], since_s: float) -> Sequence[Sample]:
    return [sample for sample in samples if sample.at_s >= since_s]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
