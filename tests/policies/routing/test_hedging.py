"""A hedge waits for what 95 of 100 first tokens took, in proportion to the work before them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.routing.hedging import MIN_SAMPLES, FirstTokenTimes

RATES = st.lists(st.floats(1e-6, 1.0), min_size=MIN_SAMPLES, max_size=300)


def seen(*rates: float) -> FirstTokenTimes:
    times = FirstTokenTimes()
    for rate in rates:
        times.saw(952, 3000 * rate)
    return times


def test_nothing_is_hedged_until_enough_was_seen() -> None:
    assert seen(*[50e-6] * (MIN_SAMPLES - 1)).hedge_after_s(952) == math.inf
    assert seen(*[50e-6] * MIN_SAMPLES).hedge_after_s(952) == pytest.approx(0.15)


def test_five_of_a_hundred_are_late() -> None:
    """1 to 100 ms for 3,000 tokens of work: the 95th is 95 ms."""
    times = seen(*(number / 1000 / 3000 for number in range(100, 0, -1)))
    assert times.hedge_after_s(952) == pytest.approx(0.095)
    assert times.hedge_after_s(952 + 3000) == pytest.approx(0.19), "twice the work is given twice the time"


def test_what_was_seen_long_ago_is_forgotten() -> None:
    assert seen(*[1e-2] * 300, *[1e-5] * 256).hedge_after_s(952) == pytest.approx(0.03)


@given(RATES, st.integers(0, 100_000), st.integers(0, 100_000))
def test_more_work_never_shortens_the_wait(rates: list[float], work: int, more: int) -> None:
    times = seen(*rates)
    assert times.hedge_after_s(work + more) >= times.hedge_after_s(work) > 0
