"""What a storm on limits saw with its own eyes, and how much of it was more than the limits allow.

The check knows nothing of how limits are kept. Of rates: whatever two moments one takes, what was asked for and settled between
them is at most one limit and what the time between them refilled; what was in flight at the first moment and gave something back
later may be used again. Of requests at once: a counter that all processes share, raised once a request is let in and lowered
before it is given back, never shows more. Of budgets: the sum of what was spent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from policies.admission.limits import NANO_PER_MICRO, Limits

NUM_MOMENTS = 40


class Ran(NamedTuple):
    """One request that was let in. Times are the machine's monotonic clock."""

    asked_s: float
    ended_s: float
    reserved: tuple[int, int, int, int]
    """Requests, tokens, tokens of prompts and of answers."""
    used: tuple[int, int, int, int]
    spent_nano_usd: int


@dataclass
class Truth:
    """What one process, or all, saw; by the name of what is limited."""

    ran: dict[str, list[Ran]] = field(default_factory=dict)
    most_running: dict[str, int] = field(default_factory=dict)
    num_operations: int = 0
    num_alone: int = 0
    """Decisions that a process made without the cache."""

    def add(self, other: Truth) -> None:
        """Take in what another process saw."""
        for name, ran in other.ran.items():
            self.ran.setdefault(name, []).extend(ran)
        for name, most in other.most_running.items():
            self.most_running[name] = max(self.most_running.get(name, 0), most)
        self.num_operations += other.num_operations
        self.num_alone += other.num_alone

    def over(self, limits_of: dict[str, Limits]) -> dict[str, int]:
        """Units let in beyond each limit: requests, tokens, requests at once and nano-dollars; by `name/limit`."""
        over: dict[str, int] = {}
        for name, limits in limits_of.items():
            ran = self.ran.get(name, [])
            for at, cap in enumerate(limits.per_min):
                if cap is not None:
                    over[f"{name}/rate{at}"] = rate_over(ran, at, cap)
            if limits.concurrency is not None:
                over[f"{name}/concurrency"] = max(0, self.most_running.get(name, 0) - limits.concurrency)
            budgets = [cap for cap in (limits.budget_day_micro_usd, limits.budget_month_micro_usd) if cap is not None]
            if budgets:
                spent = sum(one.spent_nano_usd for one in ran)
                over[f"{name}/budget"] = max(0, spent - min(budgets) * NANO_PER_MICRO)
        return over


def rate_over(ran: list[Ran], at: int, cap: int) -> int:
    """The most by which a rate was exceeded between any of `NUM_MOMENTS` moments and any later one; 0 where it never was."""
    by_end = sorted(ran, key=lambda one: one.ended_s)
    step = max(1, len(by_end) // NUM_MOMENTS)
    moments = [float("-inf"), *(one.asked_s for one in by_end[step::step])]
    worst = 0.0
    for since_s in moments:
        given_back = sum(max(0, one.reserved[at] - one.used[at]) for one in by_end if one.asked_s < since_s < one.ended_s)
        inside = [one for one in by_end if one.asked_s >= since_s]
        used, first_s = 0, min((one.asked_s for one in inside), default=0.0)
        for one in inside:
            used += one.used[at]
            allowed = cap * (1 + (one.ended_s - first_s) / 60) + given_back + 1
            worst = max(worst, used - allowed)
    return int(-(-worst // 1))
