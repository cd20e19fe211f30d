"""Whether a region is evacuated, as its neighbours' gateways tell health checks.

Three answers. What cannot be read leaves things as they were. Nobody ever means to take every region out, so a region that is
evacuated itself has a say about the first evacuation alone: of two the first holds and the second has no effect, and no gateway
need know which regions there are. Which was first stands in the controls, so gateways agree whatever they said before: on the two
sides of a partition, two operators may both have been obeyed until it healed. One that knows nothing yet says "serving": nobody
is evacuated by silence (docs/decisions/0007-what-takes-a-region-out.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from policies.failover.items import Control


class Verdict(StrEnum):
    """What is known of a region."""

    SERVING = "serving"
    EVACUATED = "evacuated"
    UNSURE = "unsure"
    """Leave things as they are."""


@dataclass(frozen=True)
class Decision:
    """A verdict and why."""

    verdict: Verdict
    reason: str


def decide_evacuated(controls: Mapping[str, Control] | None, region: str, here: str) -> Decision:
    """What a gateway in the region `here` says of `region`, by `controls` (by region; None: they could not be read)."""
    if controls is None:
        return Decision(Verdict.UNSURE, "the controls cannot be read")
    control = controls.get(region)
    if control is None:
        return Decision(Verdict.SERVING, "nobody has evacuated it")
    if not control.is_evacuated:
        return Decision(Verdict.SERVING, control.reason)
    evacuated = [it for it in controls.values() if it.is_evacuated]
    first = min(evacuated, key=lambda it: (it.at_s, it.region))
    if first is not control and any(it.region == here for it in evacuated):
        return Decision(Verdict.SERVING, f"{first.region} was evacuated first, and somebody must serve")
    return Decision(Verdict.EVACUATED, control.reason)


def settle(before: Verdict, decision: Decision) -> Verdict:
    """What is said from now on: the new verdict, or the one before where nobody can be sure."""
    return before if decision.verdict is Verdict.UNSURE else decision.verdict
