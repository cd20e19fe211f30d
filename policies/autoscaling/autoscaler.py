"""Remembers for a model class what `decide_replicas` has to know of earlier: samples, sizes and needs. Time is the caller's."""

from __future__ import annotations

from collections.abc import Iterable

from policies.autoscaling.decide import Need, Observed, Sample, ScaleDecision, Size, decide_replicas
from policies.autoscaling.policy import Limits, ScalingPolicy


class Autoscaler:
    """One class of one region. `sizes` is what is remembered of it: without any, it learns first what is there."""

    def __init__(self, policy: ScalingPolicy, sizes: Iterable[Size] = ()) -> None:
        self.policy = policy
        self._samples: list[Sample] = []
        self._sizes = list(sizes)
        self._needs: list[Need] = []

    @property
    def sizes(self) -> list[Size]:
        """What a successor has to be told, the last one the size now."""
        return self._sizes

    def found(self, ready: int, at_s: float) -> None:
        """Takes what serves beyond what is remembered as decided: somebody else grew it meanwhile."""
        if self._sizes and ready > self._sizes[-1].replicas:
            self._sizes.append(Size(at_s, ready))

    def see(self, sample: Sample) -> None:
        """Takes a sample, younger than those before."""
        self._samples.append(sample)

    def decide(self, limits: Limits, now_s: float) -> ScaleDecision:
        """The size to have now, which counts as taken where it is known."""
        decision = decide_replicas(Observed(self._samples, self._sizes, self._needs), self.policy, limits, now_s)
        if decision.is_known:
            self._needs.append(Need(now_s, decision.need, limits.floor))
            if not self._sizes or decision.replicas != self._sizes[-1].replicas:
                self._sizes.append(Size(now_s, decision.replicas))
        self._forget(now_s - self.policy.horizon_s - self.policy.stale_after_s)
        return decision

    def _forget(self, before_s: float) -> None:
        self._samples = [sample for sample in self._samples if sample.at_s >= before_s]
        self._needs = [need for need in self._needs if need.at_s >= before_s]
        while len(self._sizes) > 1 and self._sizes[1].at_s < before_s:
            self._sizes.pop(0)
