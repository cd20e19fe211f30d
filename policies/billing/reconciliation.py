"""Whether what was billed is what engines counted, for each life of each engine, and what explains the difference.

An engine counts every token that it computes, from its start; a bill counts what a gateway received. So they may differ, and by
how much at most follows from how requests ended:

    straddling   a request that was open at a border of the window is counted on one side and billed on the other
    not served   no token arrived, so nothing is billed; its prompt may have been computed
    aborted      the client left or the gateway died: the engine generated on until it noticed, `ABORT_TOKENS` at most
    resumed      asked of several engines: each may have computed all of it, and one bill is written
    choices      several answers to one prompt (`n`): vLLM counts the prompt for each, a bill has it once

What lies outside of all that is unexplained: requests that reached an engine past the gateways, probes, or usage that was lost.
The window of a life runs from the first look at its counters to the last, so an engine's own known-answer prompts, which it is
asked before it is ready, lie before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

ABORT_TOKENS = 64
"""A PROGRESS interval (32 tokens) and a second of generation."""

Explanation = Literal["straddling", "not_served", "aborted", "resumed", "choices"]


@dataclass(frozen=True)
class Look:
    """An engine's counters at a moment."""

    engine: str
    model: str
    epoch_ms: int
    """When its counters began; 0 where it does not say."""
    at_ms: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Billed:
    """What is needed of a row."""

    engines: Sequence[str]
    """Asked, in order."""
    opened_at_ms: int
    closed_at_ms: int
    counted_prompt_tokens: int
    """As counted before the engine was asked."""
    prompt_tokens: int
    output_tokens: int
    is_served: bool
    is_whole: bool
    """The engine said that it had finished."""
    num_choices: int = 1
    """Answers asked for."""


@dataclass
class Difference:
    """Of one kind of token: what the engine counted less what was billed, and what may explain it."""

    counted: int = 0
    billed: int = 0
    least: int = 0
    """The smallest difference that is explained; above 0 where an engine must have counted more."""
    most: int = 0

    @property
    def unexplained(self) -> int:
        """How far the difference lies outside what is explained: positive where the engine counted more."""
        difference = self.counted - self.billed
        return max(difference - self.most, 0) + min(difference - self.least, 0)


@dataclass
class Life:
    """One life of one engine within the window."""

    engine: str
    model: str
    from_ms: int
    to_ms: int
    """The looks at its counters that are compared."""
    prompt: Difference = field(default_factory=Difference)
    output: Difference = field(default_factory=Difference)
    num_requests: int = 0
    explained_by: dict[Explanation, int] = field(default_factory=dict)
    """Requests whose end allows a difference, by why."""

    @property
    def verdict(self) -> Literal["exact", "explained", "unexplained"]:
        """What became of it."""
        if self.prompt.unexplained or self.output.unexplained:
            return "unexplained"
        is_exact = self.prompt.counted == self.prompt.billed and self.output.counted == self.output.billed
        return "exact" if is_exact else "explained"


def reconcile(looks: Iterable[Look], rows: Iterable[Billed], from_ms: int, to_ms: int) -> list[Life]:
    """Each life that was looked at twice at least, around or in [from_ms, to_ms), by engine and time. `rows` may come in any
    order, and must hold those that were open at any time in the window."""
    lives = _lives(looks, from_ms, to_ms)
    by_engine: defaultdict[str, list[Life]] = defaultdict(list)
    for life in lives:
        by_engine[life.engine].append(life)
    for row in rows:
        for engine in dict.fromkeys(row.engines):
            for life in by_engine.get(engine, ()):
                if row.opened_at_ms < life.to_ms and row.closed_at_ms > life.from_ms:
                    _account(life, row)
    return lives


def _account(life: Life, row: Billed) -> None:
    """Add a row that was open at some time in the life's window."""
    life.num_requests += 1
    prompt_at_most = max(row.prompt_tokens, row.counted_prompt_tokens) * row.num_choices
    output_at_most = row.output_tokens + (0 if row.is_whole else ABORT_TOKENS * row.num_choices)
    if len(row.engines) > 1:  # which of them computed how much is not known
        life.prompt.most += prompt_at_most + row.output_tokens  # an answer goes on as part of a prompt
        life.output.most += output_at_most
        _explained(life, "resumed")
    elif row.opened_at_ms < life.from_ms or row.closed_at_ms > life.to_ms:
        life.prompt.most += prompt_at_most
        life.output.most += output_at_most
        _explained(life, "straddling")
    elif row.is_served:
        life.prompt.billed += row.prompt_tokens
        life.output.billed += row.output_tokens
        again = row.prompt_tokens * (row.num_choices - 1)
        life.prompt.most += again
        if again:
            _explained(life, "choices")
        if row.is_whole:
            life.prompt.least += again  # each answer came, so each had its prompt computed
        else:
            life.output.most += ABORT_TOKENS * row.num_choices
            _explained(life, "aborted")
    else:
        life.prompt.most += prompt_at_most
        life.output.most += ABORT_TOKENS * row.num_choices
        _explained(life, "not_served")


def _explained(life: Life, why: Explanation) -> None:
    life.explained_by[why] = life.explained_by.get(why, 0) + 1


def _lives(looks: Iterable[Look], from_ms: int, to_ms: int) -> list[Life]:
    """Lives between the last look before the window (or the first in it) and the last look in it."""
    by_engine: defaultdict[str, list[Look]] = defaultdict(list)
    for look in looks:
        if look.at_ms < to_ms:
            by_engine[look.engine].append(look)
    lives = []
    for _, its in sorted(by_engine.items()):
        for life in _split(sorted(its, key=lambda look: look.at_ms)):
            before = [look for look in life if look.at_ms <= from_ms]
            first, last = before[-1] if before else life[0], life[-1]
            if last.at_ms > max(first.at_ms, from_ms):
                counted = Life(first.engine, first.model, first.at_ms, last.at_ms)
                counted.prompt.counted = last.prompt_tokens - first.prompt_tokens
                counted.output.counted = last.output_tokens - first.output_tokens
                lives.append(counted)
    return lives


def _split(looks: Sequence[Look]) -> list[list[Look]]:
    """Looks at one engine, in order, by life: another epoch is another life, and so is a counter that fell."""
    lives: list[list[Look]] = []
    for look in looks:
        last = lives[-1][-1] if lives else None
        is_same = (
            last is not None
            and last.epoch_ms == look.epoch_ms
            and look.prompt_tokens >= last.prompt_tokens
            and look.output_tokens >= last.output_tokens
        )
        if is_same:
            lives[-1].append(look)
        else:
            lives.append([look])
    return lives
