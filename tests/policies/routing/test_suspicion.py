"""What is concluded from failures and silence, with the arithmetic."""

from __future__ import annotations

import math

import pytest

from policies.routing.suspicion import PrefillSpeed, Quarantine, RetryBudget, ejection_s


@pytest.mark.parametrize(("num_failures", "seconds"), [(1, 3), (2, 6), (3, 12), (5, 48), (6, 60), (1000, 60)])
def test_an_ejection_doubles_up_to_a_minute(num_failures: int, seconds: float) -> None:
    assert ejection_s(num_failures) == seconds


STALLS: list[tuple[str, list[tuple[int, float]], int, float]] = [
    # what was seen (tokens, seconds), tokens waiting, limit
    ("nothing was seen yet: a cold prompt of 30 s is no illness", [], 100_000, math.inf),
    ("short prompts tell nothing", [(10, 1.0)], 1000, math.inf),
    ("a fast engine: 2 x (952 + 2048) / 10,000 is less than 3 s", [(10_000, 1.0)], 952, 3.0),
    ("a long prompt at a fast engine: 2 x (30,000 + 2,048) / 10,000", [(10_000, 1.0)], 30_000, 6.4096),
    ("two cores: 2 x (1,837 + 2,048) / 400", [(1200, 3.0)], 1837, 19.425),
    ("the slowest counts", [(10_000, 1.0), (1000, 1.0), (10_000, 1.0)], 952, 2 * 3000 / 1020),
]


@pytest.mark.parametrize(("seen", "waiting", "limit_s"), [row[1:] for row in STALLS], ids=[row[0] for row in STALLS])
def test_silence_is_tolerated_for_twice_a_prefill(seen: list[tuple[int, float]], waiting: int, limit_s: float) -> None:
    speed = PrefillSpeed()
    for tokens, seconds in seen:
        speed.saw(tokens, seconds)
    assert speed.stalled_after_s(waiting) == pytest.approx(limit_s)


def test_an_estimate_recovers_from_one_slow_prefill() -> None:
    speed = PrefillSpeed()
    speed.saw(1000, 1.0)
    for _ in range(200):
        speed.saw(10_000, 1.0)
    assert speed.tokens_per_s == 10_000


def test_one_retry_for_five_requests_and_a_few_to_begin_with() -> None:
    budget = RetryBudget()
    assert [budget.retry() for _ in range(4)] == [True, True, True, False]
    for _ in range(50):
        budget.request()
    assert sum(budget.retry() for _ in range(50)) == 10


def test_two_engines_and_not_one_twice_put_a_request_away() -> None:
    quarantine = Quarantine()
    quarantine.killed(b"x", "a")
    quarantine.killed(b"x", "a")
    assert not quarantine.holds(b"x")
    quarantine.killed(b"x", "b")
    assert quarantine.holds(b"x")
    assert not quarantine.holds(b"y")
    quarantine.answered(b"x")
    assert not quarantine.holds(b"x")


def test_a_quarantine_forgets_the_oldest() -> None:
    quarantine = Quarantine()
    for number in range(5000):
        for engine in "ab":
            quarantine.killed(str(number).encode(), engine)
    assert quarantine.holds(b"4999")
    assert not quarantine.holds(b"0")
