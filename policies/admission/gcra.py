"""GCRA, the generic cell rate algorithm: a limit a minute, kept as one number.

The number is the theoretical arrival time: the moment at which everything let in so far has been paid for at the limit's rate.
A request of cost `c` moves it by `c * period / limit` and fits if it then lies at most one period ahead of now. So an idle
tenant may spend one minute's worth at once, and from there on gets exactly its rate. It needs no history, takes costs (tokens),
and gives back what was reserved and not used. Times are microseconds.
"""

from __future__ import annotations

PERIOD_US = 60_000_000.0
"""Limits are per minute, and a burst is at most one minute's worth."""


def charged(tat_us: float, per_min: int | None, cost: int, now_us: float) -> float:
    """The theoretical arrival time after a charge of `cost`; without a limit it stays."""
    return tat_us if per_min is None else max(tat_us, now_us) + cost * PERIOD_US / per_min


def wait_us(charged_us: float, per_min: int | None, now_us: float) -> float:
    """How long until a charge would fit; 0 where it does."""
    return 0.0 if per_min is None else max(0.0, charged_us - PERIOD_US - now_us)


def remaining(tat_us: float, per_min: int, now_us: float) -> int:
    """What could be spent at this moment."""
    return max(0, int((now_us + PERIOD_US - max(tat_us, now_us)) * per_min / PERIOD_US))


def told(remaining: int, per_min: int | None, now_us: float) -> float:
    """The theoretical arrival time of a limit of which so much remains; 0 without a limit."""
    return 0.0 if per_min is None else now_us + (per_min - remaining) * PERIOD_US / per_min


def owed(tat_us: float, per_min: int | None, now_us: float) -> int:
    """What was let in and is not paid for by time yet, rounded up; 0 without a limit."""
    return 0 if per_min is None else max(0, -int(-(max(tat_us, now_us) - now_us) * per_min // PERIOD_US))
