"""A difference between engines and bills is explained by how requests ended, or it is not explained."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.billing.reconciliation import ABORT_TOKENS, Billed, Life, Look, reconcile

HOUR = 3_600_000


def look(at_ms: int, prompt: int, output: int, *, engine: str = "e0", epoch_ms: int = 1) -> Look:
    return Look(engine, "small", epoch_ms, at_ms, prompt, output)


def row(**changes: Any) -> Billed:
    values: dict[str, Any] = {
        "engines": ("e0",),
        "opened_at_ms": HOUR + 10,
        "closed_at_ms": HOUR + 20,
        "counted_prompt_tokens": 100,
        "prompt_tokens": 100,
        "output_tokens": 10,
        "is_served": True,
        "is_whole": True,
    }
    return Billed(**{**values, **changes})


def one(looks: list[Look], *rows: Billed) -> Life:
    (life,) = reconcile(looks, rows, HOUR, 2 * HOUR)
    return life


WINDOW = [look(HOUR, 1000, 500), look(2 * HOUR - 1, 1100, 510)]


@pytest.mark.parametrize(
    ("billed", "verdict", "why"),
    [
        (row(), "exact", {}),
        (row(output_tokens=5, is_whole=False), "explained", {"aborted": 1}),
        (row(prompt_tokens=0, output_tokens=0, is_served=False, is_whole=False), "explained", {"not_served": 1}),
        (row(opened_at_ms=HOUR - 10), "explained", {"straddling": 1}),
        (row(closed_at_ms=2 * HOUR + 1), "explained", {"straddling": 1}),
        (row(engines=("e1", "e0")), "explained", {"resumed": 1}),
        (row(prompt_tokens=50, counted_prompt_tokens=50, num_choices=2), "explained", {"choices": 1}),  # 2 x 50 were computed
        (row(prompt_tokens=50, counted_prompt_tokens=50, num_choices=3), "unexplained", {"choices": 1}),  # 3 x 50 must have been
        (row(num_choices=2), "unexplained", {"choices": 1}),  # 2 x 100 must have been
        (
            row(num_choices=2, output_tokens=5, is_whole=False),
            "explained",
            {"choices": 1, "aborted": 1},
        ),  # one answer never began
        (
            row(prompt_tokens=40, counted_prompt_tokens=40, num_choices=2, is_whole=False),
            "unexplained",
            {"choices": 1, "aborted": 1},
        ),
        (row(output_tokens=9), "unexplained", {}),
        (row(output_tokens=11), "unexplained", {}),
        (row(prompt_tokens=99), "unexplained", {}),
        (row(opened_at_ms=10, closed_at_ms=20), "unexplained", {}),
        (row(engines=("e1",)), "unexplained", {}),
    ],
)
def test_an_engine_that_counted_100_and_10_is_explained_by_a_row(billed: Billed, verdict: str, why: dict[str, int]) -> None:
    life = one(WINDOW, billed)
    assert (life.verdict, life.explained_by) == (verdict, why)


def test_tokens_that_nobody_billed_and_tokens_that_no_engine_counted_are_told_apart() -> None:
    more = one([look(HOUR, 0, 0), look(HOUR + 1000, 300, 30)], row())
    less = one([look(HOUR, 0, 0), look(HOUR + 1000, 0, 0)], row())
    assert (more.prompt.unexplained, more.output.unexplained) == (200, 20)
    assert (less.prompt.unexplained, less.output.unexplained) == (-100, -10)


def test_a_probe_past_the_gateways_is_not_explained_by_an_abort_beyond_what_one_takes() -> None:
    aborted = row(is_whole=False)
    assert one([look(HOUR, 0, 0), look(HOUR + 1000, 100, 10 + ABORT_TOKENS)], aborted).verdict == "explained"
    assert one([look(HOUR, 0, 0), look(HOUR + 1000, 100, 11 + ABORT_TOKENS)], aborted).output.unexplained == 1


@pytest.mark.parametrize("second", [look(HOUR + 300, 5, 1, epoch_ms=2), look(HOUR + 300, 5, 1)])
def test_an_engine_that_started_again_is_another_life(second: Look) -> None:
    """By its epoch, or where it tells none, by counters that fell."""
    looks = [look(HOUR, 900, 90), look(HOUR + 200, 1000, 100), second, look(HOUR + 400, 105, 11, epoch_ms=second.epoch_ms)]
    lives = reconcile(looks, [row(), row(opened_at_ms=HOUR + 310, closed_at_ms=HOUR + 320)], HOUR, 2 * HOUR)
    assert [(life.prompt.counted, life.verdict) for life in lives] == [(100, "exact"), (100, "exact")]


def test_a_life_that_was_looked_at_once_says_nothing() -> None:
    assert reconcile([look(HOUR + 1, 10, 10)], [row()], HOUR, 2 * HOUR) == []
    assert reconcile([look(HOUR - 2, 0, 0), look(HOUR - 1, 10, 10)], [row()], HOUR, 2 * HOUR) == []


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 500), st.booleans(), st.integers(0, ABORT_TOKENS)), max_size=20))
def test_engines_that_count_what_gateways_received_are_always_explained(requests: list[tuple[int, int, bool, int]]) -> None:
    rows = [row(prompt_tokens=prompt, output_tokens=output, is_whole=is_whole) for prompt, output, is_whole, _ in requests]
    counted_output = sum(output + (0 if is_whole else more) for _, output, is_whole, more in requests)
    life = one([look(HOUR, 7, 7), look(HOUR + 999, 7 + sum(r[0] for r in requests), 7 + counted_output)], *rows)
    assert life.verdict != "unexplained"
