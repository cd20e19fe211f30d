"""What a million tokens cost, by hand and by what must hold whatever the figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.capacity.operating_point import Mix, operating_point
from policies.capacity.plan import ClassDemand, Demand, decide_capacity
from policies.capacity.step_law import PROFILES
from policies.costs.unit_cost import UnitCost, unit_cost

SMALL = ClassDemand("small", 1.0, PROFILES["a100-small"], 1, 8, 256, 21.96, 57344, 32768)


def of_small(mix: Mix | None = None, utilization_ratio: float = 0.7, discount_ratio: float = 0.0) -> UnitCost:
    mix = mix or Mix()
    return unit_cost(SMALL, operating_point(SMALL.profile, mix, utilization_ratio, SMALL.max_batch), mix, discount_ratio)


def test_the_small_class_by_hand() -> None:
    """21.96 ÷ 8 = 2.745 $/h. Prompt 1,155 × 58 µs = 0.06699 s. Answer 211 × (16 µs + 1,260.5 × 57,344 ÷ 1.6e12) = 0.01291 s.
    At 0.7: 2.745 ÷ 3,600 × 0.06699 ÷ 0.7 ÷ 1,155 = 6.318e-8 $ in; × 0.01291 ÷ 0.7 ÷ 211 = 6.664e-8 $ out."""
    found = of_small()
    assert found.engine_usd_per_h == pytest.approx(2.745)
    assert found.usd_per_mtok_input == pytest.approx(0.06318, rel=1e-3)
    assert found.usd_per_mtok_output == pytest.approx(0.06664, rel=1e-3)
    assert "$21.96 ÷ 8 × 1 GPUs = $2.745 an hour" in found.arithmetic


@given(st.floats(1, 8000), st.floats(1, 2000), st.floats(0, 0.99), st.floats(0.05, 0.95))
def test_input_and_output_add_up_to_the_request(prompt: float, answer: float, cached_ratio: float, utilization: float) -> None:
    mix = Mix(prompt, answer, cached_ratio)
    found = of_small(mix, utilization)
    parts = found.usd_per_mtok_input * mix.uncached_tokens + found.usd_per_mtok_output * mix.output_tokens
    assert parts / 1e6 == pytest.approx(found.usd_per_request)


def test_a_token_is_dearer_at_half_the_utilization_and_cheaper_on_spot_and_with_a_cached_prompt() -> None:
    assert of_small(utilization_ratio=0.35).usd_per_mtok == pytest.approx(2 * of_small().usd_per_mtok)
    assert of_small(discount_ratio=0.6).usd_per_mtok == pytest.approx(0.4 * of_small().usd_per_mtok)
    assert of_small(Mix(cached_ratio=0.5)).usd_per_mtok < of_small().usd_per_mtok


def test_the_capacity_plan_says_the_same_but_for_whole_nodes_and_spares() -> None:
    """`flotilla capacity` pays for whole nodes, and with one region of one there is no reserve for a lost one."""
    plan = decide_capacity(Demand(10_000_000, 100_000, Mix()), [SMALL], 1, 0.7, spares=0)
    usd = plan.classes[0].usd_per_mtok
    assert usd is not None and usd == pytest.approx(of_small().usd_per_mtok, rel=0.05) and usd >= of_small().usd_per_mtok
