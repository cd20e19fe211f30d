"""Which engine serves a request: what each has to do and has been sent is counted here, the choice is `policies.routing.choice`.

An engine that failed a request is passed over for a few seconds; discovery will say soon whether it is gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from policies.routing.choice import Replica, choose
from policies.routing.prefix_index import Chain, PrefixIndex
from policies.routing.ring import Ring
from serving.gateway import errors
from serving.gateway.discovery import Endpoint
from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.settings import ServedModel

EJECT_S = 3.0
NONE_READY_RETRY_S = 5.0
FULL_RETRY_S = 1.0


class Engine:
    """An engine and what this gateway knows of it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.replica = Replica(endpoint.is_ready)


class Seat:
    """A place at an engine, held until released."""

    def __init__(self, engine: Engine, uncached_tokens: int) -> None:
        self.engine = engine
        self._queued_tokens = uncached_tokens
        self._is_held = True
        engine.replica.num_in_flight += 1
        engine.replica.queued_tokens += uncached_tokens

    def has_begun(self) -> None:
        """The engine has sent its first token: the prompt is computed."""
        self.engine.replica.queued_tokens -= self._queued_tokens
        self._queued_tokens = 0

    def release(self) -> None:
        """Give the place up; a second time changes nothing."""
        if self._is_held:
            self._is_held = False
            self.has_begun()
            self.engine.replica.num_in_flight -= 1

    def eject(self) -> None:
        """Pass this engine over for a while."""
        self.engine.replica.ejected_until_s = asyncio.get_running_loop().time() + EJECT_S


class Pool:
    """The engines of one class."""

    def __init__(self, model: ServedModel, metrics: Metrics) -> None:
        self._model = model
        self._ready = metrics.engines_ready.labels(model.model_class)
        self._engines: list[Engine] = []
        self._replicas: list[Replica] = []
        self._index = PrefixIndex()
        self._ring = Ring([])
        self._random = random.Random()  # noqa: S311 (spreads load, guards nothing)

    def update(self, endpoints: Sequence[Endpoint]) -> None:
        """Take over a new list of endpoints. An engine that stays keeps its seats, its ejection and its place, since places are
        the index's bits; a new one takes the first that is free. One that comes while others serve starts slowly."""
        now_s = asyncio.get_running_loop().time()
        left = {(endpoint.name, endpoint.authority): endpoint for endpoint in endpoints}
        places: list[Engine | None] = []
        for place, engine in enumerate(self._engines):
            endpoint = left.pop((engine.endpoint.name, engine.endpoint.authority), None)
            places.append(engine if endpoint is not None else None)
            if endpoint is None:
                self._index.forget(1 << place)
                continue
            if endpoint.is_ready and not engine.endpoint.is_ready:
                engine.replica.started_s = now_s
            engine.endpoint, engine.replica.is_ready = endpoint, endpoint.is_ready
        for endpoint in left.values():
            engine = Engine(endpoint)
            if self._engines:
                engine.replica.started_s = now_s
            if None in places:
                places[places.index(None)] = engine
            else:
                places.append(engine)
        self._fill(places)
        self._replicas = [engine.replica for engine in self._engines]
        self._ring = Ring([engine.endpoint.name for engine in self._engines])
        self._ready.set(sum(endpoint.is_ready for endpoint in endpoints))

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
            failed=[place for place, engine in enumerate(self._engines) if engine in failed] if failed else (),
            max_in_flight=self._model.max_in_flight_per_engine,
            now_s=asyncio.get_running_loop().time(),
            random=self._random,
        )
        if choice.is_placed:
            self._index.add(1 << choice.index, chain)
            return Seat(self._engines[choice.index], choice.uncached_tokens)
        name = self._model.model_class
        if choice.reason == "all_full":
            raise ApiError(errors.OVERLOADED, f"All engines of `{name}` are busy.", retry_after_s=FULL_RETRY_S)
        raise ApiError(errors.ENGINE_UNAVAILABLE, f"No engine of `{name}` is ready.", retry_after_s=NONE_READY_RETRY_S)

    def _fill(self, places: list[Engine | None]) -> None:
        """Close gaps by moving engines down from the end: they lose what the index knows of them, the others keep it."""
        while None in places:
            last = places.pop()
            if last is not None:
                self._index.forget(1 << len(places))
                places[places.index(None)] = last
        self._engines = [engine for engine in places if engine is not None]
