"""Which engine serves a request: seats are counted here, the choice is `policies.routing.least_loaded`.

An engine that failed a request is passed over for a few seconds; discovery will say soon whether it is gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.routing.least_loaded import Replica, choose
from serving.gateway import errors
from serving.gateway.discovery import Endpoint
from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.settings import ServedModel

EJECT_S = 3.0
NONE_READY_RETRY_S = 5.0
FULL_RETRY_S = 1.0


@dataclass(eq=False)
class Engine:
    """An engine and what this gateway knows of it."""

    endpoint: Endpoint
    num_in_flight: int = 0
    ejected_until_s: float = field(default=float("-inf"))


class Seat:
    """A place at an engine, held until released."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._is_held = True
        engine.num_in_flight += 1

    def release(self) -> None:
        """Give the place up; a second time changes nothing."""
        if self._is_held:
            self._is_held = False
            self.engine.num_in_flight -= 1

    def eject(self) -> None:
        """Pass this engine over for a while."""
        self.engine.ejected_until_s = asyncio.get_running_loop().time() + EJECT_S


class Pool:
    """The engines of one class."""

    def __init__(self, model: ServedModel, metrics: Metrics) -> None:
        self._model = model
        self._ready = metrics.engines_ready.labels(model.model_class)
        self._engines: list[Engine] = []
        self._random = random.Random()  # noqa: S311 (spreads load, guards nothing)

    def update(self, endpoints: Sequence[Endpoint]) -> None:
        """Take over a new list of endpoints. An engine that stays keeps its seats and its ejection."""
        known = {(engine.endpoint.name, engine.endpoint.authority): engine for engine in self._engines}
        engines = []
        for endpoint in endpoints:
            engine = known.get((endpoint.name, endpoint.authority)) or Engine(endpoint)
            engine.endpoint = endpoint
            engines.append(engine)
        self._engines = engines
        self._ready.set(sum(endpoint.is_ready for endpoint in endpoints))

    def take(self, failed: Sequence[Engine]) -> Seat:
        """A seat at the best engine that is not among those that have `failed` this request.

        Raises:
            ApiError: `engine_unavailable` or `overloaded`, with Retry-After.
        """
        choice = choose(
            [
                Replica(engine.endpoint.is_ready, engine.num_in_flight, engine.ejected_until_s, engine in failed)
                for engine in self._engines
            ],
            max_in_flight=self._model.max_in_flight_per_engine,
            now_s=asyncio.get_running_loop().time(),
            random=self._random,
        )
        if choice.is_placed:
            return Seat(self._engines[choice.index])
        name = self._model.model_class
        if choice.reason == "all_full":
            raise ApiError(errors.OVERLOADED, f"All engines of `{name}` are busy.", retry_after_s=FULL_RETRY_S)
        raise ApiError(errors.ENGINE_UNAVAILABLE, f"No engine of `{name}` is ready.", retry_after_s=NONE_READY_RETRY_S)
