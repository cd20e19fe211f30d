"""The one path from a request to its settled bill. Read `_serve`, then `_generate`.

    auth      who asks, from the API key alone
    validate  what is asked, from a closed list of bounded fields
    models    which class serves it
    context   how long the prompt is, and what may follow it
    limits    what it may cost is reserved
    route     which engine holds the most of the prompt and has the least to do
    dispatch  the engine is asked; until its first event another may be asked instead, once
    stream    events go to the client as they come
    settle    the bill is durable before the client is told that its answer is complete

Limits come after context, since tokens are reserved and only the chosen model's tokenizer can count them. Requests do not queue
here: when all engines of a class are full, the client is told at once when to come back.

Whatever happens, an event that was opened is closed, an engine whose client has left is told to stop, and a refusal costs no
engine anything.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress

import structlog

from serving.gateway import errors, settle, validate
from serving.gateway.auth import Authenticator, Principal
from serving.gateway.calls import CLIENT_GONE_STATUS, Call, record
from serving.gateway.context import Context, ContextCounter
from serving.gateway.dispatch import Dispatcher, EngineFailed, EngineLost, Upstream
from serving.gateway.errors import ApiError
from serving.gateway.exchange import BodyBroken, BodyTooLarge, BodyTooSlow, ClientGone, Exchange
from serving.gateway.limits import EXPECTED_OUTPUT_TOKENS, Limiter, Reservation
from serving.gateway.metrics import Metrics
from serving.gateway.models import Models
from serving.gateway.route import Engine, Pool
from serving.gateway.settle import Meter, UsageJournal
from serving.gateway.stream import DocumentSink, Sink, StreamSink, relay
from serving.gateway.trace import trace_of
from serving.gateway.watch import Cause, Interrupted, Watch
from serving.metering.events import Outcome, UsageOpen
from serving.settings import GatewaySettings, ServedModel

log = structlog.get_logger()

MAX_HEADERS_BYTES = 16 * 1024
MAX_ATTEMPTS = 2
"""Engines asked for one request. More would turn one engine's illness into everybody's load."""


class Pipeline:
    """Serves exchanges."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        gateway: str,
        authenticator: Authenticator,
        models: Models,
        context: ContextCounter,
        limiter: Limiter,
        pools: dict[str, Pool],
        dispatcher: Dispatcher,
        journal: UsageJournal,
        metrics: Metrics,
    ) -> None:
        self.idle = asyncio.Event()
        """Set while no request is being served."""
        self.idle.set()
        self._num_running = 0
        self._settings = settings
        self._gateway = gateway
        self._authenticator = authenticator
        self._models = models
        self._context = context
        self._limiter = limiter
        self._pools = pools
        self._dispatcher = dispatcher
        self._journal = journal
        self._metrics = metrics

    async def run(self, exchange: Exchange) -> None:
        """Serve one request from its first header to its last byte. Never raises, but for being cancelled."""
        call = Call(validate.ENDPOINTS[exchange.path], trace_of(exchange.headers))
        self._num_running += 1
        self.idle.clear()
        try:
            await self._serve(exchange, call)
        except ApiError as error:
            await _answer(exchange, call, error)
        except ClientGone:
            call.status = CLIENT_GONE_STATUS
        except Exception:
            log.exception("request_broke", request_id=call.request_id)
            await _answer(exchange, call, _internal_error())
        finally:
            self._num_running -= 1
            if not self._num_running:
                self.idle.set()
            record(call, exchange, self._metrics)

    async def _serve(self, exchange: Exchange, call: Call) -> None:
        """auth → validate → models → context → limits, then the engine's part.

        Raises:
            ApiError: the answer, where nothing has been sent yet.
            ClientGone: as it says.
        """
        principal = await self._authenticator.authenticate(exchange.headers)
        call.tenant, call.key_id = principal.tenant.id, principal.key_id

        body = await self._read_body(exchange)
        request = validate.parse(call.endpoint, body, max_depth=self._settings.max_json_depth)

        model = self._models.choose(request.model, principal.tenant)
        call.model = model.model_class

        context = await self._context.place(model, request, principal.cache_salt)

        expected = request.num_choices * min(context.max_tokens, EXPECTED_OUTPUT_TOKENS)
        reservation = await self._limiter.reserve(
            principal.tenant, call.request_id, prompt_tokens=context.prompt_tokens, output_tokens=expected
        )
        in_flight = self._metrics.in_flight.labels(call.model)
        in_flight.inc()
        try:
            await self._generate(exchange, call, principal, model, context, request, reservation)
        finally:
            in_flight.dec()
            if reservation is not None:
                await self._limiter.settle(reservation, call.used_tokens)

    async def _generate(
        self,
        exchange: Exchange,
        call: Call,
        principal: Principal,
        model: ServedModel,
        context: Context,
        request: validate.Request,
        reservation: Reservation | None,
    ) -> None:
        """settle's OPEN → route → dispatch → stream → settle's CLOSE.

        Raises:
            ApiError: the answer, where nothing has been sent yet.
            ClientGone: as it says.
        """
        if exchange.is_disconnected:
            raise ClientGone
        meter = call.meter = self._meter(call, principal, model, context)
        headers = [_request_id_header(call), *(reservation.headers if reservation is not None else ())]
        sink: Sink
        if request.is_streamed:
            sink = StreamSink(exchange, headers, wants_usage=request.wants_usage)
        else:
            sink = DocumentSink(exchange, headers, call.endpoint)
        body = validate.engine_body(
            request, model=model.model_class, max_tokens=context.max_tokens, cache_salt=principal.cache_salt
        )
        try:
            await meter.open()
        except asyncio.CancelledError:  # it may have become durable all the same
            await self._close(exchange, call, meter, Outcome.NOT_SERVED)
            raise
        outcome, error = await self._ask_and_relay(exchange, call, body, model, context, meter, sink)
        await self._finish(exchange, call, meter, sink, outcome, error)

    async def _ask_and_relay(
        self, exchange: Exchange, call: Call, body: bytes, model: ServedModel, context: Context, meter: Meter, sink: Sink
    ) -> tuple[Outcome, ApiError | None]:
        """route → dispatch → stream. How it ended, and what the client is to be told if anything went wrong; never raises, since
        an event is open. An engine that has not finished is told to stop before this returns."""
        upstream: Upstream | None = None
        try:
            async with Watch(exchange, self._settings.timeouts, sink.beat) as watch:
                upstream = await self._ask(exchange.path, body, call, model, context, meter, watch)
                await relay(upstream, sink, meter, watch)
            upstream.recycle()
            self._pools[call.model].quarantine.answered(fingerprint(body))
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
                self._pools[call.model].quarantine.killed(fingerprint(body), call.seat.engine.endpoint.name)
            return _engine_fault(call, upstream is not None, lost)
        except asyncio.CancelledError:  # the end of a drain: the gateway breaks off, not the engine and not the client
            return Outcome.GATEWAY_CRASH, ApiError(errors.DRAINING, "This gateway stopped before the answer was complete.")
        except Exception:
            log.exception("request_broke", request_id=call.request_id)
            return Outcome.GATEWAY_CRASH, _internal_error()
        finally:
            if upstream is not None:
                upstream.abort()

    async def _finish(
        self, exchange: Exchange, call: Call, meter: Meter, sink: Sink, outcome: Outcome, error: ApiError | None
    ) -> None:
        """settle's CLOSE, and only then the client's last word.

        Raises:
            ApiError: the answer, where nothing has been sent yet.
            ClientGone: as it says.
        """
        try:
            await self._close(exchange, call, meter, outcome)
        except ApiError as unmetered:
            error = unmetered
        if outcome is Outcome.CLIENT_GONE:
            raise ClientGone
        if error is None:
            await sink.end(meter)
        elif sink.is_started:
            call.error = error.kind.code
            await sink.fail(error)
        else:
            raise error

    async def _ask(
        self, path: str, body: bytes, call: Call, model: ServedModel, context: Context, meter: Meter, watch: Watch
    ) -> Upstream:
        """The first engine to answer with an event: the best one, or after a failure another, within the budget for retries.

        Raises:
            ApiError: none is ready or free, or those asked failed, or the engine finds fault with the request.
        """
        pool = self._pools[model.model_class]
        if pool.quarantine.holds(fingerprint(body)):
            raise ApiError(
                errors.REQUEST_QUARANTINED, "Engines have stopped while they worked on this request. Change it to try again."
            )
        pool.retries.request()
        failed: list[Engine] = []
        failure: EngineFailed | None = None
        while True:
            try:
                seat = call.seat = pool.take(context.prompt_tokens, context.chain, failed)
            except ApiError:
                if failure is not None:
                    raise failure.answer() from failure
                raise
            if failure is not None:
                self._metrics.retries.labels(call.model).inc()
            meter.asked(seat.engine.endpoint.name, seat.reason, asyncio.get_running_loop().time())
            watch.asking()
            try:
                return await self._dispatcher.send(seat, path, body, call.request_id, call.trace)
            except EngineFailed as error:
                seat.eject()
                if error.has_broken_off:
                    pool.quarantine.killed(fingerprint(body), seat.engine.endpoint.name)
                failed.append(seat.engine)
                failure = error
                log.warning("engine_failed", request_id=call.request_id, engine=seat.engine.endpoint.name, reason=str(error))
                if len(failed) == MAX_ATTEMPTS or not pool.retries.retry():
                    raise error.answer() from error

    async def _read_body(self, exchange: Exchange) -> bytes:
        """The body, within the limits on size and headers.

        Raises:
            ApiError, ClientGone: as they say.
        """
        if exchange.headers_bytes > MAX_HEADERS_BYTES:
            raise ApiError(errors.HEADERS_TOO_LARGE, f"Headers may have {MAX_HEADERS_BYTES} bytes in all.")
        if exchange.headers.get(b"content-encoding", b"identity") != b"identity":
            raise ApiError(errors.UNSUPPORTED_ENCODING, "Bodies must come without a content-encoding.")
        try:
            return await exchange.read_body(self._settings.max_body_bytes)
        except BodyTooLarge as error:
            raise ApiError(errors.BODY_TOO_LARGE, f"Bodies may have {self._settings.max_body_bytes} bytes.") from error
        except BodyTooSlow as error:
            raise ApiError(errors.BODY_TOO_SLOW, "The body did not arrive in time.") from error
        except BodyBroken as error:
            raise ApiError(errors.INVALID_HTTP, "The body is not framed as its headers say.") from error

    def _meter(self, call: Call, principal: Principal, model: ServedModel, context: Context) -> Meter:
        opened = UsageOpen(
            event_id=settle.mint_event_id(),
            tenant=principal.tenant.id,
            key_id=principal.key_id,
            model=model.model_class,
            release_id=context.release_id,
            region=self._settings.region,
            gateway=self._gateway,
            endpoint=call.endpoint,
            opened_at_ms=settle.now_ms(),
            prompt_tokens=context.prompt_tokens,
            price_version=self._settings.price_version,
            input_micro_usd_per_mtok=model.price.input_micro_usd_per_mtok,
            cached_input_micro_usd_per_mtok=model.price.cached_input_micro_usd_per_mtok,
            output_micro_usd_per_mtok=model.price.output_micro_usd_per_mtok,
            request_id=call.request_id,
        )
        return Meter(self._journal, self._settings.journal, opened)

    async def _close(self, exchange: Exchange, call: Call, meter: Meter, outcome: Outcome) -> None:
        closed = await meter.close(outcome, exchange.received_s, asyncio.get_running_loop().time())
        tokens = self._metrics.tokens
        tokens.labels(call.model, "input").inc(closed.prompt_tokens - closed.cached_tokens)
        tokens.labels(call.model, "cached_input").inc(closed.cached_tokens)
        tokens.labels(call.model, "output").inc(closed.output_tokens)


def _engine_fault(call: Call, has_begun: bool, reason: Exception) -> tuple[Outcome, ApiError]:
    """The engine did not keep its side: before its first event the client may try again, after it the answer is broken."""
    log.warning("engine_lost", request_id=call.request_id, model=call.model, reason=str(reason))
    if call.seat is not None:
        call.seat.eject()
    if not has_begun:
        return Outcome.NOT_SERVED, ApiError(errors.ENGINE_TIMEOUT, "The engine did not begin to answer in time.")
    why = f": {reason}" if isinstance(reason, Interrupted) else ""
    return Outcome.ENGINE_LOST, ApiError(errors.ENGINE_LOST, f"The answer broke off before it was complete{why}.")


def fingerprint(body: bytes) -> bytes:
    """What two requests share that are the same to an engine, tenant included."""
    return hashlib.blake2b(body, digest_size=16).digest()


def _internal_error() -> ApiError:
    return ApiError(errors.INTERNAL_ERROR, "Something went wrong here. Quote the request id when you report it.")


async def _answer(exchange: Exchange, call: Call, error: ApiError) -> None:
    """Send an error as the whole answer."""
    call.failed(error)
    body = error.body()
    head = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    with suppress(ClientGone):
        exchange.start(error.kind.status, (*head, _request_id_header(call), *error.all_headers()))
        await exchange.finish(body)


def _request_id_header(call: Call) -> tuple[bytes, bytes]:
    return (b"x-request-id", call.request_id.encode())
