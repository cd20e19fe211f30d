"""What comes of a rule over a load: by hand where it can be, and what must hold of any."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.autoscaling.contenders import CONTENDERS, contender
from policies.autoscaling.first_tokens import FirstTokens, Spread
from policies.autoscaling.fleet import Fleet
from policies.autoscaling.loads import LOADS, replayed
from policies.autoscaling.outcome import Outcome, Tally, quantile
from policies.autoscaling.policy import ScalingPolicy
from policies.autoscaling.rules import RULES, Observed, Targets
from policies.autoscaling.scenario import Bounds, EngineModel, Load
from policies.autoscaling.simulation import simulate
from policies.capacity.operating_point import Mix, operating_point
from policies.capacity.step_law import PROFILES
from policies.capacity.traffic import AZURE_2023_CONVERSATIONS, BUCKETS_TOKENS, bucket_of, mix_of

ENGINE = EngineModel(PROFILES["a100-small"], max_batch=256, cold_start_s=240, gpus=1, usd_per_h=2.0)
TARGETS = Targets(in_flight=32)
POLICY = ScalingPolicy(target_in_flight=64, step_down=8, down_window_s=600, promise_ratio=0.5, ttft_p99_target_s=4)


def run(name: str, arrivals: list[float], minimum: int = 1, maximum: int = 100, **further: object) -> Outcome:
    bounds = Bounds(minimum, maximum, **{key: further.pop(key) for key in list(further) if key.startswith("spot")})  # type: ignore[arg-type]
    return simulate(name, contender(name, POLICY, bounds), Load(arrivals), ENGINE, bounds, **further)  # type: ignore[arg-type]


def test_a_steady_load_settles_where_the_closed_form_says() -> None:
    """10 engines at 60 requests a second: 6 each, λ · g = 6 × 0.080 = 48 % useful, as `operating_point` has it at that λ."""
    point = operating_point(ENGINE.profile, mix_of(AZURE_2023_CONVERSATIONS), 0.48, 256)
    outcome = run("cpu", [10 * point.req_per_s] * 3600, minimum=10, maximum=10)
    assert outcome.utilization_ratio == pytest.approx(0.48, rel=0.02)
    assert outcome.ttft_p50_s == pytest.approx(point.ttft_p50_s, rel=0.2), "its mean request is longer than its median"
    assert (outcome.shed_ratio, outcome.num_changes) == (0.0, 0)
    assert outcome.gpu_hours == pytest.approx(10) and outcome.usd == pytest.approx(20)


def test_nothing_to_do_is_nothing_wrong() -> None:
    outcome = run("work", [0.0] * 600, minimum=3)
    assert (outcome.slo_ratio, outcome.shed_ratio, outcome.ttft_p99_s) == (1.0, 0.0, 0.0)
    assert set(outcome.engines) == {3}


def test_more_than_all_engines_can_do_is_refused_and_counted() -> None:
    outcome = run("ours", [1000.0] * 1200, minimum=2, maximum=2)
    assert 0.8 < outcome.shed_ratio < 1 and outcome.utilization_ratio <= 1


@pytest.mark.parametrize(
    ("rule", "observed", "current", "wish"),
    [
        ("work", Observed(4, running=300, waiting=20, ttft_s=0.1), 4, 10),
        ("system-design", Observed(4, 300, 20, ttft_s=0.31), 4, 6),  # over 1.5 × 200 ms: half as many again
        ("system-design", Observed(4, 300, 0, ttft_s=0.09), 4, 4),  # 3.2, up to whole engines
        ("system-design", Observed(10, 300, 0, ttft_s=0.09), 10, 8),
        ("system-design", Observed(4, 300, 20, ttft_s=0.09), 4, 4),  # a queue of 20 keeps it
        ("queue", Observed(4, 300, 20, 0.1), 4, 4),
        ("queue", Observed(4, 300, 0, 0.1), 4, 0),  # a full batch is no queue
        ("cpu", Observed(4, 0, 0, 0.1), 4, 2),
        ("cpu", Observed(4, 1000, 1000, 9.0), 4, 2),  # CPU sees nothing of it
    ],
)
def test_a_rule_wishes_for(rule: str, observed: Observed, current: int, wish: int) -> None:
    assert RULES[rule](observed, current, TARGETS) == wish


def test_our_policy_keeps_the_promise_no_worse_than_each_baseline_on_each_load() -> None:
    """What each pays for it is in the table of docs/benchmarks.md, and is not asserted here."""
    for load in LOADS.values():
        arrivals = load(200.0, 4 * 3600, 1)
        outcomes = {name: run(name, arrivals, minimum=5, maximum=60) for name in CONTENDERS}
        assert outcomes["ours"].kept_ratio >= max(outcome.kept_ratio for outcome in outcomes.values()) - 0.01


def test_silent_metrics_shrink_nothing_and_grow_nothing() -> None:
    arrivals = [*([200.0] * 3600), *([1.0] * 3600)]
    outcome = run("ours", arrivals, minimum=2, silent=range(3600, 7200))
    assert len(set(outcome.engines[60:])) == 1
    heard = run("ours", arrivals, minimum=2)
    assert heard.engines[-1] < outcome.engines[-1]


@settings(max_examples=20, deadline=None)
@given(rule=st.sampled_from(CONTENDERS), peak=st.floats(0, 500), minimum=st.integers(1, 5), room=st.integers(0, 30))
def test_engines_stay_within_their_bounds_and_shares_within_one(rule: str, peak: float, minimum: int, room: int) -> None:
    outcome = run(rule, LOADS["spike"](peak, 1200, 2), minimum, minimum + room)
    assert all(minimum <= size <= minimum + room for size in outcome.engines)
    assert 0 <= outcome.slo_ratio <= 1 and 0 <= outcome.shed_ratio <= 1 and 0 <= outcome.utilization_ratio <= 1 + 1e-9


def test_a_recorded_load_is_scaled_by_its_busiest_minute() -> None:
    """120 arrivals in the second minute, 60 in the first: a peak of 10 a second makes them 10 and 5."""
    times = list(range(60)) + [60 + index / 2 for index in range(120)]
    arrivals = replayed(times, 10.0)
    assert sum(arrivals[:60]) == pytest.approx(300) and sum(arrivals[60:]) == pytest.approx(600)


@pytest.mark.parametrize("times", [[], [1.0, 2.0]])
def test_too_short_a_recording_is_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 60 s"):
        replayed(times, 1.0)


@pytest.mark.parametrize("load", LOADS)
def test_a_seeded_load_is_the_same_each_time(load: str) -> None:
    assert LOADS[load](20.0, 600, 3) == LOADS[load](20.0, 600, 3) != LOADS[load](20.0, 600, 4)


def test_spot_comes_last_costs_less_and_goes_by_itself() -> None:
    """12 engines, 4 of them on spot at 60 % off and never lost: an hour is 8 × 2 + 4 × 0.8 = 19.20 dollars."""
    kept = run("cpu", [20.0] * 3600, minimum=12, maximum=12, spot=4, spot_discount_ratio=0.6)
    assert kept.usd == pytest.approx(19.2) and kept.num_spot_losses == 0
    lossy = run("work", [200.0] * 7200, minimum=8, maximum=40, spot=32, spot_losses_per_h=2.0)
    assert lossy.num_spot_losses > 5 and 0 < lossy.lost_ratio < 0.05
    assert min(lossy.engines) >= 8, "what does not run on spot stays"


def test_engines_on_spot_are_those_beyond_the_ones_that_stay() -> None:
    fleet = Fleet(Bounds(minimum=3, maximum=10, spot=4), cold_start_s=10)
    for size, on_spot in ((3, 0), (6, 0), (7, 1), (10, 4)):
        fleet.ready = size
        assert fleet.on_spot == on_spot


def test_starting_engines_go_before_those_that_serve() -> None:
    class Wanted:
        sizes = iter((6, 4, 2))

        def size(self, observed: Observed | None, current: int, now_s: float) -> int:
            return next(self.sizes)

    fleet = Fleet(Bounds(1, 10), cold_start_s=100)
    fleet.ready = 3
    assert (fleet.sync(Wanted(), None, 0), fleet.size, fleet.ready) == (0, 6, 3)
    assert (fleet.sync(Wanted(), None, 15), fleet.size, fleet.ready) == (0, 4, 3), "two that start are called off"
    assert (fleet.sync(Wanted(), None, 30), fleet.size, fleet.ready) == (1, 2, 2)
    assert fleet.advance(100) == 0 and fleet.num_changes == 3


def test_time_in_a_queue_is_added_to_the_first_token_by_hand() -> None:
    """At batch 1 all take 0.1 s, at 3 half of them 0.3: between, at 2, a quarter. Behind a queue of 0.1 s that is 0.2 and 0.4."""
    calm = Spread({128: (0.1, 0.1)}, (0.1, 0.1))
    busy = Spread({128: (0.1, 0.3)}, (0.1, 0.3))
    tally = Tally(FirstTokens((1.0, 3.0), (calm, busy), reachable_ratio=1.0))
    tally.add(2.0, 0.0, 100)
    assert tally.in_time(0.2) == pytest.approx(75)
    tally.add(3.0, 0.1, 10)
    assert tally.in_time(0.2) == pytest.approx(80) and tally.in_time(0.15) == pytest.approx(75)
    assert tally.ttft_s(2.0, 1.0)[0] == pytest.approx(1.15)


@pytest.mark.parametrize(
    ("met", "share", "expected"),
    [([], 0.5, 0.0), ([(1.0, 1.0), (3.0, 1.0)], 0.5, 1.0), ([(3.0, 1.0), (1.0, 9.0)], 0.95, 3.0), ([(1.0, 0.0)], 0.5, 0.0)],
)
def test_quantiles_of_numbers_of_requests(met: list[tuple[float, float]], share: float, expected: float) -> None:
    assert quantile(met, share) == expected


@pytest.mark.parametrize(("tokens", "bucket"), [(0, 128), (128, 128), (129, 512), (2048, 2048), (2049, 8192), (99_999, 32_768)])
def test_a_prompt_belongs_to_the_first_bucket_that_holds_it(tokens: float, bucket: int) -> None:
    assert bucket_of(tokens) == bucket and bucket in BUCKETS_TOKENS


def test_the_sample_of_conversations_has_the_means_of_its_trace() -> None:
    """1,154.7 in and 211.1 out over all 19,366 requests."""
    mean = mix_of(AZURE_2023_CONVERSATIONS)
    assert (mean.input_tokens, mean.output_tokens) == (pytest.approx(1154.7, rel=0.001), pytest.approx(211.1, rel=0.001))
    assert (Mix().input_tokens, Mix().output_tokens) == (pytest.approx(mean.input_tokens, rel=0.001), pytest.approx(211))
