"""What comes of a rule over a load: by hand where it can be, and what must hold of any."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.autoscaling.loads import LOADS, replayed
from policies.autoscaling.rules import RULES, Observed, Targets
from policies.autoscaling.simulation import EngineModel, Limits, Outcome, simulate
from policies.capacity.operating_point import Mix, operating_point
from policies.capacity.step_law import PROFILES

ENGINE = EngineModel(PROFILES["a100-small"], Mix(), max_batch=256, cold_start_s=240, gpus=1, usd_per_h=2.0)
TARGETS = Targets(in_flight=32)


def run(name: str, arrivals: list[float], minimum: int = 1, maximum: int = 100, **further: object) -> Outcome:
    return simulate(name, RULES[name], arrivals, ENGINE, Limits(minimum, maximum), TARGETS, **further)  # type: ignore[arg-type]


def test_a_steady_load_settles_where_the_closed_form_says() -> None:
    """10 engines at 60 requests a second: 6 each, λ · g = 6 × 0.080 = 48 % useful, as `operating_point` has it at that λ."""
    point = operating_point(ENGINE.profile, ENGINE.mix, 0.48, 256)
    outcome = run("cpu", [10 * point.req_per_s] * 3600, minimum=10, maximum=10)
    assert outcome.utilization_ratio == pytest.approx(0.48, rel=0.02)
    assert outcome.ttft_p50_s == pytest.approx(point.ttft_p50_s, rel=0.02)
    assert (outcome.shed_ratio, outcome.num_changes) == (0.0, 0)
    assert outcome.gpu_hours == pytest.approx(10) and outcome.usd == pytest.approx(20)


def test_nothing_to_do_is_nothing_wrong() -> None:
    outcome = run("work", [0.0] * 600, minimum=3)
    assert (outcome.slo_ratio, outcome.shed_ratio, outcome.ttft_p99_s) == (1.0, 0.0, 0.0)
    assert set(outcome.engines) == {3}


def test_more_than_all_engines_can_do_is_refused_and_counted() -> None:
    outcome = run("work", [1000.0] * 1200, minimum=2, maximum=2)
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


def test_the_deployed_rule_keeps_the_promise_better_than_each_baseline_on_each_load() -> None:
    """It pays for it: dollars are in the table of docs/benchmarks.md, and are not asserted here."""
    for load in LOADS.values():
        arrivals = load(200.0, 4 * 3600, 1)
        outcomes = {name: run(name, arrivals, minimum=5, maximum=60) for name in RULES}
        assert outcomes["work"].slo_ratio == max(outcome.slo_ratio for outcome in outcomes.values())


def test_silent_metrics_shrink_nothing_and_grow_nothing() -> None:
    arrivals = [*([200.0] * 3600), *([1.0] * 3600)]
    outcome = run("work", arrivals, minimum=2, silent=range(3600, 7200))
    assert len(set(outcome.engines[60:])) == 1
    heard = run("work", arrivals, minimum=2)
    assert heard.engines[-1] < outcome.engines[-1]


@settings(max_examples=20, deadline=None)
@given(peak=st.floats(1, 300), more=st.floats(1, 3), load=st.sampled_from(sorted(LOADS)))
def test_more_load_never_ends_with_fewer_engines(peak: float, more: float, load: str) -> None:
    arrivals = LOADS[load](peak, 1800, 1)
    before = run("work", arrivals)
    after = run("work", [number * more for number in arrivals])
    # A sync may fall on either side of the tolerance; beyond that, more is never less.
    assert all(late >= early - 1 for early, late in zip(before.engines, after.engines, strict=True))


@settings(max_examples=20, deadline=None)
@given(rule=st.sampled_from(sorted(RULES)), peak=st.floats(0, 500), minimum=st.integers(1, 5), room=st.integers(0, 30))
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
