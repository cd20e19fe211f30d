"""What is concluded from failures and silence, with the arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.routing.suspicion import EQUAL_TOKENS, PrefillSpeed, Quarantine, RetryBudget, ejection_s


@pytest.mark.parametrize(("num_failures", "seconds"), [(1, 3), (2, 6), (3, 12), (5, 48), (6, 60), (1000, 60)])
def test_an_ejection_doubles_up_to_a_minute(num_failures: int, seconds: float) -> None:
    assert ejection_s(num_failures) == seconds


STALLS: list[tuple[str, list[tuple[int, float]], int | list[int], float]] = [
    # what was seen (tokens, seconds), tokens waiting in one prompt or several, limit
    ("nothing was seen yet: a cold prompt of 30 s is no illness", [], 100_000, math.inf),
    ("short prompts tell nothing", [(10, 1.0)], 1000, math.inf),
    ("a fast engine: 2 x (952 + 2048) / 10,000 is less than 3 s", [(10_000, 1.0)], 952, 3.0),
    ("a short prompt after a long one: 2 x (1,000 + 2,048) / 1,000", [(10_000, 10.0)], 1000, 6.096),
    ("forty short ones are no long one: 2 x (40,000 + 2,048) / 1,000", [(1000, 1.0)], [1000] * 40, 84.096),
    ("a long one: 2 x (30,000 + 30,000²/4,096 + 2,048) / (10,000 + 10,000²/4,096)", [(10_000, 1.0)], 30_000, 14.63207),
    ("the slowest counts", [(10_000, 1.0), (1000, 1.0), (10_000, 1.0)], 952, 2 * 3000 / 1020),
]


@pytest.mark.parametrize(("seen", "waiting", "limit_s"), [row[1:] for row in STALLS], ids=[row[0] for row in STALLS])
def test_silence_is_tolerated_for_twice_a_prefill(
    seen: list[tuple[int, float]], waiting: int | list[int], limit_s: float
) -> None:
    speed = PrefillSpeed()
    for tokens, seconds in seen:
        speed.saw(tokens, seconds)
    assert speed.stalled_after_s([waiting] if isinstance(waiting, int) else waiting) == pytest.approx(limit_s)


@settings(deadline=None)
@given(
    prefill_s=st.floats(1e-5, 1e-2),
    equal_tokens=st.floats(EQUAL_TOKENS, 1e6),
    seen=st.lists(st.integers(256, 32_768), min_size=1, max_size=20),
    asked=st.integers(1, 131_072),
)
def test_no_prompt_however_long_is_a_stall_while_its_engine_computes_it(
    prefill_s: float, equal_tokens: float, seen: list[int], asked: int
) -> None:
    """Prompts of 300 tokens were answered at 17,000 tokens/s; the first of 8,000 got a 504, since a speed was taken for a law."""

    def takes_s(tokens: int) -> float:
        return prefill_s * (tokens + tokens * tokens / equal_tokens)

    speed = PrefillSpeed()
    for tokens in seen:
        speed.saw(tokens, takes_s(tokens))
    assert speed.stalled_after_s([asked]) >= 1.9 * takes_s(asked)


def test_prompts_queued_before_a_sample_make_no_engine_look_faster() -> None:
    speed = PrefillSpeed()
    speed.saw(20 * 300, 20 * 0.3, 300)
    assert speed.stalled_after_s([8192]) >= 2 * (8192 + 8192**2 / EQUAL_TOKENS) / 1000


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
