"""Whoever guesses keys is slowed down; the cost is one number, and it is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.admission.guesses import FREE, MAX_COUNTED, MAX_DELAY_S, Guesses


@pytest.mark.parametrize(
    ("num", "delay_s"),
    [(1, 0.0), (FREE, 0.0), (FREE + 1, 0.05), (FREE + 10, 0.5), (60, 2.0), (100_000, 2.0)],  # 50 ms for each after the 20th
)
def test_the_last_of_so_many_bad_keys_at_once_waits(num: int, delay_s: float) -> None:
    guesses = Guesses()
    for _ in range(num):
        found = guesses.add(5.0)
    assert found == pytest.approx(delay_s)


def test_a_client_that_retries_an_old_key_twice_a_second_never_waits() -> None:
    guesses = Guesses()
    assert {guesses.add(number * 0.5) for number in range(1000)} == {0.0}


def test_a_flood_is_forgotten_within_half_a_minute() -> None:
    guesses = Guesses()
    for _ in range(1_000_000 // 1000):
        guesses.add(0.0)
    assert guesses.add(MAX_COUNTED / 2) == 0.0


@given(st.lists(st.floats(0, 1e6), max_size=200))
def test_no_answer_waits_longer_than_the_most(times_s: list[float]) -> None:
    guesses = Guesses()
    assert all(0 <= guesses.add(now_s) <= MAX_DELAY_S for now_s in sorted(times_s))
