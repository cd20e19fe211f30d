"""Which engine serves a request: what each has to do and was sent is counted here, the choice is `policies.routing.choice`.

An engine that failed, stalls (`check`) or does not answer a probe (`engine_watch.py`) is passed over for a while, longer each
time in a row; then it starts slowly. Discovery will say whether it is gone.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence

from policies.routing.cache_events import EngineCache
from policies.routing.choice import Replica, choose, fade
from policies.routing.hedging import FirstTokenTimes
from policies.routing.prefix_index import MAX_ENTRIES, Chain, PrefixIndex
from policies.routing.ring import Ring
from policies.routing.suspicion import SILENT_S, PrefillSpeed, Quarantine, RetryBudget, ejection_s
from policies.routing.ttft import Predictor, features
from serving.gateway import errors
from serving.gateway.discovery import Endpoint
from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.settings import ServedModel

NONE_READY_RETRY_S = 5.0
FULL_RETRY_S = 1.0


class Engine:
    """An engine and what this gateway knows of it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.place = -1
        """Its bit in the index; -1 where discovery does not know it any more."""
        self.replica = Replica(endpoint.is_ready)
        self.num_failures = 0
        """In a row."""
        self.heard_s = 0.0
        """When it last sent something, or was asked after having nothing to do."""
        self.waiting: set[Seat] = set()
        """Those that have not had their first event."""
        self.movable: set[Seat] = set()
        """Those that have, and can go on elsewhere."""

    def eject(self, now_s: float, at_least_s: float = 0.0) -> None:
        """Pass it over for a while; failures while it is passed over already are of the same illness."""
        if self.replica.ejected_until_s <= now_s:
            self.num_failures += 1
            at_least_s = max(at_least_s, ejection_s(self.num_failures))
        self.replica.ejected_until_s = self.replica.started_s = max(self.replica.ejected_until_s, now_s + at_least_s)

    def leave(self) -> None:
        """It hangs: whoever can ask elsewhere does."""
        for seat in (*self.waiting, *self.movable):
            if seat.on_stall is not None:
                seat.on_stall()

    def prefilled_for_others(self, tokens: int) -> None:
        """It has computed so much of prompts that this gateway has not sent."""
        self.replica.foreign_tokens += tokens


class Seat:
    """A place at an engine, held until released."""

    def __init__(
        self,
        engine: Engine,
        speed: PrefillSpeed,
        prompt_tokens: int,
        uncached_tokens: int,
        reason: str,
        times: FirstTokenTimes | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        self.engine = engine
        self.reason = reason
        """Why it was chosen."""
        self.prompt_tokens = prompt_tokens
        self.on_stall: Callable[[], None] | None = None
        """Called when the engine stalls and the request can be asked elsewhere."""
        self._speed = speed
        self._times = times
        self._uncached_tokens = uncached_tokens
        self._predictor = predictor
        self._features = features(uncached_tokens, engine.replica.queued_tokens, engine.replica.num_in_flight)
        self._is_held = True
        self._taken_s = asyncio.get_running_loop().time()
        if not engine.replica.num_in_flight:
            engine.heard_s = self._taken_s
        engine.replica.num_in_flight += 1
        engine.replica.num_recent += 1
        engine.replica.queued_tokens += uncached_tokens
        self._work_tokens = engine.replica.queued_tokens
        engine.waiting.add(self)

    def heard(self, now_s: float) -> None:
        """The engine has sent something for this request."""
        self.engine.heard_s = now_s
        if self in self.engine.waiting:
            self._speed.saw(self._work_tokens, now_s - self._taken_s, self._uncached_tokens)
            if self._times is not None:
                self._times.saw(self._work_tokens, now_s - self._taken_s)
            if self._predictor is not None:
                self._predictor.learn(self.engine.endpoint.name, self._features, now_s - self._taken_s)
            self.engine.num_failures = 0
            self._computed()

    @property
    def hedge_after_s(self) -> float:
        """How long to wait for the first event before another engine is asked as well."""
        return math.inf if self._times is None else self._times.hedge_after_s(self._work_tokens)

    def release(self) -> None:
        """Give the place up; a second time changes nothing."""
        if self._is_held:
            self._is_held = False
            if self in self.engine.waiting:
                self._computed()
            self.engine.movable.discard(self)
            self.engine.replica.num_in_flight -= 1

    def may_move(self) -> None:
        """From now on, what is asked here can go on elsewhere if the engine stalls."""
        if self._is_held:
            self.engine.movable.add(self)

    def eject(self) -> None:
        """Pass this engine over for a while."""
        self.engine.eject(asyncio.get_running_loop().time())

    def _computed(self) -> None:
        """The prompt is not waited for any more."""
        self.engine.waiting.discard(self)
        self.engine.replica.queued_tokens -= self._uncached_tokens


class Pool:
    """The engines of one class."""

    def __init__(self, model: ServedModel, metrics: Metrics, *, is_hedging: bool = False) -> None:
        self.speed = PrefillSpeed()
        self.times = FirstTokenTimes() if is_hedging else None
        self.predictor = Predictor()
        self.retries = RetryBudget()
        self.quarantine = Quarantine()
        self._model = model
        self._ready = metrics.engines_ready.labels(model.model_class)
        metrics.ttft_error.labels(model.model_class).set_function(lambda: self.predictor.error_ratio)
        self._excluded: Mapping[str, str] = {}
        """Engines that operators keep out of service, by name, and how."""
        self._places: list[Engine | None] = []
        """By bit of the index. A place stays empty until somebody new takes it."""
        self._replicas: list[Replica] = []
        self._index = PrefixIndex()
        self._ring = Ring([])
        self._random = random.Random()  # noqa: S311 (spreads load, guards nothing)

    def update(self, endpoints: Sequence[Endpoint]) -> None:
        """Take over a new list of endpoints. An engine that stays keeps its seats, its ejection and its place; a new one takes
        the first place that is free. One that comes while others serve starts slowly."""
        now_s = asyncio.get_running_loop().time()
        left = {(endpoint.name, endpoint.authority): endpoint for endpoint in endpoints}
        had_engines = any(self._places)
        for place, engine in enumerate(self._places):
            if engine is None:
                continue
            endpoint = left.pop((engine.endpoint.name, engine.endpoint.authority), None)
            if endpoint is None:
                self.forget(engine)
                self.predictor.forget([engine.endpoint.name])
                self._places[place], engine.place = None, -1
                continue
            engine.endpoint = endpoint
            self._admit(engine, now_s)
        for endpoint in left.values():
            engine = Engine(endpoint)
            engine.replica.is_ready = endpoint.is_ready and endpoint.name not in self._excluded
            if had_engines:
                engine.replica.started_s = now_s
            if None not in self._places:
                self._places.append(None)
            engine.place = self._places.index(None)
            self._places[engine.place] = engine
        while self._places and self._places[-1] is None:
            self._places.pop()
        self._replicas = [engine.replica if engine else Replica(is_ready=False) for engine in self._places]
        self._ring = Ring([engine.endpoint.name if engine else "" for engine in self._places])
        self._index.max_blocks_per_replica = MAX_ENTRIES // max(len(self._places), 1)
        self._ready.set(sum(endpoint.is_ready for endpoint in endpoints))

    def exclude(self, engines: Mapping[str, str]) -> None:
        """From now on these, by name, get no new requests: with `drain` they finish what they have, from `quarantine` those that
        can leave do. What is not named any more serves again, slowly at first."""
        before, self._excluded = self._excluded, engines
        for engine in self.engines:
            self._admit(engine, asyncio.get_running_loop().time())
            name = engine.endpoint.name
            if engines.get(name) == "quarantine" != before.get(name):
                engine.leave()

    def _admit(self, engine: Engine, now_s: float) -> None:
        """Let it have requests, or not, by what discovery and operators say."""
        is_ready = engine.endpoint.is_ready and engine.endpoint.name not in self._excluded
        if is_ready and not engine.replica.is_ready:
            engine.replica.started_s = now_s
        engine.replica.is_ready = is_ready

    def take(self, prompt_tokens: int, chain: Chain, failed: Sequence[Engine]) -> Seat:
        """A seat at the best engine that is not among those that have `failed` this request.

        Raises:
            ApiError: `engine_unavailable` or `overloaded`, with Retry-After.
        """
        choice = choose(
            self._replicas,
            self._index,
            self._ring,
            prompt_tokens=prompt_tokens,
            chain=chain,
            failed=[engine.place for engine in failed if engine.place >= 0],
            max_in_flight=self._model.max_in_flight_per_engine,
            now_s=asyncio.get_running_loop().time(),
            random=self._random,
        )
        if choice.is_placed:
            engine = self._places[choice.index]
            assert engine is not None
            self._index.add(1 << choice.index, chain)
            return Seat(engine, self.speed, prompt_tokens, choice.uncached_tokens, choice.reason, self.times, self.predictor)
        name = self._model.model_class
        if choice.reason == "all_full":
            raise ApiError(errors.OVERLOADED, f"All engines of `{name}` are busy.", retry_after_s=FULL_RETRY_S)
        raise ApiError(errors.ENGINE_UNAVAILABLE, f"No engine of `{name}` is ready.", retry_after_s=NONE_READY_RETRY_S)

    def places_of(self, chain: Chain, num: int) -> list[Engine]:
        """The ready engines, `num` at most, that a prompt with these blocks belongs to while nobody holds it, first to last."""
        ready = {place for place, engine in enumerate(self._places) if engine is not None and engine.endpoint.is_ready}
        found: list[Engine] = []
        while chain and len(found) < num and (place := self._ring.first(chain[0], ready)) >= 0:
            ready.discard(place)
            engine = self._places[place]
            assert engine is not None
            found.append(engine)
        return found

    def holds(self, engine: Engine, chain: Chain) -> bool:
        """The engine is known to have all of these blocks."""
        return any(length == len(chain) and holders >> engine.place & 1 for length, holders in self._index.match(chain))

    def seat_at(self, engine: Engine, prompt_tokens: int, chain: Chain) -> Seat:
        """A seat at this very engine, for a warm-up, which then has the chain."""
        self._index.add(1 << engine.place, chain)
        return Seat(engine, self.speed, prompt_tokens, prompt_tokens, "warm_up")

    def ttft_s(self, uncached_tokens: float) -> float:
        """The first token of a request that went out now, at the engine where it comes soonest; 0 while nothing is known."""
        found = []
        for engine in self.engines:
            replica = engine.replica
            if replica.is_ready:
                x = features(uncached_tokens, replica.queued_tokens, replica.num_in_flight)
                found.append(self.predictor.predict_s(engine.endpoint.name, x) or 0.0)
        return min(found, default=0.0)

    def num_able(self, now_s: float) -> int:
        """Engines that are ready and not passed over; the ready ones where all are passed over."""
        ready = [replica for replica in self._replicas if replica.is_ready]
        return sum(replica.ejected_until_s <= now_s for replica in ready) or len(ready)

    @property
    def engines(self) -> Sequence[Engine]:
        """All that discovery knows."""
        return [engine for engine in self._places if engine]

    def cache_of(self, engine: Engine) -> EngineCache:
        """What `engine` holds, to be told by its events from now on; what was believed of it is forgotten."""
        self.forget(engine)
        return EngineCache(self._index, 1 << engine.place, len(self._places))

    def forget(self, engine: Engine) -> None:
        """The engine's cache is gone."""
        if engine.place >= 0:
            self._index.forget(1 << engine.place)

    def fade(self, elapsed_s: float) -> None:
        """What was sent to engines lies further back."""
        fade(self._replicas, elapsed_s)

    def check(self, now_s: float) -> list[Engine]:
        """Eject engines that have requests of ours and make no progress, and give them. Requests there that can leave, do."""
        stalled = []
        for engine in self.engines:
            if not engine.replica.num_in_flight or now_s - engine.heard_s <= SILENT_S:
                continue
            if now_s - engine.heard_s > self.speed.stalled_after_s(seat.prompt_tokens for seat in engine.waiting):
                stalled.append(engine)
                engine.eject(now_s)
                engine.leave()
        return stalled
