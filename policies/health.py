"""Whether a running engine is well, and whether one that ended is started again.

An engine that hangs still answers its health check, so the proof of life is progress: while it has work, some number that
changes with every engine step has to change. What an engine reports about its work comes from the end of a step, so a request
that hangs it in its very first step is in no number at all. A connection that stays open while nothing moves gives that away;
it is no proof (a client may hold one for nothing), so the engine is asked a canary prompt, and that is work it must finish.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

MAX_GAP_S = 10.0
"""Longer gaps between samples count as this long: the observer itself was stopped, and the engine perhaps with it."""


@dataclass(frozen=True)
class HealthLimits:
    """How long what is tolerated."""

    stall_limit_s: float
    """Work and no step for this long is a hung engine. Longer than the longest step (12 s for 2,048 tokens on two cores)."""
    suspect_after_s: float = 10.0
    """Idle, no step, and a connection open for this long: ask. Engines close idle connections after 5 s (vLLM's default)."""
    num_silent_unready: int = 2
    """Probes in a row without an answer until the engine gets no new requests."""
    num_silent_failed: int = 4
    """And until it is given up."""


@dataclass(frozen=True)
class Sample:
    """One look at an engine."""

    at_s: float
    """On any clock that only goes forward."""
    has_answered: bool
    says_dead: bool = False
    """It answered, and said that it cannot go on."""
    num_requests: int = 0
    """Running and waiting, as the engine counts them."""
    progress: tuple[float, ...] = ()
    """Numbers of which one or more change with every engine step."""
    num_connections: int = 0
    """Open connections of clients."""
    is_canary_out: bool = False
    """It was asked a canary prompt and has not answered that yet."""


@dataclass(frozen=True)
class History:
    """What has to be remembered from one sample to the next."""

    at_s: float
    progress: tuple[float, ...] = ()
    stalled_s: float = 0.0
    """Time with work and without a step."""
    held_s: float = 0.0
    """Time without work or a step, but with an open connection."""
    num_silent: int = 0


class Verdict(StrEnum):
    """What is known about an engine."""

    HEALTHY = "healthy"
    UNSURE = "unsure"
    """It gets no new requests; nothing is done to it."""
    FAILED = "failed"


@dataclass(frozen=True)
class Judgement:
    """A verdict, the reason in a word (`exited`, `stalled`, `silent`; empty when healthy), and the numbers behind it."""

    verdict: Verdict
    reason: str = ""
    detail: str = ""
    ask_canary: bool = False


def judge(history: History, sample: Sample, limits: HealthLimits) -> tuple[History, Judgement]:
    """The verdict after `sample`, and what to remember. An engine without work is healthy however long nothing moves."""
    gap_s = min(max(sample.at_s - history.at_s, 0.0), MAX_GAP_S)
    if not sample.has_answered:
        silent = replace(history, at_s=sample.at_s, num_silent=history.num_silent + 1)
        detail = f"{silent.num_silent} probes in a row without an answer"
        if silent.num_silent >= limits.num_silent_failed:
            return silent, Judgement(Verdict.FAILED, "silent", detail)
        is_unsure = silent.num_silent >= limits.num_silent_unready
        return silent, Judgement(Verdict.UNSURE if is_unsure else Verdict.HEALTHY, "silent", detail)
    has_work = sample.num_requests > 0 or sample.is_canary_out
    has_moved = sample.progress != history.progress
    stalled_s = history.stalled_s + gap_s if has_work and not has_moved else 0.0
    is_held = sample.num_connections > 0 and not has_work and not has_moved
    held_s = history.held_s + gap_s if is_held else 0.0
    seen = History(sample.at_s, sample.progress, stalled_s, held_s)
    if sample.says_dead:
        return seen, Judgement(Verdict.FAILED, "exited", "the engine says that it cannot go on")
    if stalled_s >= limits.stall_limit_s:
        detail = f"{sample.num_requests} requests and no engine step for {stalled_s:.0f} s"
        return seen, Judgement(Verdict.FAILED, "stalled", detail)
    return seen, Judgement(Verdict.HEALTHY, ask_canary=held_s >= limits.suspect_after_s)


@dataclass(frozen=True)
class RestartLimits:
    """When an engine that keeps failing is left to the orchestrator."""

    stable_after_s: float = 60.0
    """An engine that served this long did not fail quickly."""
    max_quick_failures: int = 4
    first_delay_s: float = 1.0
    """Doubles with every quick failure."""


@dataclass(frozen=True)
class RestartDecision:
    """Whether to start the engine again, after how long, and how many quick failures there have been in a row."""

    restart: bool
    delay_s: float
    num_quick_failures: int


def decide_restart(served_s: float, num_quick_failures: int, limits: RestartLimits) -> RestartDecision:
    """After an engine that was ready for `served_s` (0 if it never was), with `num_quick_failures` in a row before it.

    The first restart is immediate when the engine had served for long: its weights are still in memory, and users wait.
    """
    if served_s >= limits.stable_after_s:
        return RestartDecision(True, 0.0, 0)
    failures = num_quick_failures + 1
    if failures >= limits.max_quick_failures:
        return RestartDecision(False, 0.0, failures)
    return RestartDecision(True, limits.first_delay_s * 2 ** (failures - 1), failures)
