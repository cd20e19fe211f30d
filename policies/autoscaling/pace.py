"""How fast a workload grows and shrinks, as a HorizontalPodAutoscaler's `behavior` means it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.autoscaling.policy import ScalingPolicy

TOLERANCE = 0.1
"""Kubernetes leaves a size alone while need and size differ by no more (`--horizontal-pod-autoscaler-tolerance`)."""
BACKSTOP_RATIO = 0.9
"""Of the decision's periods, for whoever obeys it: with the same, each step that it saw late would hold the next one up."""


@dataclass(frozen=True)
class Pace:
    """Growing waits for nothing; shrinking only follows 15 minutes without need, one pod every five: a pod takes a while to come
    back. `obeying` is the pace for a size that was decided elsewhere."""

    pods_up: int = 2
    up_period_s: int = 60
    up_window_s: int = 0
    pods_down: int = 1
    down_period_s: int = 300
    down_window_s: int = 900
    max_growth_ratio: float = 1.0
    """In a period it may also grow to this many times what it was, where that is more."""
    tolerance_ratio: float = TOLERANCE

    @classmethod
    def obeying(cls, policy: ScalingPolicy) -> Pace:
        """Follows what `decide_replicas` says, at once and to the pod: it has waited and been paced already. The limits are the
        decision's own, so that what the engines' queues ask for, when nobody decides, is paced too."""
        return cls(
            pods_up=policy.step_up,
            up_period_s=_whole(policy.up_period_s * BACKSTOP_RATIO),
            pods_down=policy.step_down,
            down_period_s=_whole(policy.down_period_s * BACKSTOP_RATIO),
            down_window_s=0,
            max_growth_ratio=policy.max_growth_ratio,
            tolerance_ratio=0.0,
        )


PLAIN = Pace(pods_up=4, up_period_s=15, pods_down=10_000, down_period_s=15, down_window_s=300, max_growth_ratio=2.0)
"""A HorizontalPodAutoscaler's where it says nothing: twice as many or four more in 15 s, and after five minutes without need down
to it at once (kubernetes.io, Horizontal Pod Autoscaling, "Default Behavior"; read 2026-11-24)."""


@dataclass
class Pacer:
    """Applies a pace to wishes, as the autoscaler does at each of its syncs. Time is the caller's."""

    pace: Pace
    minimum: int
    maximum: int
    _wishes: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def size(self, wish: int | None, current: int, now_s: float) -> int:
        """The size to have now, for a wish made now; None is no answer from the metrics, and then nothing shrinks or grows."""
        if wish is None:
            return min(max(current, self.minimum), self.maximum)
        self._wishes.append((now_s, wish))
        horizon_s = max(self.pace.up_window_s, self.pace.down_window_s)
        self._wishes = [(at_s, value) for at_s, value in self._wishes if at_s >= now_s - horizon_s]
        least_up = min(value for at_s, value in self._wishes if at_s >= now_s - self.pace.up_window_s)
        most_down = max(value for at_s, value in self._wishes if at_s >= now_s - self.pace.down_window_s)
        settled = least_up if least_up > current else most_down if most_down < current else current
        bounded = min(max(settled, self.minimum), self.maximum)
        size = min(bounded, self._most(current, now_s)) if bounded > current else max(bounded, self._least(current, now_s))
        if size != current:
            self._changes.append((now_s, size - current))
            horizon_s = max(self.pace.up_period_s, self.pace.down_period_s)
            self._changes = [(at_s, change) for at_s, change in self._changes if at_s > now_s - horizon_s]
        return size

    def _most(self, current: int, now_s: float) -> int:
        began = current - self._changed(now_s, self.pace.up_period_s, up=True)
        return max(current, began + self.pace.pods_up, math.ceil(began * self.pace.max_growth_ratio))

    def _least(self, current: int, now_s: float) -> int:
        began = current - self._changed(now_s, self.pace.down_period_s, up=False)
        return min(current, began - self.pace.pods_down)

    def _changed(self, now_s: float, period_s: float, *, up: bool) -> int:
        recent: Sequence[int] = [change for at_s, change in self._changes if at_s > now_s - period_s]
        return sum(change for change in recent if (change > 0) is up)


def _whole(seconds: float) -> int:
    """Kubernetes knows whole seconds, and none below one."""
    return max(1, round(seconds))


def wish_for(total: float, per_replica: float, current: int) -> int:
    """What an autoscaler wishes for by KEDA's AverageValue: `ceil(total / per_replica)`, or `current` within the tolerance.

    500 requests at 32 each wish for 16; 15 engines are within a tenth of that, and stay.
    """
    if current and abs(total / (per_replica * current) - 1) <= TOLERANCE:
        return current
    return math.ceil(total / per_replica)
