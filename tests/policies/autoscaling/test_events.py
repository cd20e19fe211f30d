"""Engines step by step: by hand under a law of round numbers, and beside the fluid model that stands for them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.autoscaling.contenders import contender
from policies.autoscaling.events import MAX_NUM_BATCHED_TOKENS, Arrival, SteppedFleet, first_tokens
from policies.autoscaling.fidelity import MAX_REQUESTS, checkable, model_error
from policies.autoscaling.first_tokens import poisson
from policies.autoscaling.loads import diurnal
from policies.autoscaling.policy import ScalingPolicy
from policies.autoscaling.replay import replay
from policies.autoscaling.scenario import Bounds, EngineModel, Load
from policies.autoscaling.simulation import simulate
from policies.capacity.step_law import PROFILES, Profile, StepLaw
from policies.capacity.traffic import AZURE_2023_CONVERSATIONS

# 10 ms a step, 100 us a prompt token, 1 ms a sequence, no KV reads: round numbers to check by hand.
ROUND = Profile(StepLaw(0.010, 100e-6, 1e-3, 0.0), num_blocks=1000, lora_load_s=0.0)
ENGINE = EngineModel(PROFILES["a100-small"], 256, 240, 1, 2.0)


def times(*arrivals: Arrival, max_batch: int = 256, num_engines: int = 1) -> list[float]:
    return [round(token.at_s, 6) for token in first_tokens(ROUND, max_batch, num_engines, arrivals)]


def test_a_lone_prompt_takes_one_step() -> None:
    """10 + 500 × 0.1 = 60 ms."""
    assert times(Arrival(1.0, 500, 500, 3)) == [1.06]


def test_who_comes_during_a_step_waits_for_it_and_shares_the_next() -> None:
    """The first: 0 to 60 ms. The second came at 10 ms; its step has its 100 tokens and one sequence: 60 + 10 + 10 + 1 = 81 ms."""
    assert times(Arrival(0.0, 500, 500, 3), Arrival(0.01, 100, 100, 3)) == [0.06, 0.081]


def test_a_long_prompt_takes_several_steps_beside_those_that_decode() -> None:
    """20,000 tokens are three steps of 8,192, 8,192 and 3,616: 3 × 10 + 2,000 ms."""
    assert -(-20_000 // MAX_NUM_BATCHED_TOKENS) == 3
    (alone,) = times(Arrival(0.0, 20_000, 10_000, 1))
    assert alone == pytest.approx(2.03)


def test_a_full_batch_makes_the_next_one_wait_until_a_sequence_ends() -> None:
    """First token at 20 ms, three more at 11 ms each: 53 ms. Then the second prompt's own step, 20 ms."""
    assert times(Arrival(0.0, 100, 100, 4), Arrival(0.001, 100, 100, 4), max_batch=1) == [0.02, pytest.approx(0.073)]


def test_a_full_kv_cache_does_too() -> None:
    """16,000 tokens: one request of 15,000 keeps another of 2,000 out."""
    small = Arrival(0.001, 100, 2000, 4)
    assert times(Arrival(0.0, 100, 15_000, 4), small) == [0.02, pytest.approx(0.073)]
    assert times(Arrival(0.0, 100, 10_000, 4), small) == [0.02, pytest.approx(0.041)]


def test_each_request_goes_to_the_engine_that_holds_the_fewest() -> None:
    assert times(Arrival(0.0, 500, 500, 3), Arrival(0.01, 100, 100, 3), num_engines=2) == [0.03, 0.06]


def test_an_engine_that_leaves_finishes_what_it_has() -> None:
    fleet = SteppedFleet(ROUND, 256, 2)
    fleet.take(Arrival(0.0, 500, 500, 3))
    fleet.take(Arrival(0.0, 400, 400, 3))
    fleet.remove()
    fleet.take(Arrival(0.01, 100, 100, 3))
    assert len(fleet.engines) == 1 and len(fleet.leaving) == 1
    assert len(list(fleet.until(10.0))) == 3 and not fleet.leaving
    assert fleet.useful_s == pytest.approx(1000 * 100e-6 + 3 * 2 * 1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), num_engines=st.integers(1, 5), req_per_s=st.floats(0.5, 60), max_batch=st.integers(1, 64))
def test_every_request_gets_one_first_token_no_sooner_than_alone(
    seed: int, num_engines: int, req_per_s: float, max_batch: int
) -> None:
    arrivals = list(poisson(req_per_s, 5, AZURE_2023_CONVERSATIONS, 0.0, random.Random(seed)))
    found = first_tokens(PROFILES["a100-small"], max_batch, num_engines, arrivals)
    assert sorted(token.arrival for token in found) == sorted(arrivals)
    law = PROFILES["a100-small"].law
    assert all(token.ttft_s >= law.base_s + token.arrival.uncached_tokens * law.prefill_s_per_token - 1e-9 for token in found)


@pytest.mark.parametrize("policy", ["ours", "work"])
def test_the_fluid_model_is_near_the_run_event_by_event(policy: str) -> None:
    """A quarter of an hour of a rise. docs/benchmarks.md has the error at full size; this bound keeps it from growing unseen."""
    bounds, load, goes_by = Bounds(4, 20), Load(diurnal(40, 900, 1)), ScalingPolicy(target_in_flight=48)
    fluid = simulate(policy, contender(policy, goes_by, bounds), load, ENGINE, bounds)
    events = replay(policy, contender(policy, goes_by, bounds), load, ENGINE, bounds)
    error = model_error(fluid, events)
    assert abs(error.slo_points) < 8 and abs(error.shed_points) < 2 and abs(error.utilization_points) < 6
    assert abs(error.ttft_p50_ratio) < 0.2 and abs(error.gpu_hours_ratio) < 0.15


def test_a_check_takes_the_busiest_hour_and_as_few_engines_as_requests() -> None:
    load, bounds = checkable(Load(diurnal(400, 86_400, 1)), Bounds(10, 100, spot=20, spot_losses_per_h=1))
    assert len(load.arrivals_per_s) == 3600 and sum(load.arrivals_per_s) == pytest.approx(MAX_REQUESTS)
    assert (bounds.spot, bounds.spot_losses_per_h) == (0, 0)
    assert bounds.maximum / bounds.minimum == pytest.approx(10, rel=0.3)
    alone, same = checkable(Load([1.0] * 60), Bounds(1, 2))
    assert (list(alone.arrivals_per_s), same) == ([1.0] * 60, Bounds(1, 2))


def test_losses_of_spot_engines_are_refused_where_they_are_not_simulated() -> None:
    bounds = Bounds(1, 4, spot=2, spot_losses_per_h=1)
    with pytest.raises(ValueError, match="fluid model alone"):
        replay("work", contender("work", ScalingPolicy(target_in_flight=32), bounds), Load([1.0] * 60), ENGINE, bounds)
