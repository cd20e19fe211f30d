"""The policies that a simulation compares, by name, each made anew for a run."""

from __future__ import annotations

from dataclasses import dataclass

from policies.autoscaling.autoscaler import Autoscaler
from policies.autoscaling.decide import Sample, Size
from policies.autoscaling.fleet import PacedRule, Scaler
from policies.autoscaling.pace import PLAIN
from policies.autoscaling.policy import Limits, ScalingPolicy
from policies.autoscaling.rules import RULES, Observed, Targets
from policies.autoscaling.scenario import Bounds

OURS = "ours"
CONTENDERS: tuple[str, ...] = (OURS, *RULES)


@dataclass
class Decided:
    """`decide_replicas` with the memory that the leader gateway gives it."""

    autoscaler: Autoscaler
    limits: Limits

    @classmethod
    def of(cls, policy: ScalingPolicy, bounds: Bounds) -> Decided:
        """A fresh one, which knows that the class has its least."""
        limits = Limits(floor=bounds.minimum, max_base=bounds.maximum - bounds.spot, max_overflow=bounds.spot)
        return cls(Autoscaler(policy, [Size(0.0, bounds.minimum)]), limits)

    def size(self, observed: Observed | None, current: int, now_s: float) -> int:
        """See `policies.autoscaling.fleet.Scaler`."""
        if observed is not None:
            self.autoscaler.see(
                Sample(
                    at_s=now_s,
                    ready=observed.ready,
                    heard=observed.ready,
                    running=observed.running,
                    waiting=observed.waiting,
                    kv_ratio=observed.kv_ratio,
                    tokens_per_s=observed.tokens_per_s,
                    ttft_p99_s=observed.ttft_p99_s,
                    slo_ratio=observed.slo_ratio,
                )
            )
        decision = self.autoscaler.decide(self.limits, now_s)
        return decision.replicas if decision.is_known else current


def contender(name: str, policy: ScalingPolicy, bounds: Bounds) -> Scaler:
    """The policy `name`, one of `CONTENDERS`. Ours goes by `policy`; the others take its target and keep Kubernetes' own pace."""
    if name == OURS:
        return Decided.of(policy, bounds)
    return PacedRule.of(RULES[name], Targets(policy.target_in_flight), bounds, PLAIN)
