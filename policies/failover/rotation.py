"""Whether an edge sends traffic to a region, from what health checks saw: the same rule for Route 53 and for one machine's edge.

A region is in while its own gateways say that it is well and no other region's say that it was evacuated. Route 53 has this as a
calculated check over others, of which those for controls are inverted; this module is what that declaration means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CHECK_PERIOD_S = 10
"""The shorter of the two periods that Route 53 offers."""
CHECK_FAILURES = 3
CONTROL_FAILURES = 1
"""A control is an answer that somebody wrote, not a symptom: it counts at once. A blip cannot undo it, since a fifth of all
checkers is enough to see it (Route 53 documentation, read November 2026)."""
RECORD_TTL_S = 30
MOVES_WITHIN_S = float(CHECK_PERIOD_S * CHECK_FAILURES + RECORD_TTL_S)
"""After so long the clients of a region that fell silent are with the others."""

Answers = Mapping[tuple[str, str], bool]
"""By (region asked, path): whether it answered 2xx or 3xx. No entry: there was no answer."""


@dataclass(frozen=True)
class Check:
    """One question to a region's gateways, repeated; it turns after `failure_threshold` answers alike."""

    asked: str
    path: str
    is_inverted: bool
    """A yes is bad news, and so silence is none."""
    failure_threshold: int

    def is_healthy(self, answers: Answers) -> bool:
        """What one look says."""
        return answers.get((self.asked, self.path), False) != self.is_inverted


def is_in_rotation(checks: tuple[Check, ...], answers: Answers) -> bool:
    """Whether a region with these checks gets traffic: every one of them is healthy."""
    return all(check.is_healthy(answers) for check in checks)


@dataclass
class Tally:
    """A check over time: healthy at first, and turned by `failure_threshold` looks in a row that say otherwise."""

    check: Check
    is_healthy: bool = True
    num_against: int = 0

    def look(self, answers: Answers) -> bool:
        """Counts one look; whether the check is healthy now."""
        is_healthy = self.check.is_healthy(answers)
        self.num_against = 0 if is_healthy is self.is_healthy else self.num_against + 1
        if self.num_against >= self.check.failure_threshold:
            self.is_healthy, self.num_against = is_healthy, 0
        return self.is_healthy
