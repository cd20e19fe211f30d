"""Engines request by request and step by step: exact where the fluid model is quick, under the same step law.

An engine works as vLLM schedules: each step computes one token of every running sequence, and prompts of those that wait, first
come first served, in what is left of `max_num_batched_tokens`; a long prompt takes several steps. A first token comes at the
end of the step that completes its prompt. A request is begun only when a place in the batch and KV blocks for its whole life
are free, so that nothing is preempted. Each request goes to the engine that holds the fewest, as the gateway routes prompts
that no cache knows.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from policies.capacity.operating_point import BLOCK_TOKENS
from policies.capacity.step_law import Profile

MAX_NUM_BATCHED_TOKENS = 8192
"""Of the catalog's engines."""


class Arrival(NamedTuple):
    """A request."""

    at_s: float
    uncached_tokens: int
    input_tokens: int
    output_tokens: int


class FirstToken(NamedTuple):
    """What became of it."""

    arrival: Arrival
    at_s: float

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.at_s - self.arrival.at_s


@dataclass
class _Prompt:
    arrival: Arrival
    left: int


class SteppedEngine:
    """One engine. `begin` and `end` bracket a step; whoever drives it keeps the clock."""

    def __init__(self, profile: Profile, max_batch: int) -> None:
        self._law = profile.law
        self._max_batch = max_batch
        self._kv_tokens = profile.num_blocks * BLOCK_TOKENS
        self._waiting: deque[_Prompt] = deque()
        self._computing: deque[_Prompt] = deque()
        self._ends: dict[int, list[int]] = defaultdict(list)
        """Step → final contexts of the sequences whose last token it makes."""
        self._step = self._num_decoding = self._context = self._held = 0
        self._completed: list[Arrival] = []
        self.is_stepping = False
        self.in_flight = 0
        self.useful_s = 0.0

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return self._num_decoding + len(self._computing)

    @property
    def waiting(self) -> int:
        """Requests beyond it."""
        return len(self._waiting)

    @property
    def waiting_since_s(self) -> float | None:
        """When the request came that has waited longest outside the batch; None where none waits."""
        return self._waiting[0].arrival.at_s if self._waiting else None

    def take(self, arrival: Arrival) -> None:
        """A request for this engine."""
        self._waiting.append(_Prompt(arrival, max(1, arrival.uncached_tokens)))
        self.in_flight += 1

    def begin(self) -> float | None:
        """Begins a step, and says how long it takes; None where there is nothing to do."""
        room = MAX_NUM_BATCHED_TOKENS - self._num_decoding
        prefill_tokens = 0
        while room > 0 and (prompt := self._next_prompt()) is not None:
            chunk = min(prompt.left, room)
            prompt.left -= chunk
            room -= chunk
            prefill_tokens += chunk
            if prompt.left == 0:
                self._computing.popleft()
                self._completed.append(prompt.arrival)
        self.is_stepping = bool(prefill_tokens or self._num_decoding)
        if not self.is_stepping:
            return None
        step_s = self._law.step_s(prefill_tokens, self._num_decoding, self._context)
        self.useful_s += step_s - self._law.base_s
        return step_s

    def end(self) -> list[Arrival]:
        """Ends the step; whose first token it made."""
        self._step += 1
        self._context += self._num_decoding
        for tokens in self._ends.pop(self._step, ()):
            self._num_decoding -= 1
            self._context -= tokens
            self._finish(tokens)
        completed, self._completed = self._completed, []
        for arrival in completed:
            tokens = arrival.input_tokens + arrival.output_tokens
            if arrival.output_tokens <= 1:
                self._finish(tokens)
                continue
            self._num_decoding += 1
            self._context += arrival.input_tokens + 1
            self._ends[self._step + arrival.output_tokens - 1].append(tokens)
        return completed

    def _next_prompt(self) -> _Prompt | None:
        """The prompt to work on: one that is begun, or the next, if it has a place."""
        if self._computing:
            return self._computing[0]
        if not self._waiting:
            return None
        prompt = self._waiting[0]
        tokens = prompt.arrival.input_tokens + prompt.arrival.output_tokens
        is_alone = self._held == 0
        if self.running + len(self._completed) >= self._max_batch or (self._held + tokens > self._kv_tokens and not is_alone):
            return None
        self._held += tokens
        self._computing.append(self._waiting.popleft())
        return prompt

    def _finish(self, tokens: int) -> None:
        self._held -= tokens
        self.in_flight -= 1


class SteppedFleet:
    """Several engines on one clock. Engines may join and leave; one that leaves finishes what it has."""

    def __init__(self, profile: Profile, max_batch: int, num_engines: int) -> None:
        self._profile, self._max_batch = profile, max_batch
        self._steps: list[tuple[float, int, SteppedEngine]] = []
        self._order = count()
        self.engines = [self._new() for _ in range(num_engines)]
        self.leaving: list[SteppedEngine] = []
        self._gone_useful_s = 0.0

    @property
    def useful_s(self) -> float:
        """Time that all engines spent on tokens, gone ones included."""
        return self._gone_useful_s + sum(engine.useful_s for engine in (*self.engines, *self.leaving))

    def queue_age_s(self, now_s: float) -> float:
        """How long the request that waits longest outside a batch has waited; 0 where none does."""
        since = [at_s for engine in self.engines if (at_s := engine.waiting_since_s) is not None]
        return now_s - min(since) if since else 0.0

    def add(self) -> None:
        """One engine more."""
        self.engines.append(self._new())

    def remove(self) -> None:
        """The engine that holds the least gets nothing new and leaves when it is done."""
        least = min(self.engines, key=_in_flight)
        self.engines.remove(least)
        if least.is_stepping:
            self.leaving.append(least)
        else:
            self._gone_useful_s += least.useful_s

    def take(self, arrival: Arrival) -> None:
        """To the engine that holds the fewest."""
        engine = min(self.engines, key=_in_flight)
        engine.take(arrival)
        if not engine.is_stepping:
            self._begin(engine, arrival.at_s)

    def until(self, at_s: float) -> Iterator[FirstToken]:
        """Works on until `at_s`; the first tokens on the way."""
        steps = self._steps
        while steps and steps[0][0] <= at_s:
            now_s, _, engine = heapq.heappop(steps)
            for arrival in engine.end():
                yield FirstToken(arrival, now_s)
            self._begin(engine, now_s)
            if not engine.is_stepping and engine in self.leaving:
                self.leaving.remove(engine)
                self._gone_useful_s += engine.useful_s

    def _begin(self, engine: SteppedEngine, now_s: float) -> None:
        step_s = engine.begin()
        if step_s is not None:
            heapq.heappush(self._steps, (now_s + step_s, next(self._order), engine))

    def _new(self) -> SteppedEngine:
        return SteppedEngine(self._profile, self._max_batch)


def first_tokens(profile: Profile, max_batch: int, num_engines: int, arrivals: Iterable[Arrival]) -> list[FirstToken]:
    """All first tokens of so many engines under `arrivals`, which are in order, until the last one has it."""
    fleet = SteppedFleet(profile, max_batch, num_engines)
    found: list[FirstToken] = []
    for arrival in arrivals:
        found.extend(fleet.until(arrival.at_s))
        fleet.take(arrival)
    found.extend(fleet.until(float("inf")))
    return found


def _in_flight(engine: SteppedEngine) -> int:
    return engine.in_flight
