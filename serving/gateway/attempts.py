"""route → dispatch → stream: engines are asked for one request until one has answered it, as far as that is wise.

Before its first event another engine may be asked instead, once, within the budget for retries. After it the answer is broken.
A usage event is open all the while, so whatever happens is told by a value and never raised.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from functools import cached_property

import structlog

from policies.routing.prefix_index import Chain
from serving.gateway import errors
from serving.gateway.calls import Call
from serving.gateway.dispatch import Dispatcher, EngineFailed, EngineLost, Upstream
from serving.gateway.errors import ApiError
from serving.gateway.exchange import ClientGone, Exchange
from serving.gateway.metrics import Metrics
from serving.gateway.route import Engine, Pool
from serving.gateway.settle import Meter
from serving.gateway.stream import Sink, relay
from serving.gateway.watch import Cause, Interrupted, Watch
from serving.metering.events import Outcome
from serving.settings import Timeouts

log = structlog.get_logger()

MAX_ATTEMPTS = 2
"""Engines asked for one request. More would turn one engine's illness into everybody's load."""


@dataclass(frozen=True)
class Order:
    """What engines are asked."""

    path: str
    body: bytes
    prompt_tokens: int
    chain: Chain
    """The prompt's blocks."""

    @cached_property
    def fingerprint(self) -> bytes:
        """What two requests share that are the same to an engine, tenant included."""
        return hashlib.blake2b(self.body, digest_size=16).digest()


class Attempts:
    """Asks the engines of all classes."""

    def __init__(self, timeouts: Timeouts, pools: dict[str, Pool], dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._timeouts = timeouts
        self._pools = pools
        self._dispatcher = dispatcher
        self._metrics = metrics

    async def serve(
        self, exchange: Exchange, call: Call, order: Order, meter: Meter, sink: Sink
    ) -> tuple[Outcome, ApiError | None]:
        """How it ended, and what the client is to be told if anything went wrong; never raises. An engine that has not finished
        is told to stop before this returns."""
        upstream: Upstream | None = None
        pool = self._pools[call.model]
        try:
            async with Watch(exchange, self._timeouts, sink.beat) as watch:
                upstream = await self._ask(pool, call, order, meter, watch)
                await relay(upstream, sink, meter, watch)
            upstream.recycle()
            pool.quarantine.answered(order.fingerprint)
            return Outcome.FINISHED, None
        except ApiError as refusal:
            return Outcome.NOT_SERVED, refusal
        except ClientGone:
            return Outcome.CLIENT_GONE, None
        except Interrupted as interrupted:
            if interrupted.cause in (Cause.CLIENT_GONE, Cause.CLIENT_STALLED):
                return Outcome.CLIENT_GONE, None
            return _engine_fault(call, upstream is not None, interrupted)
        except EngineLost as lost:
            if lost.has_broken_off and call.seat is not None:
                pool.quarantine.killed(order.fingerprint, call.seat.engine.endpoint.name)
            return _engine_fault(call, upstream is not None, lost)
        except asyncio.CancelledError:  # the end of a drain: the gateway breaks off, not the engine and not the client
            return Outcome.GATEWAY_CRASH, ApiError(errors.DRAINING, "This gateway stopped before the answer was complete.")
        except Exception:
            log.exception("request_broke", request_id=call.request_id)
            return Outcome.GATEWAY_CRASH, errors.internal_error()
        finally:
            if upstream is not None:
                upstream.abort()

    async def _ask(self, pool: Pool, call: Call, order: Order, meter: Meter, watch: Watch) -> Upstream:
        """The first engine to answer with an event: the best one, or after a failure another, within the budget for retries.

        Raises:
            ApiError: none is ready or free, or those asked failed, or the engine finds fault with the request.
        """
        if pool.quarantine.holds(order.fingerprint):
            raise ApiError(
                errors.REQUEST_QUARANTINED, "Engines have stopped while they worked on this request. Change it to try again."
            )
        pool.retries.request()
        failed: list[Engine] = []
        failure: EngineFailed | None = None
        while True:
            try:
                seat = call.seat = pool.take(order.prompt_tokens, order.chain, failed)
            except ApiError:
                if failure is not None:
                    raise failure.answer() from failure
                raise
            if failure is not None:
                self._metrics.retries.labels(call.model).inc()
            meter.asked(seat.engine.endpoint.name, seat.reason, asyncio.get_running_loop().time())
            watch.asking()
            try:
                return await self._dispatcher.send(seat, order.path, order.body, call.request_id, call.trace)
            except EngineFailed as error:
                seat.eject()
                if error.has_broken_off:
                    pool.quarantine.killed(order.fingerprint, seat.engine.endpoint.name)
                failed.append(seat.engine)
                failure = error
                log.warning("engine_failed", request_id=call.request_id, engine=seat.engine.endpoint.name, reason=str(error))
                if len(failed) == MAX_ATTEMPTS or not pool.retries.retry():
                    raise error.answer() from error


def _engine_fault(call: Call, has_begun: bool, reason: Exception) -> tuple[Outcome, ApiError]:
    """The engine did not keep its side: before its first event the client may try again, after it the answer is broken."""
    log.warning("engine_lost", request_id=call.request_id, model=call.model, reason=str(reason))
    if call.seat is not None:
        call.seat.eject()
    if not has_begun:
        return Outcome.NOT_SERVED, ApiError(errors.ENGINE_TIMEOUT, "The engine did not begin to answer in time.")
    why = f": {reason}" if isinstance(reason, Interrupted) else ""
    return Outcome.ENGINE_LOST, ApiError(errors.ENGINE_LOST, f"The answer broke off before it was complete{why}.")
