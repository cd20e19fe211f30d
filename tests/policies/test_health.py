"""When an engine is hung, silent or well, and when it is started again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.health import (
    MAX_GAP_S,
    HealthLimits,
    History,
    Judgement,
    RestartDecision,
    RestartLimits,
    Sample,
    Verdict,
    decide_restart,
    judge,
)

LIMITS = HealthLimits(stall_limit_s=60, suspect_after_s=10)


def watch(*samples: dict[str, Any], every_s: float = 1.0) -> list[Judgement]:
    """The judgement after each sample, one every `every_s` seconds."""
    history, judgements = History(0.0), []
    for number, fields in enumerate(samples, start=1):
        history, judgement = judge(history, Sample(at_s=number * every_s, **{"has_answered": True, **fields}), LIMITS)
        judgements.append(judgement)
    return judgements


def test_an_idle_engine_is_well_however_long_nothing_moves() -> None:
    assert {judgement.verdict for judgement in watch(*[{"progress": (1.0,)}] * 500)} == {Verdict.HEALTHY}


def test_work_without_a_step_for_the_limit_is_a_stall() -> None:
    judgements = watch({"progress": (1.0,)}, *[{"progress": (1.0,), "num_requests": 2}] * 60)
    assert [judgement.verdict for judgement in judgements].index(
        Verdict.FAILED
    ) == 60  # 60 samples of a second each after the first
    assert judgements[-1] == Judgement(Verdict.FAILED, "stalled", "2 requests and no engine step for 60 s")


def test_a_long_prefill_that_moves_now_and_then_is_not_a_stall() -> None:
    """A step of 2,048 tokens takes up to 12 s on two cores; a prompt of 7,389 tokens was seen to take 34 s."""
    samples = [{"progress": (float(second // 12),), "num_requests": 1} for second in range(300)]
    assert {judgement.verdict for judgement in watch(*samples)} == {Verdict.HEALTHY}


def test_time_that_the_observer_slept_through_is_not_held_against_the_engine() -> None:
    """A laptop's lid, or SIGSTOP on the whole pod: 5 minutes pass between two samples and nobody could have moved."""
    busy = {"progress": (1.0,), "num_requests": 1}
    judgements = watch(busy, busy, busy, every_s=300)
    assert judgements[-1].verdict is Verdict.HEALTHY  # 3 gaps count as 10 s each


SILENCE = [(1, Verdict.HEALTHY), (2, Verdict.UNSURE), (3, Verdict.UNSURE), (4, Verdict.FAILED)]


@pytest.mark.parametrize(("num_silent", "verdict"), SILENCE)
def test_silence_costs_first_readiness_and_then_the_engine(num_silent: int, verdict: Verdict) -> None:
    assert watch(*[{"has_answered": False}] * num_silent)[-1].verdict is verdict


def test_one_answer_ends_a_silence() -> None:
    silent = {"has_answered": False}
    assert [judgement.verdict for judgement in watch(silent, silent, silent, {}, silent)][-2:] == [Verdict.HEALTHY] * 2


def test_an_engine_that_says_it_is_dead_is_believed_at_once() -> None:
    assert watch({"says_dead": True})[0].reason == "exited"


def test_a_connection_that_stays_open_while_nothing_moves_is_reason_to_ask() -> None:
    """A request that hangs an idle engine in its first step is in no counter of the engine."""
    judgements = watch({"progress": (1.0,)}, *[{"progress": (1.0,), "num_connections": 1}] * 10)
    assert [judgement.ask_canary for judgement in judgements] == [False] * 10 + [True]
    assert judgements[-1].verdict is Verdict.HEALTHY, "a held connection alone proves nothing"


def test_a_canary_without_an_answer_becomes_a_stall() -> None:
    idle = {"progress": (1.0,)}
    judgements = watch(idle, *[{**idle, "is_canary_out": True, "num_connections": 2}] * 60)
    assert (judgements[-1].verdict, judgements[-1].reason) == (Verdict.FAILED, "stalled")
    assert not any(judgement.ask_canary for judgement in judgements)


def test_connections_of_an_engine_that_works_are_no_reason_to_ask() -> None:
    samples = [{"progress": (float(second),), "num_connections": 3, "num_requests": 3} for second in range(100)]
    assert not any(judgement.ask_canary for judgement in watch(*samples))


@given(
    st.lists(
        st.builds(
            dict,
            has_answered=st.booleans(),
            num_requests=st.integers(0, 2),
            num_connections=st.integers(0, 2),
            is_canary_out=st.booleans(),
        ),
        max_size=80,
    )
)
def test_an_engine_that_moves_with_every_sample_is_never_stalled(samples: list[dict[str, Any]]) -> None:
    moving = [{**sample, "progress": (float(number + 1),)} for number, sample in enumerate(samples)]
    assert "stalled" not in {judgement.reason for judgement in watch(*moving)}


@given(st.floats(0, 1e6), st.floats(0, 100))
def test_no_single_gap_adds_more_than_its_bound(at_s: float, stalled_s: float) -> None:
    history = History(0.0, (1.0,), stalled_s)
    after, _ = judge(history, Sample(at_s, True, num_requests=1, progress=(1.0,)), LIMITS)
    assert after.stalled_s <= stalled_s + MAX_GAP_S


RESTARTS = [
    ("served for long: at once, and the count starts again", 3600.0, 3, RestartDecision(True, 0.0, 0)),
    ("first quick failure", 0.0, 0, RestartDecision(True, 1.0, 1)),
    ("second: twice the delay", 0.0, 1, RestartDecision(True, 2.0, 2)),
    ("third: twice again", 59.9, 2, RestartDecision(True, 4.0, 3)),
    ("fourth: left to the orchestrator", 0.0, 3, RestartDecision(False, 0.0, 4)),
]


@pytest.mark.parametrize(("served_s", "before", "decision"), [case[1:] for case in RESTARTS], ids=[case[0] for case in RESTARTS])
def test_restarts_back_off_and_end(served_s: float, before: int, decision: RestartDecision) -> None:
    assert decide_restart(served_s, before, RestartLimits()) == decision
