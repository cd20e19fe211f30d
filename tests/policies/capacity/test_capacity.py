"""From demand to engines: the arithmetic by hand, and what must hold whatever is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.capacity.operating_point import Mix, max_uncached_tokens, operating_point, ttft_s, work_s
from policies.capacity.plan import ClassDemand, Demand, Plan, carries, decide_capacity
from policies.capacity.step_law import PROFILES, Profile, StepLaw

# 10 ms a step, 100 us a prompt token, 50 us a sequence, no KV reads: round numbers to check by hand.
ROUND = Profile(StepLaw(0.010, 100e-6, 50e-6, 0.0), num_blocks=10_000, lora_load_s=0.0)
MIX = Mix(input_tokens=1000, output_tokens=200)


def demanded(profile: Profile = ROUND, share: float = 1.0, **changed: object) -> ClassDemand:
    known = {
        "name": "small",
        "share_ratio": share,
        "profile": profile,
        "gpus_per_engine": 1,
        "gpus_per_node": 8,
        "max_batch": 256,
        "usd_per_node_h": 20.0,
        "kv_bytes_per_token": 56 * 1024,
        "context_window_tokens": 32_768,
    }
    return ClassDemand(**{**known, **changed})  # type: ignore[arg-type]


def test_an_operating_point_by_hand() -> None:
    """g = 1000 × 100 us + 200 × 50 us = 0.11 s. At 50 %: λ = 0.5 / 0.11 = 4.545/s, T = 10 ms / 0.5 = 20 ms,
    B = λ · 200 · T = 18.2, TTFT = 10 + 20 + 100 = 130 ms."""
    point = operating_point(ROUND, MIX, 0.5, max_batch=256)
    assert work_s(ROUND, MIX) == pytest.approx(0.11)
    assert point.req_per_s == pytest.approx(0.5 / 0.11)
    assert point.step_s == pytest.approx(0.020)
    assert point.batch == pytest.approx(0.5 / 0.11 * 200 * 0.020)
    assert point.ttft_p50_s == pytest.approx(0.130)
    assert (point.bound_by, point.utilization_ratio) == ("utilization", pytest.approx(0.5))


@pytest.mark.parametrize(
    ("max_batch", "num_blocks", "bound_by"),
    [(10, 10_000, "batch"), (256, 500, "kv cache"), (256, 10_000, "utilization")],
)
def test_what_is_full_first_bounds_an_engine(max_batch: int, num_blocks: int, bound_by: str) -> None:
    profile = Profile(ROUND.law, num_blocks, 0.0)
    point = operating_point(profile, MIX, 0.7, max_batch)
    assert point.bound_by == bound_by
    assert point.utilization_ratio <= 0.7 + 1e-9 and point.kv_utilization_ratio <= 0.9 + 1e-9


def test_a_first_token_waits_for_half_a_step_its_own_step_and_its_prompt() -> None:
    """20 ms steps: 10 + 20 + 500 × 0.1 = 80 ms; 200 ms leave 200 - 30 = 170 ms, 1,700 tokens; 10,000 tokens are two steps."""
    assert ttft_s(ROUND, 0.020, 500) == pytest.approx(0.080)
    assert max_uncached_tokens(ROUND, 0.020, 0.2) == 1700
    assert max_uncached_tokens(ROUND, 0.5, 0.2) == 0
    assert ttft_s(ROUND, 0.020, 10_000) == pytest.approx(0.010 + 0.040 + 1.0)


@pytest.mark.parametrize(("num_regions", "engines"), [(1, 23), (2, 23), (3, 12)])
def test_regions_carry_the_share_of_a_lost_one(num_regions: int, engines: int) -> None:
    """6,000 a minute = 100 a second; one engine does 4.545 at 50 %. One region, or two of which one is lost: 100 / 4.545 = 22
    and a spare. Three: 50 / 4.545 = 11 and a spare."""
    plan = decide_capacity(Demand(1_000_000, 6000, MIX), [demanded()], num_regions, 0.5, spares=1)
    (small,) = plan.classes
    assert small.engines_per_region == engines
    assert small.nodes_per_region == -(-engines // 8) and small.usd_per_h_per_region == small.nodes_per_region * 20.0
    assert plan.gpus == num_regions * engines


def test_kv_of_a_full_context_counts_kv_heads() -> None:
    """Llama-3.3-70B: 80 layers × 2 × 8 heads × 128 × 2 bytes = 320 KiB a token; 32,768 of them are 10 GiB, not 80."""
    plan = decide_capacity(Demand(1, 60, MIX), [demanded(kv_bytes_per_token=320 * 1024)], 1)
    assert plan.classes[0].kv_gib_per_full_context == 10.0


def test_a_class_without_a_price_leaves_dollars_out() -> None:
    assert decide_capacity(Demand(1, 60, MIX), [demanded(usd_per_node_h=None)], 2).usd_per_h is None


@pytest.mark.parametrize(
    ("classes", "num_regions", "expected"),
    [([demanded(share=0.5)], 2, "add up to 0.5"), ([demanded()], 0, "num_regions")],
)
def test_demands_that_make_no_sense_are_refused(classes: list[ClassDemand], num_regions: int, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        decide_capacity(Demand(1, 60, MIX), classes, num_regions)


def test_full_utilization_is_refused() -> None:
    with pytest.raises(ValueError, match="a step never ends"):
        operating_point(ROUND, MIX, 1.0, 256)


demands = st.builds(
    Demand,
    users_per_day=st.just(10_000_000),
    req_per_min=st.floats(1, 1e6),
    mix=st.builds(Mix, input_tokens=st.floats(1, 30_000), output_tokens=st.floats(1, 4000), cached_ratio=st.floats(0, 0.99)),
)


def planned(demand: Demand, profile: str, num_regions: int) -> Plan:
    return decide_capacity(demand, [demanded(PROFILES[profile])], num_regions)


@given(demand=demands, more=st.floats(1, 10), profile=st.sampled_from(sorted(PROFILES)), num_regions=st.integers(1, 5))
def test_more_load_never_needs_fewer_engines(demand: Demand, more: float, profile: str, num_regions: int) -> None:
    loaded = Demand(demand.users_per_day, demand.req_per_min * more, demand.mix)
    before, after = planned(demand, profile, num_regions), planned(loaded, profile, num_regions)
    assert after.classes[0].engines_per_region >= before.classes[0].engines_per_region


@given(demand=demands, profile=st.sampled_from(sorted(PROFILES)), num_regions=st.integers(2, 5))
def test_what_is_planned_carries_the_peak_whichever_region_is_lost(demand: Demand, profile: str, num_regions: int) -> None:
    (item,) = planned(demand, profile, num_regions).classes
    floors = {f"region-{number}": item.engines_per_region for number in range(num_regions)}
    assert all(carries(floors, item.point.req_per_s, demand.req_per_min).values())


@pytest.mark.parametrize(
    ("floors", "committed", "expected"),
    [
        ({"a": 10, "b": 10}, 600, {"a": True, "b": True}),
        ({"a": 10, "b": 9}, 600, {"a": False, "b": True}),
        ({"a": 100}, 600, {"a": False}),
    ],
)
def test_a_lost_region_is_carried_by_the_floors_of_the_others(
    floors: dict[str, int], committed: float, expected: dict[str, bool]
) -> None:
    """An engine of 1 request a second: 10 carry 600 a minute."""
    assert carries(floors, 1.0, committed) == expected
