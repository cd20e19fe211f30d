"""The drill of limits in its short form. Its figures of time are shown and decide nothing here."""

from __future__ import annotations

import pytest

from policies.admission.limits import Limits
from tests.drills import drill_limits
from tests.drills.limits_truth import Ran, Truth, rate_over

SHORT = ["--operations", "8000", "--cancels", "200", "--lease", "3", "--outage", "3"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_is_let_in_beyond_limits_and_nothing_stays_reserved() -> None:
    found = {row.name: row for row in drill_limits.drill(drill_limits.parse(SHORT))}
    for name in ("storm_num_over_admitted", "storm_num_decided_alone", "cancels_held_nano_usd_left"):
        assert found[name].measured == 0, name
    for name in ("stopped_budget_overshoot_nano_usd", "killed_budget_overshoot_nano_usd"):
        assert found[name].holds, name
    assert found["cancels_num_reservations_left_after_3_s"].measured == 0
    assert found["control_num_over_admitted"].measured > 0, "the check has teeth"


def ran(at_s: float, tokens: int, reserved: int | None = None, lasts_s: float = 0.1) -> Ran:
    used = (1, tokens, tokens, 0)
    return Ran(at_s, at_s + lasts_s, (1, reserved or tokens, reserved or tokens, 0), used, 5)


@pytest.mark.parametrize(
    ("requests", "over"),
    [
        ([ran(0, 60), ran(0, 40)], 0),
        ([ran(0, 60), ran(0, 52)], 11),  # 112 - 100 - 0.2 that refilled in 0.1 s - 1 for rounding
        ([ran(0, 100), ran(30, 50)], 0),
        ([ran(0, 100), ran(30, 60)], 9),  # 160 - 100 - 50.2 - 1
        ([ran(0, 10), ran(600, 60), ran(600, 60)], 19),  # an idle hour before is no credit
    ],
)
def test_the_check_finds_what_is_beyond_a_rate(requests: list[Ran], over: int) -> None:
    """100 a minute."""
    assert rate_over(requests, 1, 100) == over


def test_the_check_finds_who_ran_beside_too_many_and_spent_too_much() -> None:
    truth = Truth({"t": [ran(0, 1), ran(1, 1)]}, {"t": 3})
    limits = Limits(concurrency=2, budget_day_micro_usd=1)
    assert truth.over({"t": limits}) == {"t/concurrency": 1, "t/budget": 0}
    truth.ran["t"] += [ran(2, 1)] * 200
    assert truth.over({"t": limits})["t/budget"] == 202 * 5 - 1000
