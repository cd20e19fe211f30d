"""Rates are integers, the tariff of the moment of opening holds, and a wrong tariff file is refused with all that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.billing.tariffs import ListPrice, PriceList, Rate, Tariffs

MARCH_16_MS = 1_773_619_200_000  # 2026-03-16T00:00:00Z


def document(**changes: Any) -> dict[str, Any]:
    first = {"version": "a", "effective_from": "2026-03-01", "models": {"m": {"input": 100, "cached_input": 10, "output": 300}}}
    second = {"version": "b", "effective_from": "2026-03-16", "models": {"m": {"input": 90, "cached_input": 9, "output": 270}}}
    return {"tariffs": [first, {**second, **changes}]}


def tariffs(**changes: Any) -> Tariffs:
    return Tariffs.model_validate(document(**changes))


def test_a_new_price_holds_from_midnight_utc_of_its_day_for_what_is_opened_then() -> None:
    prices = PriceList(tariffs().price_list("m"))
    assert prices.rate(MARCH_16_MS - 1) == Rate("a", 100, 10, 300)
    assert prices.rate(MARCH_16_MS) == Rate("b", 90, 9, 270)
    assert prices.rate(0).version == "a"


def test_an_adapter_adds_and_a_batch_saves_rounded_once_half_to_even() -> None:
    """125 x 1.2 x 0.5 = 75; 125 x 0.5 = 62.5, which goes to 62; 135 x 0.5 = 67.5, which goes to 68; 125 x 1 = 125 for `own`."""
    price = ListPrice("a", 0, 125, 135, 0, batch_discount_percent=50, adapter_surcharge_percent=20, adapters={"own": 0})
    found = [price.rate("", True), price.rate("x", True), price.rate("x", False), price.rate("own", False)]
    assert [(rate.input_micro_usd_per_mtok, rate.cached_input_micro_usd_per_mtok) for rate in found] == [
        (62, 68),
        (75, 81),
        (150, 162),
        (125, 135),
    ]


@given(st.integers(0, 10**12), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 100))
def test_a_discount_never_raises_a_price_and_costs_are_integers(price: int, prompt: int, output: int, percent: int) -> None:
    full = ListPrice("a", 0, price, 0, price, percent)
    one, other = (full.rate("", is_batch).cost_pico_usd(prompt, prompt // 2, output) for is_batch in (True, False))
    assert isinstance(one, int) and 0 <= one <= other


def test_a_version_is_found_for_rating_anew() -> None:
    prices = PriceList(tariffs().price_list("m"))
    assert prices.of_version("b") == Rate("b", 90, 9, 270)
    assert prices.of_version("c") is None


def test_a_model_that_the_last_tariff_does_not_price_is_a_fault() -> None:
    assert tariffs().unpriced(["m"]) == []
    assert [fault for fault in tariffs().unpriced(["n"]) if "'b', has no price of `n`" in fault]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = document(version="a", effective_from="2026-02-01", models={"m": {"input": 1, "cached_input": 2, "output": 3}})
    with pytest.raises(ValidationError) as refusal:
        Tariffs.model_validate(wrong)
    for part in ("begins 2026-02-01, must begin after 'a'", "'a' stands there 2 times", "cached input at 2, must be at most"):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_discount_percent": 101},
        {"models": {}},
        {"models": {"m": {"input": 0.5, "cached_input": 0, "output": 1}}},
        {"x": 1},
    ],
)
def test_money_is_whole_and_bounds_hold(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tariffs(**changes)
