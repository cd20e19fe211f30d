"""A load for scaling, and what becomes of replicas under it: said by one policy object, obeyed by several.

A series is requests in flight over time, and None where nobody can see them. It does not depend on how many engines there are, so
trajectories under it can be compared. Times are seconds of a world that runs `speed` times as fast as production.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.autoscaling.autoscaler import Autoscaler
from policies.autoscaling.decide import Sample, ScaleDecision, Size
from policies.autoscaling.policy import Limits, ScalingPolicy

LOOK_S = 15.0
"""How often production's leader looks, and its HPA and KEDA sync."""
GRID_S = 0.05


@dataclass(frozen=True)
class Phase:
    """A stretch of load: from `begin` in flight to `end`, or nothing to be seen."""

    name: str
    lasts_s: float
    begin: float | None
    end: float | None = None


@dataclass(frozen=True)
class Series:
    """Phases one after the other."""

    phases: tuple[Phase, ...]

    @property
    def lasts_s(self) -> float:
        """All of them."""
        return sum(phase.lasts_s for phase in self.phases)

    def at(self, at_s: float) -> tuple[Phase, float | None]:
        """The phase, and the requests in flight in it."""
        for phase in self.phases:
            if at_s < phase.lasts_s or phase is self.phases[-1]:
                if phase.begin is None:
                    return phase, None
                end = phase.begin if phase.end is None else phase.end
                return phase, phase.begin + (end - phase.begin) * min(1.0, at_s / phase.lasts_s)
            at_s -= phase.lasts_s
        raise ValueError("a series has at least one phase")


@dataclass
class Trajectory:
    """Replicas over time, noted where they change."""

    name: str
    changes: list[tuple[float, int]] = field(default_factory=list)

    def note(self, at_s: float, replicas: int) -> None:
        """So many from now on."""
        if not self.changes or self.changes[-1][1] != replicas:
            self.changes.append((at_s, replicas))

    def at(self, at_s: float) -> int:
        """So many then."""
        return next((replicas for since_s, replicas in reversed(self.changes) if since_s <= at_s), self.changes[0][1])

    def within(self, from_s: float, to_s: float) -> set[int]:
        """All that it was between."""
        return {self.at(from_s), *(replicas for since_s, replicas in self.changes if from_s <= since_s <= to_s)}


class Decider:
    """The policy with its memory, under a series; engines serve at once."""

    def __init__(self, policy: ScalingPolicy, limits: Limits, start: int) -> None:
        self._autoscaler, self._limits = Autoscaler(policy, [Size(0.0, start)]), limits

    def look(self, at_s: float, in_flight: float | None) -> ScaleDecision:
        """One look, at a moment of the series."""
        ready = self._autoscaler.sizes[-1].replicas
        if in_flight is not None:
            self._autoscaler.see(Sample(at_s, ready, ready, in_flight, 0))
        return self._autoscaler.decide(self._limits, at_s)


def simulated(series: Series, policy: ScalingPolicy, limits: Limits, start: int, look_s: float) -> Trajectory:
    """What the policy says and a perfect scaler has, at once."""
    decider, trajectory = Decider(policy, limits, start), Trajectory("simulated")
    for index in range(math.ceil(series.lasts_s / look_s)):
        at_s = index * look_s
        trajectory.note(at_s, decider.look(at_s, series.at(at_s)[1]).replicas)
    return trajectory


@dataclass(frozen=True)
class Agreement:
    """How far a trajectory was from the simulated one in a phase: how far beyond the least and the most that the other was within
    one sync before and after. 3 beside what went from 4 to 6 is 1; 5 is 0."""

    phase: str
    max_apart: int
    """Replicas."""
    apart_ratio: float
    """Of its time: by more than one replica."""
    lag_s: float | None
    """The sync that would have been needed for one replica; None where ten would not do."""


def agreements(series: Series, one: Trajectory, other: Trajectory, sync_s: float) -> list[Agreement]:
    """One for each phase."""
    found, begin_s = [], 0.0
    for phase in series.phases:
        moments = [begin_s + index * GRID_S for index in range(int(phase.lasts_s / GRID_S))]
        apart = [_apart(one, other, at_s, sync_s) for at_s in moments]
        lag_s = next((tried for tried in _tried(sync_s) if all(_apart(one, other, at_s, tried) <= 1 for at_s in moments)), None)
        found.append(Agreement(phase.name, max(apart), sum(each > 1 for each in apart) / len(apart), lag_s))
        begin_s += phase.lasts_s
    return found


def _tried(sync_s: float) -> Sequence[float]:
    return [round(index * GRID_S, 2) for index in range(int(10 * sync_s / GRID_S))]


def _apart(one: Trajectory, other: Trajectory, at_s: float, sync_s: float) -> int:
    replicas, others = one.at(at_s), other.within(at_s - sync_s, at_s + sync_s)
    return max(min(others) - replicas, replicas - max(others), 0)


def picture(series: Series, trajectories: Sequence[Trajectory], width: int = 100) -> list[str]:
    """A line each, a digit a moment: 0 is none, 9 is the most of all; phases stand above."""
    most = max(replicas for it in trajectories for _, replicas in it.changes) or 1
    step_s = series.lasts_s / width
    names = "".join(phase.name[: int(phase.lasts_s / step_s)].ljust(int(phase.lasts_s / step_s), "·") for phase in series.phases)
    lines = [f"{'':>10} {names}"]
    bars = "▁▂▃▄▅▆▇█"
    for it in trajectories:
        drawn = "".join(bars[min(len(bars) - 1, it.at(index * step_s) * len(bars) // (most + 1))] for index in range(width))
        lines.append(f"{it.name:>10} {drawn}")
    return lines


def changes(trajectory: Trajectory) -> int:
    """How often it turned from growing to shrinking or back."""
    steps = [after[1] - before[1] for before, after in itertools.pairwise(trajectory.changes)]
    return sum((one > 0) is not (other > 0) for one, other in itertools.pairwise(steps))
