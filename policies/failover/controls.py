"""Whether a region is evacuated, as its neighbours' gateways tell health checks.

Three answers. What cannot be read leaves things as they were; and so do controls that contradict each other. Nobody ever
means to take every region out: a region that is evacuated itself has no say about another, and one that would be the second to
go does not say so of itself. So of two evacuations the first holds and the second has no effect, and no gateway need know which
regions there are. One that knows nothing yet says "serving": nobody is evacuated by silence
(docs/decisions/0007-what-takes-a-region-out.md).
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
    rivals = [it for it in controls.values() if it.is_evacuated and it.region != region]
    if region == here and rivals:
        return Decision(Verdict.UNSURE, f"{rivals[0].region} is evacuated as well")
    if region != here and any(it.region == here for it in rivals):
        return Decision(Verdict.UNSURE, f"{here}, where this is asked, is evacuated as well")
    return Decision(Verdict.EVACUATED, control.reason)


def settle(before: Verdict, decision: Decision) -> Verdict:
    """What is said from now on: the new verdict, or the one before where nobody can be sure."""
    return before if decision.verdict is Verdict.UNSURE else decision.verdict
