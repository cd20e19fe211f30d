"""What each policy attains for its dollars, whatever it aims at: the comparison that no choice of a target can tilt.

Every contender has one number to tune, so one point says little: whoever aims lower attains more and costs more. So each is run
at many settings. Beside a setting of another, ours is tuned on one half of a load, to cost as much there, and compared on the
other half, which it was not tuned on; and over all settings, ours is held against another where both cost the same.

*SLO attainment* is `Outcome.slo_ratio`: requests whose first token came within 200 ms, of all that an idle engine would have
served so; who was refused or lost did not get one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from policies.autoscaling.contenders import OURS, contender
from policies.autoscaling.fleet import PacedRule, Scaler
from policies.autoscaling.outcome import Outcome
from policies.autoscaling.pace import PLAIN
from policies.autoscaling.policy import ScalingPolicy
from policies.autoscaling.rules import RULES, Targets
from policies.autoscaling.scenario import Bounds, EngineModel, Load
from policies.autoscaling.simulation import simulate

SETTINGS: Mapping[str, tuple[float, ...]] = {
    OURS: (8, 12, 16, 20, 24, 32, 48, 64, 91, 128),
    "system-design": (0.08, 0.12, 0.15, 0.2, 0.3),
    "queue": (0.02, 0.05, 0.1, 0.5, 5),
    "cpu": (0.25, 0.7),
    "work": (8, 12, 16, 24, 32, 48, 91),
}
"""What each is tuned by: requests in flight, target of latency in seconds, waiting requests, CPU, for each engine. An engine's
CPU is nearly constant, so that a target below it grows to the most there may be, and one above it never grows."""
EQUAL_USD_RATIO, EQUAL_SLO_RATIO = 0.01, 0.001
"""Within these two are equal."""


class Half(NamedTuple):
    """A part of a load: `load` runs from its begin, and counts within `measured_s` (None: all of it)."""

    load: Load
    measured_s: range | None = None


@dataclass(frozen=True)
class Point:
    """A setting, and what came of it on each half."""

    setting: float
    tuning: Outcome
    measured: Outcome


class Verdict(StrEnum):
    """Ours beside a setting of another, on the half that nothing was tuned on."""

    AHEAD = "ahead"
    """It attains no less, for no more dollars."""
    DEARER = "dearer"
    """It attains no less, and costs more there: it did not on the half it was tuned on."""
    BEHIND = "behind"
    NONE = "nothing as cheap"
    """No setting of ours costs as little on the half that it is tuned on."""


@dataclass(frozen=True)
class Match:
    """A setting of another, and what ours was tuned to beside it."""

    other: Point
    ours: Point | None
    verdict: Verdict


Run = Callable[[str, float], Point]
"""A contender at a setting, over both halves."""


def scaler(name: str, setting: float, policy: ScalingPolicy, bounds: Bounds) -> Scaler:
    """A contender at a setting, made anew for a run."""
    if name == OURS:
        return contender(name, policy.model_copy(update={"target_in_flight": setting}), bounds)
    targets = {
        "work": Targets(in_flight=setting),
        "system-design": Targets(policy.target_in_flight, ttft_s=setting),
        "queue": Targets(policy.target_in_flight, waiting=setting),
        "cpu": Targets(policy.target_in_flight, cpu_ratio=setting),
    }[name]
    return PacedRule.of(RULES[name], targets, bounds, PLAIN)


def runner(policy: ScalingPolicy, halves: tuple[Half, Half], engine: EngineModel, bounds: Bounds) -> Run:
    """Runs contenders over the halves of a load."""

    def run(name: str, setting: float) -> Point:
        outcomes = [
            simulate(name, scaler(name, setting, policy, bounds), half.load, engine, bounds, measured_s=half.measured_s)
            for half in halves
        ]
        return Point(setting, *outcomes)

    return run


def match(other: Point, ours: Sequence[Point], run: Run) -> Match:
    """What ours is worth beside a setting of another: tuned to its dollars on the first half, compared on the second."""
    setting = tuned([(point.tuning.usd, point.setting) for point in ours], other.tuning.usd)
    if setting is None:
        return Match(other, None, Verdict.NONE)
    affordable = [point for point in (*ours, run(OURS, setting)) if point.tuning.usd <= other.tuning.usd]
    chosen = max(affordable, key=lambda point: point.tuning.slo_ratio)
    if chosen.measured.slo_ratio < other.measured.slo_ratio - EQUAL_SLO_RATIO:
        return Match(other, chosen, Verdict.BEHIND)
    is_dearer = chosen.measured.usd > other.measured.usd * (1 + EQUAL_USD_RATIO)
    return Match(other, chosen, Verdict.DEARER if is_dearer else Verdict.AHEAD)


def tuned(costs: Iterable[tuple[float, float]], usd: float) -> float | None:
    """The setting that costs `usd`, from dollars and setting of some; the dearest's where `usd` is beyond, and None below."""
    return _between(sorted(costs), usd)


def lead(other: Sequence[Outcome], ours: Sequence[Outcome]) -> list[tuple[float, float | None]]:
    """For each of `other` its dollars, and how much more of the SLO ours attains for as many; None where ours has none as cheap.
    What is between two settings of ours is taken to lie on the line between them."""
    line = [(one.usd, one.slo_ratio) for one in best(ours)]
    found = []
    for each in other:
        attained = _between(line, each.usd)
        found.append((each.usd, None if attained is None else attained - each.slo_ratio))
    return found


def best(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that attain more than any that costs less, cheapest first: what can be had for how much."""
    found: list[Outcome] = []
    for one in sorted(outcomes, key=lambda it: (it.usd, -it.slo_ratio)):
        if not found or one.slo_ratio > found[-1].slo_ratio:
            found.append(one)
    return found


def _between(line: Sequence[tuple[float, float]], x: float) -> float | None:
    """The height at `x` of a line through points in order of x: that of the last beyond it, None before the first."""
    if not line or x < line[0][0]:
        return None
    for (left, low), (right, high) in itertools.pairwise(line):
        if x < right:
            return low + (high - low) * (x - left) / (right - left)
    return line[-1][1]
