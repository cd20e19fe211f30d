"""The policies that a simulation compares, by name, each made anew for a run."""

from __future__ import annotations

from policies.autoscaling.fleet import PacedRule, Scaler
from policies.autoscaling.rules import RULES, Targets
from policies.autoscaling.scenario import Bounds

CONTENDERS: tuple[str, ...] = tuple(RULES)


def contender(name: str, targets: Targets, bounds: Bounds) -> Scaler:
    """The policy `name`, one of `CONTENDERS`."""
    return PacedRule.of(RULES[name], targets, bounds)
