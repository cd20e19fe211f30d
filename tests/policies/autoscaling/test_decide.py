"""The decision that all consumers share: by hand where it can be, and what must hold of any load.

The tables name the incident that each row prevents; the arithmetic stands beside the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.autoscaling.autoscaler import Autoscaler
from policies.autoscaling.decide import Data, Need, Observed, Reason, Sample, ScaleDecision, Signal, Size, decide_replicas
from policies.autoscaling.policy import Limits, ScalingPolicy

POLICY = ScalingPolicy(target_in_flight=32)
LIMITS = Limits(floor=2, max_base=60, max_overflow=24)
SYNC_S = 15.0
NOW_S = 10_000.0


def sample(at_s: float = NOW_S, in_flight: float = 0, ready: int = 10, heard: int | None = None, **further: float) -> Sample:
    return Sample(at_s, ready, ready if heard is None else heard, in_flight, 0, **further)


def steady(in_flight: float, ready: int = 10, over_s: float = 1200, **further: float) -> list[Sample]:
    return [sample(NOW_S - ago * SYNC_S, in_flight, ready, **further) for ago in range(int(over_s / SYNC_S), -1, -1)]


def needed(replicas: float, over_s: float = 1200) -> list[Need]:
    return [Need(NOW_S - ago * SYNC_S, replicas) for ago in range(int(over_s / SYNC_S), 0, -1)]


def decide(
    samples: Sequence[Sample],
    size: int = 10,
    needs: Sequence[Need] = (),
    policy: ScalingPolicy = POLICY,
    limits: Limits = LIMITS,
    sizes: Sequence[Size] | None = None,
) -> ScaleDecision:
    return decide_replicas(Observed(samples, [Size(0, size)] if sizes is None else sizes, needs), policy, limits, NOW_S)


def trajectory(
    loads: Iterable[float | None], start: int = 10, policy: ScalingPolicy = POLICY, limits: Limits = LIMITS, **further: float
) -> list[ScaleDecision]:
    """Decisions a sync apart, where engines serve at once and None is a moment without a sample."""
    autoscaler, decisions = Autoscaler(policy, [Size(0, start)]), list[ScaleDecision]()
    size = start
    for index, load in enumerate(loads):
        if load is not None:
            autoscaler.see(sample(index * SYNC_S, load, size, **further))
        decisions.append(autoscaler.decide(limits, index * SYNC_S))
        size = decisions[-1].replicas
    return decisions


@pytest.mark.parametrize(
    ("in_flight", "size", "replicas", "reason"),
    [
        (320, 10, 10, Reason.ENOUGH),  # 10.0: exactly full
        (321, 10, 11, Reason.NEED),  # 10.03, up to whole engines
        (380, 10, 12, Reason.NEED),  # 11.9
        (500, 10, 12, Reason.PACE),  # 15.6; two a minute, and 15.6 / 1.5 = 10 asks for no panic
        (1300, 10, 20, Reason.PANIC),  # 40.6 / 1.5 = 27, at most twice as many
        (700, 10, 14, Reason.PANIC),  # 21.9 / 1.5 = 14.6
        (10_000, 70, 84, Reason.CEILING),
        (0, 1, 2, Reason.FLOOR),  # below the floor one goes there at once
        (0, 2, 2, Reason.FLOOR),
        (290, 10, 10, Reason.ENOUGH),  # 9.06, and a tenth of room makes 10
    ],
)
def test_a_steady_load_needs(in_flight: float, size: int, replicas: int, reason: Reason) -> None:
    decision = decide(steady(in_flight, ready=size), size, needed(in_flight / 32))
    assert (decision.replicas, decision.reason, decision.before, decision.data) == (replicas, reason, size, Data.FRESH)
    assert decision.needs[Signal.IN_FLIGHT] == pytest.approx(in_flight / 32) and decision.is_known


@pytest.mark.parametrize(
    ("signals", "signal", "need"),
    [
        ({"kv_ratio": 0.96}, Signal.KV, 12.0),  # 0.96 × 10 / 0.8
        ({"tokens_per_s": 66_000}, Signal.TOKENS, 11.0),  # 6,000 each
        ({"ttft_p99_s": 1.4}, Signal.TTFT_P99, 14.0),  # 1.4 × 10
        ({"ttft_p99_s": 9.0}, Signal.TTFT_P99, 20.0),  # no more than twice
        ({"slo_ratio": 0.76}, Signal.PROMISE, 12.5),  # 0.95 / 0.76 × 10
    ],
)
def test_each_signal_asks_for_engines(signals: dict[str, float], signal: Signal, need: float) -> None:
    policy = POLICY.model_copy(update={"target_tokens_per_s": 6000.0})
    decision = decide(steady(200, **signals), policy=policy)
    assert decision.strongest is signal and decision.need == pytest.approx(need) and decision.replicas > 10


def test_late_first_tokens_of_idle_engines_ask_for_nothing() -> None:
    """A prompt of 30,000 tokens is as late on the eleventh engine."""
    decision = decide(steady(100, ttft_p99_s=9.0, slo_ratio=0.1), needs=needed(3.1))
    assert decision.needs[Signal.TTFT_P99] == decision.needs[Signal.PROMISE] == 0 and decision.reason is Reason.SURPLUS


def test_late_first_tokens_do_not_ask_again_while_the_new_engines_start() -> None:
    """The system design's function, at each look: 10, 15, 23, 35, 53 ... before the first new engine serves."""
    sizes = [Size(0, 10), Size(NOW_S - 90, 20)]
    decision = decide(steady(310, ready=10, ttft_p99_s=9.0), sizes=sizes, needs=needed(20))
    assert decision.replicas == 20


def test_the_need_is_foreseen_for_the_end_of_a_cold_start() -> None:
    """From 100 by 1 a second: at the end 400, mean of the newer half 325, of the older 175: 1 a second, so
    325 + 75 + 240 = 640, over 32: 20."""
    samples = [sample(NOW_S - ago, 400 - ago) for ago in range(300, -1, -15)]
    policy = POLICY.model_copy(update={"lead_time_s": 240.0})
    decision = decide(samples, policy=policy)
    assert decision.strongest is Signal.FORECAST and decision.need == pytest.approx(20, rel=0.05)
    falling = [replace(it, running=800 - it.running) for it in samples]
    assert decide(falling, policy=policy).needs[Signal.FORECAST] < 550 / 32, "what falls is not foreseen to fall further"


@pytest.mark.parametrize(
    ("samples", "needs", "reason"),
    [
        (steady(32, over_s=1200), needed(1), Reason.SURPLUS),
        (steady(32), needed(9.5), Reason.COOLING),  # 9.5 was needed within the quarter of an hour: 10.45 keeps ten
        (steady(32), needed(1, over_s=600), Reason.COOLING),  # nobody knows of the time before
        (steady(32), [need for need in needed(1) if not NOW_S - 400 < need.at_s < NOW_S - 300], Reason.COOLING),  # nor of a gap
        ([*steady(32)[:-1], sample(in_flight=8, heard=7)], needed(1), Reason.PARTIAL),  # 7 of 10 heard
        ([*steady(32)[:-1], sample(in_flight=8, ready=7)], needed(1), Reason.LOST),  # a spot node went
        (
            [*steady(170, slo_ratio=1.0)[:-1], sample(in_flight=170, slo_ratio=0.9)],
            needed(1),
            Reason.PROMISE,
        ),  # busy, and late just now
        ([sample(NOW_S - 60, 0)], needed(1), Reason.SILENT),
        ([sample(in_flight=0, heard=0)], needed(1), Reason.SILENT),
        ([], needed(1), Reason.SILENT),
        ([*steady(32)[:-1], sample(ready=0)], needed(1), Reason.PARTIAL),  # all refuse, so no queue grows
    ],
)
def test_a_size_goes_only_where_nothing_speaks_against_it(samples: list[Sample], needs: list[Need], reason: Reason) -> None:
    decision = decide(samples, needs=needs)
    assert (decision.reason, decision.replicas) == (reason, 9 if reason is Reason.SURPLUS else 10)
    assert decision.is_known is (reason is not Reason.SILENT)


def test_one_goes_every_five_minutes() -> None:
    recent = [Size(0, 11), Size(NOW_S - 200, 10)]
    assert decide(steady(32), needs=needed(1), sizes=recent).reason is Reason.COOLING
    longer = [Size(0, 11), Size(NOW_S - 301, 10)]
    assert decide(steady(32), needs=needed(1), sizes=longer).replicas == 9


def test_who_remembers_no_size_learns_it_before_anybody_is_told() -> None:
    """A new leader sees 10 ready engines while 15 more start: its 10 would end them."""
    policy = POLICY.model_copy(update={"lead_time_s": 240.0})
    began = steady(32, over_s=120)
    assert (decision := decide(began, sizes=[], policy=policy)).reason is Reason.LEARNING and not decision.is_known
    learnt = [*(replace(it, ready=25, heard=25) for it in steady(32, over_s=300))]
    assert decide(learnt, sizes=[], policy=policy).replicas == 25


@pytest.mark.parametrize(("replicas", "placed"), [(2, (2, 0)), (60, (60, 0)), (70, (60, 10)), (99, (60, 24))])
def test_spot_begins_where_reserved_and_on_demand_end(replicas: int, placed: tuple[int, int]) -> None:
    assert LIMITS.placed(replicas) == placed


def test_a_raised_floor_is_kept_at_once_and_let_go_slowly() -> None:
    """Recovery raises the floor of the surviving region; what it brought does not go the moment that it is lowered."""
    autoscaler = Autoscaler(POLICY, [Size(0, 10)])
    raised = Limits(floor=40, max_base=60)
    autoscaler.see(sample(0.0, 32))
    assert autoscaler.decide(raised, 0.0).replicas == 40
    for index in range(1, 60):
        autoscaler.see(sample(index * SYNC_S, 32, ready=40))
        assert autoscaler.decide(LIMITS, index * SYNC_S).replicas == 40


def test_without_load_a_class_comes_down_to_its_floor() -> None:
    """A floor is no need: with a tenth of room above it, ten engines at a floor of ten would be eleven for ever."""
    decisions = trajectory([300.0, *([0.0] * 240)], start=10)
    assert decisions[-1].replicas == LIMITS.floor


def test_a_decision_says_its_numbers() -> None:
    assert decide(steady(500)).text() == "12 from 10 (pace): in_flight needs 15.6"
    assert decide(steady(320)).text() == "10 (enough): in_flight needs 10.0"
    assert decide([]).text() == "10 (silent)"


def test_a_policy_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="panic_window_s"):
        ScalingPolicy(target_in_flight=1, panic_window_s=90)
    with pytest.raises(ValidationError, match="floor"):
        Limits(floor=5, max_base=4)


def test_a_shortened_policy_does_the_same_sooner() -> None:
    loads = [100, *([900] * 20), *([50] * 150)]
    whole = [decision.replicas for decision in trajectory(loads)]
    short = POLICY.shortened(15)
    autoscaler, sizes, size = Autoscaler(short, [Size(0, 10)]), list[int](), 10
    for index, load in enumerate(loads):
        autoscaler.see(sample(index * SYNC_S / 15, load, size))
        size = autoscaler.decide(LIMITS, index * SYNC_S / 15).replicas
        sizes.append(size)
    assert sizes == whole


loads = st.lists(st.floats(0, 3000), min_size=1, max_size=150)


@settings(max_examples=60, deadline=None)
@given(loads=loads, extra=st.lists(st.floats(0, 1000), min_size=150, max_size=150), start=st.integers(2, 84))
def test_more_load_at_any_moment_never_gives_fewer_engines(loads: list[float], extra: list[float], start: int) -> None:
    """Of the whole trajectory, whatever is added and when."""
    before = trajectory(loads, start)
    after = trajectory([load + more for load, more in zip(loads, extra, strict=False)], start)
    assert all(late.replicas >= early.replicas for early, late in zip(before, after, strict=True))


@settings(max_examples=40, deadline=None)
@given(loads=loads, factor=st.floats(1, 4), start=st.integers(2, 84))
def test_a_load_that_is_larger_throughout_never_gives_fewer_by_forecast_either(
    loads: list[float], factor: float, start: int
) -> None:
    """A trend is lower where only its past is raised; what is larger by a factor has the larger trend too."""
    policy = POLICY.model_copy(update={"lead_time_s": 240.0})
    before = trajectory(loads, start, policy)
    after = trajectory([load * factor for load in loads], start, policy)
    assert all(late.replicas >= early.replicas for early, late in zip(before, after, strict=True))


@settings(max_examples=60, deadline=None)
@given(loads=st.lists(st.one_of(st.none(), st.floats(0, 5000)), min_size=1, max_size=200), start=st.integers(0, 90))
def test_sizes_keep_bounds_and_pace_and_do_not_flap(loads: list[float | None], start: int) -> None:
    sizes = [decision.replicas for decision in trajectory(loads, start)]
    assert all(LIMITS.floor <= size <= LIMITS.maximum for size in sizes)
    changes = [after - before for before, after in itertools.pairwise(sizes)]
    for index in range(len(changes)):
        within = changes[index : index + int(300 / SYNC_S)]
        assert sum(change for change in within if change < 0) >= -POLICY.step_down
        minute = sizes[index : index + int(60 / SYNC_S) + 1]
        assert minute[-1] <= max(minute[0] + 2, 2 * min(minute))
    grown = [index for index, change in enumerate(changes) if change > 0]
    for index in grown:
        quarter = changes[index + 1 : index + int(900 / SYNC_S)]
        assert not any(change < 0 for change in quarter), "nothing goes within a quarter of an hour after it was needed"


@settings(max_examples=60, deadline=None)
@given(
    before=st.lists(st.floats(0, 3000), min_size=1, max_size=100),
    silent=st.integers(4, 200),
    after=st.lists(st.floats(0, 3000), max_size=int(900 / SYNC_S)),
)
def test_silence_shrinks_nothing_nor_does_the_quarter_of_an_hour_after_it(
    before: list[float], silent: int, after: list[float]
) -> None:
    decisions = trajectory([*before, *([None] * silent), *after])
    sizes = [decision.replicas for decision in decisions]
    from_s = len(before) + 3  # by then the last sample is older than 45 s
    assert all(later >= earlier for earlier, later in itertools.pairwise(sizes[from_s:]))
    assert all(not decision.is_known for decision in decisions[from_s : len(before) + silent])
