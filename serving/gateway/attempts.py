"""route → dispatch → stream: engines are asked for one request until one has answered it, as far as that is wise.

Before its first event another engine may be asked instead, once, within the budget for retries. After it the answer is broken,
unless the client opted into resuming (`resume.py`): then another engine goes on with it, under the same usage event. A usage
event is open all the while, so whatever happens is told by a value and never raised.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

import structlog

from policies.routing.prefix_index import Chain
from serving.gateway import errors, resume, settle
from serving.gateway.calls import Call
from serving.gateway.dispatch import Dispatcher, EngineFailed, EngineLost, Source, Upstream
from serving.gateway.errors import ApiError
from serving.gateway.exchange import ClientGone, Exchange
from serving.gateway.hedge import first_of
from serving.gateway.metrics import Metrics
from serving.gateway.resume import Recorded, Totals, Transcript
from serving.gateway.route import Engine, Pool, Seat
from serving.gateway.settle import Meter
from serving.gateway.stream import Sink, relay
from serving.gateway.watch import Cause, Interrupted, Watch
from serving.metering.events import Outcome
from serving.metering.journal import JournalUnavailable
from serving.settings import Timeouts

log = structlog.get_logger()

MAX_ATTEMPTS = 2
"""Engines asked for one first event. More would turn one engine's illness into everybody's load."""
MAX_RESUMES = 2
"""Times that one answer goes on elsewhere: once freely, since what the lost engine had to do is only moved, then within the
budget for retries."""

_BROKE_OFF = "The answer broke off before it was complete"


@dataclass(frozen=True)
class Order:
    """What engines are asked."""

    path: str
    body: bytes
    prompt_tokens: int
    chain: Chain
    """The prompt's blocks."""
    fingerprint: bytes
    """What two requests share that are the same to an engine, tenant included."""
    transcript: Transcript | None
    """Of the answer, for a client that opted into resuming."""

    @classmethod
    def of(cls, path: str, body: bytes, prompt_tokens: int, chain: Chain, transcript: Transcript | None) -> Order:
        """An order with the fingerprint of `body`."""
        return cls(path, body, prompt_tokens, chain, hashlib.blake2b(body, digest_size=16).digest(), transcript)

    def rest(self, transcript: Transcript) -> Order:
        """What is left to be asked."""
        prompt_tokens = self.prompt_tokens + len(transcript.ids)
        return replace(self, path=resume.PATH, body=transcript.request(), prompt_tokens=prompt_tokens)


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
        watch = Watch(exchange, self._timeouts, sink.beat)
        serving = _Serving(self._pools[call.model], self._dispatcher, self._metrics, call, order, meter, watch)
        try:
            async with watch:
                source = await serving.run(sink)
            source.recycle()
            serving.pool.quarantine.answered(order.fingerprint)
            return Outcome.FINISHED, None
        except ApiError as refusal:
            return Outcome.NOT_SERVED, refusal
        except ClientGone:
            return Outcome.CLIENT_GONE, None
        except Interrupted as interrupted:
            if interrupted.cause in (Cause.CLIENT_GONE, Cause.CLIENT_STALLED):
                return Outcome.CLIENT_GONE, None
            serving.failed(interrupted, is_suspect=interrupted.cause is not Cause.TOO_LONG)
            if serving.upstream is None:
                return Outcome.NOT_SERVED, ApiError(errors.ENGINE_TIMEOUT, "The engine did not begin to answer in time.")
            return Outcome.ENGINE_LOST, ApiError(errors.ENGINE_LOST, f"{_BROKE_OFF}: {interrupted}.")
        except EngineLost:
            return Outcome.ENGINE_LOST, ApiError(errors.ENGINE_LOST, f"{_BROKE_OFF}.")
        except JournalUnavailable:  # what the client has is billed; it gets no more that may not be
            return Outcome.GATEWAY_CRASH, settle.unavailable()
        except asyncio.CancelledError:  # the end of a drain: the gateway breaks off, not the engine and not the client
            return Outcome.GATEWAY_CRASH, ApiError(errors.DRAINING, "This gateway stopped before the answer was complete.")
        except Exception:
            log.exception("request_broke", request_id=call.request_id)
            return Outcome.GATEWAY_CRASH, errors.internal_error()
        finally:
            if serving.upstream is not None:
                serving.upstream.abort()


@dataclass
class _Serving:
    """One request at its engines."""

    pool: Pool
    dispatcher: Dispatcher
    metrics: Metrics
    call: Call
    order: Order
    meter: Meter
    watch: Watch
    upstream: Upstream | None = None
    """The engine's answer, from its first event on."""

    async def run(self, sink: Sink) -> Source:
        """All of the answer has gone to `sink`; where it came from in the end.

        Raises:
            ApiError, EngineLost, ClientGone: as they say.
        """
        if self.pool.quarantine.holds(self.order.fingerprint):
            name = self.order.fingerprint.hex()
            message = (
                f"Engines have stopped while they worked on this request. Change it to try again. Its fingerprint is {name}."
            )
            raise ApiError(errors.REQUEST_QUARANTINED, message)
        self.pool.retries.request()
        source: Source = await self._ask(self.order, [])
        if self.order.transcript is not None:
            source = self._recorded(self.order.transcript, is_first=True)
        for num_breaks in itertools.count():
            try:
                await relay(source, sink, self.meter, self.watch)
                break
            except EngineLost as lost:
                self.failed(lost, has_broken_off=lost.has_broken_off)
                source = await self._rest(lost, num_breaks)
        return source

    async def _rest(self, lost: EngineLost, num_resumes: int) -> Source:
        """What is missing of an answer whose engine is `lost`, from one that has begun to go on with it.

        Raises:
            EngineLost: `lost`, since nobody can or may.
        """
        transcript = self.order.transcript
        assert self.upstream is not None and self.call.seat is not None
        if transcript is None or num_resumes == MAX_RESUMES or self.pool.quarantine.holds(self.order.fingerprint):
            raise lost
        if transcript.is_finished:
            return Totals(transcript)
        if not transcript.can_go_on() or (num_resumes and not self.pool.retries.retry()):
            raise lost
        self.upstream.abort()
        try:
            await self._ask(self.order.rest(transcript), [self.call.seat.engine])
        except ApiError as refusal:
            raise lost from refusal
        self.metrics.resumes.labels(self.call.model).inc()
        return self._recorded(transcript, is_first=False)

    def _recorded(self, transcript: Transcript, *, is_first: bool) -> Source:
        """The engine's answer, which is left for another's when the engine hangs."""
        upstream = self.upstream
        assert upstream is not None and self.call.seat is not None
        self.call.seat.may_move()
        self.watch.on_silence = lambda: upstream.give_up(Cause.ENGINE_SILENT.value)
        return Recorded(upstream, transcript, is_first=is_first)

    async def _ask(self, order: Order, failed: list[Engine]) -> Upstream:
        """The first engine to answer with an event: the best one, or after a failure another, within the budget for retries. None
        that has `failed` is asked.

        Raises:
            ApiError: none is ready or free, or those asked failed, or the engine finds fault with the request.
        """
        failure: EngineFailed | None = None
        for num_failures in itertools.count(1):
            try:
                seat = self.call.seat = self.pool.take(order.prompt_tokens, order.chain, failed)
            except ApiError:
                if failure is not None:
                    raise failure.answer() from failure
                raise
            if failure is not None:
                self.metrics.retries.labels(self.call.model).inc()
            self.meter.asked(seat.engine.endpoint.name, seat.reason, asyncio.get_running_loop().time())
            self.watch.asking()
            try:
                self.upstream = await self._first_event(seat, order, failed)
                return self.upstream
            except EngineFailed as error:
                self.failed(error, has_broken_off=error.has_broken_off)
                failed.append(self.call.seat.engine)
                failure = error
                if num_failures == MAX_ATTEMPTS or not self.pool.retries.retry():
                    raise error.answer() from error
        raise AssertionError("counting ends")

    async def _first_event(self, seat: Seat, order: Order, failed: list[Engine]) -> Upstream:
        """The answer of the engine at `seat`; or, where hedging is on and that one takes longer than nearly all do, of another.

        Raises:
            EngineFailed, ApiError: as `Dispatcher.send` says. The call's seat is the one at which the last engine failed.
        """

        def asked(at: Seat) -> Coroutine[Any, Any, Upstream]:
            return self.dispatcher.send(at, order.path, order.body, self.call.request_id, self.call.trace)

        if math.isinf(seat.hedge_after_s):
            return await asked(seat)
        seats = [seat]

        def second() -> Coroutine[Any, Any, Upstream] | None:
            if len(self.pool.engines) < 2 or not self.pool.retries.retry():
                return None
            try:
                other = self.pool.take(order.prompt_tokens, order.chain, [*failed, seat.engine])
            except ApiError:
                return None
            seats.append(other)
            self.meter.asked(other.engine.endpoint.name, other.reason, asyncio.get_running_loop().time())
            return asked(other)

        def lost(number: int, error: EngineFailed) -> None:
            self.call.seat = seats[number]
            self.failed(error, has_broken_off=error.has_broken_off)
            failed.append(seats[number].engine)
            self.call.seat = seats[1 - number]

        number, upstream = await first_of(asked(seat), seat.hedge_after_s, second, lost)
        self.call.seat = seats[number]
        if len(seats) > 1:
            self.metrics.hedges.labels(self.call.model, ("one", "two")[number]).inc()
        return upstream

    def failed(self, reason: Exception, *, is_suspect: bool = True, has_broken_off: bool = False) -> None:
        """The engine asked last did not keep its side. A suspect is passed over for a while; one that broke off may have died of
        the request."""
        seat = self.call.seat
        name = "" if seat is None else seat.engine.endpoint.name
        log.warning("engine_failed", request_id=self.call.request_id, model=self.call.model, engine=name, reason=str(reason))
        if seat is not None and is_suspect:
            seat.eject()
        if seat is not None and has_broken_off:
            self.pool.quarantine.killed(self.order.fingerprint, name)
