"""The engines of a class as a simulation has them: serving, starting, or lost with their spot node; and who decides how many.

Pools are used in the order of their promises: the first `maximum - spot` engines run on reserved and on-demand nodes, which
stay, and those beyond on spot, which cost less and go without asking. New engines serve after their cold start and are paid for
from the beginning; where engines are removed, those that start go first.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Protocol

from policies.autoscaling.pace import Pace, Pacer
from policies.autoscaling.rules import Observed, Rule, Targets
from policies.autoscaling.scenario import Bounds

SYNC_S = 15
"""How often the autoscaler looks (Kubernetes' default, and KEDA's for its metrics is not longer in our objects)."""


class Scaler(Protocol):
    """Decides the size at each sync. It may remember what it saw; time is given to it."""

    def size(self, observed: Observed | None, current: int, now_s: float) -> int:
        """Engines to have, starting ones included; None is silence of the metrics."""
        ...


@dataclass
class PacedRule:
    """A rule's wishes at an autoscaler's pace: how KEDA and a HorizontalPodAutoscaler apply one."""

    rule: Rule
    targets: Targets
    pacer: Pacer

    @classmethod
    def of(cls, rule: Rule, targets: Targets, bounds: Bounds, pace: Pace | None = None) -> PacedRule:
        """A fresh one for a run."""
        return cls(rule, targets, Pacer(pace or Pace(), bounds.minimum, bounds.maximum))

    def size(self, observed: Observed | None, current: int, now_s: float) -> int:
        """See `Scaler`."""
        return self.pacer.size(None if observed is None else self.rule(observed, current, self.targets), current, now_s)


@dataclass
class Fleet:
    """Engines over time. Whoever simulates calls `advance` for each moment, and `sync` every `SYNC_S`."""

    bounds: Bounds
    cold_start_s: float
    seed: int = 1
    ready: int = field(init=False)
    num_changes: int = field(default=0, init=False)
    num_lost: int = field(default=0, init=False)
    _starting: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.ready = self.bounds.minimum
        self._rng = random.Random(self.seed)  # noqa: S311 (a simulation, no secret)

    @property
    def size(self) -> int:
        """Serving and starting."""
        return self.ready + len(self._starting)

    @property
    def on_spot(self) -> int:
        """Of these, on spot."""
        return max(0, self.size - (self.bounds.maximum - self.bounds.spot))

    def advance(self, now_s: float) -> int:
        """Engines that begin to serve now."""
        began = sum(at_s <= now_s for at_s in self._starting)
        if began:
            self._starting = [at_s for at_s in self._starting if at_s > now_s]
            self.ready += began
        return began

    def lose(self, during_s: float) -> int:
        """Engines that serve and go with their spot nodes in so long a time. One always stays: a class is never without."""
        each = self.bounds.spot_losses_per_h * during_s / 3600
        if not each:
            return 0
        lost = sum(self._rng.random() < each for _ in range(min(self.on_spot, self.ready - 1)))
        self.ready -= lost
        self.num_lost += lost
        return lost

    def sync(self, scaler: Scaler, observed: Observed | None, now_s: float) -> int:
        """Asks the scaler and does what it says; how many engines that serve are removed."""
        wanted = min(max(scaler.size(observed, self.size, now_s), self.bounds.minimum), self.bounds.maximum)
        self.num_changes += wanted != self.size
        if wanted > self.size:
            self._starting += [now_s + self.cold_start_s] * (wanted - self.size)
            return 0
        surplus = self.size - wanted
        cancelled = min(surplus, len(self._starting))
        del self._starting[len(self._starting) - cancelled :]
        self.ready -= surplus - cancelled
        return surplus - cancelled
