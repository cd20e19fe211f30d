"""The one path from a request to its settled bill. Read `_serve`, `_admit`, `_generate`, then `attempts.py`.

    auth      who asks, from the API key alone
    validate  what is asked, from a closed list of bounded fields
    claim     with an Idempotency-Key: a request that came before is answered as before, and nothing below happens again
    recall    what was said before, where it goes on with a stored conversation
    models    which class serves it: the one that is named, or for `auto` what the rule says
    context   how long the prompt is, and what may follow it; what is too long is refused, or shortened as was declared
    limits    what it may cost is reserved
    queue     engines that are full are waited for, fairly, or the client is told at once when to come back
    route     which engine holds the most of the prompt and has the least to do
    dispatch  the engine is asked; until its first event another may be asked instead, once
    stream    events go to the client as they come
    settle    the bill is durable before the client is told that its answer is complete

Limits come after context, since tokens are reserved and only the chosen model's tokenizer can count them. What waits, waits here
and not at engines, which know nothing of tenants.

Whatever happens, an event that was opened is closed, an engine whose client has left is told to stop, and a refusal costs no
engine anything.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import structlog

from policies.admission.limits import Cost
from serving.gateway import embeddings, errors, idempotency, limit_answers, reserving, responses, resume, settle, validate
from serving.gateway.aside import Aside, NoAnswer
from serving.gateway.attempts import Attempts, Order
from serving.gateway.auth import Authenticator, Principal
from serving.gateway.auto_model import choice_headers
from serving.gateway.calls import CLIENT_GONE_STATUS, Call, mint_request_id, record
from serving.gateway.compaction import context_headers
from serving.gateway.context import Context, ContextCounter
from serving.gateway.conversations import Conversations
from serving.gateway.dispatch import Dispatcher
from serving.gateway.embeddings import EmbeddingsRequest
from serving.gateway.errors import ApiError
from serving.gateway.exchange import BodyBroken, BodyTooLarge, BodyTooSlow, ClientGone, Exchange, Headers
from serving.gateway.idempotency import Idempotency
from serving.gateway.limits import Limiter, Reservation
from serving.gateway.metrics import Metrics
from serving.gateway.models import Models
from serving.gateway.placing import Placing
from serving.gateway.queue import ClassQueue, Turn
from serving.gateway.registered import PromptBook, prompt_headers
from serving.gateway.respond import Response, ResponseDocumentSink, ResponseStreamSink
from serving.gateway.route import Pool
from serving.gateway.settle import Meter, UsageJournal
from serving.gateway.stream import DocumentSink, PassingSink, Sink, StreamSink
from serving.gateway.trace import trace_of
from serving.metering.events import Outcome, UsageOpen
from serving.settings import AUTO_MODEL, GatewaySettings, ServedModel

log = structlog.get_logger()

MAX_HEADERS_BYTES = 16 * 1024


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
        queues: Mapping[str, ClassQueue],
        dispatcher: Dispatcher,
        journal: UsageJournal,
        claims: Idempotency,
        prompts: PromptBook,
        conversations: Conversations,
        metrics: Metrics,
    ) -> None:
        self.idle = asyncio.Event()
        """Set while no request is being served."""
        self.idle.set()
        self.in_flight: Counter[tuple[str, str]] = Counter()
        """Requests at engines or on their way there, by class and band."""
        self.is_refusing: Callable[[], bool] = lambda: False
        """New requests are refused: this gateway is drained."""
        self._num_running = 0
        self._settings = settings
        self._gateway = gateway
        self._authenticator = authenticator
        self._models = models
        self._placing = Placing(models, context)
        self._limiter = limiter
        self._queues = queues
        self._attempts = Attempts(settings.timeouts, pools, dispatcher, metrics)
        self._journal = journal
        self._claims = claims
        self._prompts = prompts
        self._conversations = conversations
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
            await _answer(exchange, call, errors.internal_error())
        finally:
            self._num_running -= 1
            if not self._num_running:
                self.idle.set()
            record(call, exchange, self._metrics)

    async def count(self, exchange: Exchange) -> int:
        """Tokens of the prompt that a request comes to, as its engine would count them. It is one of the tenant's requests, of
        no tokens.

        Raises:
            ApiError, ClientGone: as they say.
        """
        principal = await self._authenticator.authenticate(exchange.headers)
        chat = responses.parse_count(await self.read_body(exchange), max_depth=self._settings.max_json_depth)
        chat, _ = await self._prompts.expand(principal.tenant.id, chat)
        if chat.model != AUTO_MODEL:
            self._models.choose(chat.model, principal.tenant)
        reservation = await self._limiter.reserve(principal.accounts, mint_request_id(), Cost(requests=1))
        try:
            return await self._placing.count(exchange, principal, chat)
        finally:
            if reservation is not None:
                await self._limiter.settle(reservation, Cost())

    async def spend_request(self, headers: Mapping[bytes, bytes]) -> str:
        """The tenant that asks for something that needs no engine: it is one of its requests, of no tokens.

        Raises:
            ApiError: as it says.
        """
        principal = await self._authenticator.authenticate(headers)
        reservation = await self._limiter.reserve(principal.accounts, mint_request_id(), Cost(requests=1))
        if reservation is not None:
            await self._limiter.settle(reservation, Cost())
        return principal.tenant.id

    async def _serve(self, exchange: Exchange, call: Call) -> None:
        """auth → validate; and with a key of its own the request is served once, however often it comes.

        Raises:
            ApiError: the answer, where nothing has been sent yet.
            ClientGone: as it says.
        """
        if self.is_refusing():
            raise ApiError(errors.DRAINING, "This gateway is drained; ask again, and another will answer.", retry_after_s=1)
        principal = await self._authenticator.authenticate(exchange.headers)
        call.tenant, call.key_id = principal.tenant.id, principal.key_id

        body = await self.read_body(exchange)
        request: validate.Request | EmbeddingsRequest
        response: responses.ResponsesRequest | None = None
        if call.endpoint == "responses":
            response, request = responses.parse(body, max_depth=self._settings.max_json_depth)
        elif call.endpoint == "embeddings":
            request = embeddings.parse(body, max_depth=self._settings.max_json_depth)
        else:
            request = validate.parse(call.endpoint, body, max_depth=self._settings.max_json_depth)

        async def run(to: Exchange) -> None:
            if isinstance(request, validate.ChatRequest):
                await self._recall(to, call, principal, request, response)
            else:
                await self._admit(to, call, principal, request, response)

        key = idempotency.key_of(exchange.headers)
        if key is None:
            await run(exchange)
        else:
            await self._claims.serve(exchange, call, key, body, run)

    async def _recall(
        self,
        exchange: Exchange,
        call: Call,
        principal: Principal,
        chat: validate.ChatRequest,
        response: responses.ResponsesRequest | None,
    ) -> None:
        """recall: a registered prompt, then what was said before, stand in front of what is sent; then all that follows.

        Raises:
            ApiError: the answer, where nothing has been sent yet.
            ClientGone: as it says.
        """
        if chat.conversation is None:
            asked, call.prompt = await self._prompts.expand(principal.tenant.id, chat)
            await self._admit(exchange, call, principal, asked, response)
            return
        async with self._conversations.turn(principal.tenant.id, chat) as (call.turn, whole):
            asked, call.prompt = await self._prompts.expand(principal.tenant.id, whole)
            await self._admit(exchange, call, principal, asked, response)

    async def _admit(
        self,
        exchange: Exchange,
        call: Call,
        principal: Principal,
        request: validate.Request | EmbeddingsRequest,
        response: responses.ResponsesRequest | None,
    ) -> None:
        """models → context → limits → queue, then the engine's part.

        Raises:
            ApiError: the answer, where nothing has been sent yet.
            ClientGone: as it says.
        """

        async def ask(own: validate.ChatRequest) -> str:
            return await self._ask_aside(exchange, call, principal, own)

        model, request, context = await self._placing.place(exchange, call, principal, request, ask)
        rate = self._models.rate(model, settle.now_ms())
        cost = reserving.wanted(context, request.num_choices, rate)
        reservation = await self._limiter.reserve(principal.accounts, call.request_id, cost)
        if reservation is not None and (allowed := reserving.allowance(reservation, rate, request.num_choices)) is not None:
            context = replace(context, max_tokens=min(context.max_tokens, allowed))
        in_flight = self._metrics.in_flight.labels(call.model)
        in_flight.inc()
        self.in_flight[call.model, principal.tenant.band] += 1
        queue, turn = self._queues[call.model], None
        try:
            turn = queue.enter(principal.tenant, exchange, context.prompt_tokens, request.num_choices * context.max_tokens)
            if turn.granted is not None:
                await queue.wait(turn, exchange)
            await self._generate(exchange, call, principal, model, context, request, response, reservation, turn)
        finally:
            if turn is not None:
                queue.leave(turn, uncached_tokens=call.uncached_tokens, output_tokens=call.output_tokens)
            in_flight.dec()
            self.in_flight[call.model, principal.tenant.band] -= 1
            if reservation is not None:
                await self._limiter.settle(reservation, reserving.used(call.meter))

    async def _ask_aside(self, exchange: Exchange, call: Call, principal: Principal, request: validate.ChatRequest) -> str:
        """The text of the answer to a request of our own, made for the one in `call` and billed to its tenant by itself.

        Raises:
            NoAnswer: there is none.
            ClientGone: nobody waits for it any more.
        """
        own = Call("chat.completions", call.trace, tenant=call.tenant, key_id=call.key_id, summary_for=call.event_id)
        with Aside(exchange) as aside:
            try:
                await self._admit(aside, own, principal, request, None)
                return aside.text
            except ApiError as error:
                own.failed(error)
                raise NoAnswer(error.kind.code) from error
            except ClientGone:
                own.status = CLIENT_GONE_STATUS
                if aside.is_late:
                    raise NoAnswer("timeout") from None
                raise
            finally:
                record(own, aside, self._metrics)

    async def _generate(
        self,
        exchange: Exchange,
        call: Call,
        principal: Principal,
        model: ServedModel,
        context: Context,
        request: validate.Request | EmbeddingsRequest,
        response: responses.ResponsesRequest | None,
        reservation: Reservation | None,
        turn: Turn,
    ) -> None:
        """settle's OPEN → route → dispatch → stream → settle's CLOSE.

        Raises:
            ApiError: the answer, where nothing has been sent yet.
            ClientGone: as it says.
        """
        if exchange.is_disconnected:
            raise ClientGone
        meter = call.meter = self._meter(call, principal, model, context, request.num_choices)
        headers = [_request_id_header(call), *choice_headers(call.choice), *context_headers(call.compacted)]
        headers += [*prompt_headers(call.prompt), *turn.headers]
        if reservation is not None:
            headers.extend(reservation.headers)
        if reservation is not None and reservation.bound_by != "admitted":
            headers.append((limit_answers.ALLOWANCE_HEADER, b"%d" % context.max_tokens))
            meter.bound_by = reservation.bound_by
        transcript: resume.Transcript | None = None
        if not isinstance(request, EmbeddingsRequest) and resume.is_wanted(exchange.headers) and resume.is_possible(request):
            transcript = resume.Transcript(
                request,
                model=model.model_class,
                max_tokens=context.max_tokens,
                cache_salt=principal.cache_salt,
                counter=context.counter,
            )
            headers.append((resume.HEADER, b"true"))
        sink = _sink(exchange, headers, call, request, response)
        if call.turn is not None:
            sink = call.turn.listening(sink)
        if isinstance(request, EmbeddingsRequest):
            body = embeddings.engine_body(request, model=model.model_class, cache_salt=principal.cache_salt)
        else:
            body = validate.engine_body(
                request,
                model=model.model_class,
                max_tokens=context.max_tokens,
                cache_salt=principal.cache_salt,
                with_ids=transcript is not None,
            )
        try:
            await meter.open()
        except asyncio.CancelledError:  # it may have become durable all the same
            await self._close(exchange, call, meter, Outcome.NOT_SERVED)
            raise
        order = Order.of(validate.ENGINE_PATHS[call.endpoint], body, context.prompt_tokens, context.chain, transcript)
        outcome, error = await self._attempts.serve(exchange, call, order, meter, sink)
        await self._finish(exchange, call, meter, sink, outcome, error)

    async def _finish(
        self, exchange: Exchange, call: Call, meter: Meter, sink: Sink, outcome: Outcome, error: ApiError | None
    ) -> None:
        """settle's CLOSE, then a stored conversation's turn, and only then the client's last word.

        Raises:
            ApiError: the answer, where nothing has been sent yet.
            ClientGone: as it says.
        """
        try:
            await self._close(exchange, call, meter, outcome)
            if error is None and outcome is Outcome.FINISHED and call.turn is not None:
                await self._conversations.store(call.turn)
        except ApiError as unkept:
            error = unkept
        if outcome is Outcome.CLIENT_GONE:
            raise ClientGone
        if error is None:
            await sink.end(meter)
        elif sink.is_started:
            call.error = error.kind.code
            await sink.fail(error)
        else:
            raise error

    async def read_body(self, exchange: Exchange) -> bytes:
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

    def _meter(self, call: Call, principal: Principal, model: ServedModel, context: Context, num_choices: int) -> Meter:
        opened_at_ms = settle.now_ms()
        rate = self._models.rate(model, opened_at_ms)
        opened = UsageOpen(
            event_id=call.event_id or settle.mint_event_id(),
            tenant=principal.tenant.id,
            key_id=principal.key_id,
            model=model.model_class,
            release_id=context.release_id,
            region=self._settings.region,
            gateway=self._gateway,
            endpoint=call.endpoint,
            opened_at_ms=opened_at_ms,
            prompt_tokens=context.prompt_tokens,
            price_version=rate.version,
            input_micro_usd_per_mtok=rate.input_micro_usd_per_mtok,
            cached_input_micro_usd_per_mtok=rate.cached_input_micro_usd_per_mtok,
            output_micro_usd_per_mtok=rate.output_micro_usd_per_mtok,
            request_id=call.request_id,
            claim=call.claim,
            num_choices=num_choices,
            asked_model="" if call.choice is None else AUTO_MODEL,
            model_reason="" if call.choice is None else call.choice.reason,
            is_compacted=call.compacted is not None,
            compaction="" if call.compacted is None else call.compacted.strategy,
            dropped_messages=0 if call.compacted is None else len(call.compacted.dropped),
            dropped_tokens=0 if call.compacted is None else call.compacted.dropped_tokens,
            summary_for=call.summary_for,
        )
        return Meter(self._journal, self._settings.journal, opened, num_choices * context.max_tokens)

    async def _close(self, exchange: Exchange, call: Call, meter: Meter, outcome: Outcome) -> None:
        closed = await meter.close(outcome, exchange.received_s, asyncio.get_running_loop().time())
        if meter.is_disputed:
            self._metrics.usage_disputed.labels(call.model).inc()
            log.warning(
                "usage_disputed", request_id=call.request_id, engine=meter.engines[-1:], output_tokens=closed.output_tokens
            )
        tokens = self._metrics.tokens
        tokens.labels(call.model, "input").inc(closed.prompt_tokens - closed.cached_tokens)
        tokens.labels(call.model, "cached_input").inc(closed.cached_tokens)
        tokens.labels(call.model, "output").inc(closed.output_tokens)


def _sink(
    exchange: Exchange,
    headers: Headers,
    call: Call,
    request: validate.Request | EmbeddingsRequest,
    response: responses.ResponsesRequest | None,
) -> Sink:
    """The client's side, by what it asked for."""
    if isinstance(request, EmbeddingsRequest):
        return PassingSink(exchange, headers, call.endpoint)
    if response is not None:
        told = Response(response, call.model, settle.now_ms() // 1000)
        sink = ResponseStreamSink if request.is_streamed else ResponseDocumentSink
        return sink(exchange, headers, told)
    if request.is_streamed:
        return StreamSink(exchange, headers, wants_usage=request.wants_usage)
    return DocumentSink(exchange, headers, call.endpoint)


async def _answer(exchange: Exchange, call: Call, error: ApiError) -> None:
    """Send an error as the whole answer."""
    call.failed(error)
    body = error.body()
    head = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    with suppress(ClientGone):
        told = (*choice_headers(call.choice), *context_headers(call.compacted), *error.all_headers())
        exchange.start(error.kind.status, (*head, _request_id_header(call), *told))
        await exchange.finish(body)


def _request_id_header(call: Call) -> tuple[bytes, bytes]:
    return (b"x-request-id", call.request_id.encode())
