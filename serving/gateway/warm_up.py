"""Keeps registered prompts in prefix caches: what is not there is asked once at the engines where its requests will go.

Each prompt has `REPLICAS` engines of a class, by the ring that also places a prompt which no engine is known to hold: so a
gateway that has just started, and knows nothing, sends its requests to one of them. Engines are looked at every few seconds, and
asked for one token behind the prompt where this gateway does not know them to hold it, or where they have come back since: after
a registration, and after a restart of engine or gateway. One that has it after all computes next to nothing.

A warm-up never competes with a tenant: it is sent while nobody waits for the class and the engine is mostly idle, one at a time
at each gateway, and gateways tell each other in the region's cache that they are about to (without the cache, nobody warms). It
is billed to nobody: its usage event is `TENANT`'s, which no tenant can be called, at no price; so bills and engines' own counters
still reconcile.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from policies.routing.prefix_index import Chain
from serving.gateway import settle, sse, validate
from serving.gateway.auth import Authenticator
from serving.gateway.calls import mint_request_id
from serving.gateway.context import ContextCounter
from serving.gateway.dispatch import Dispatcher, EngineFailed
from serving.gateway.errors import ApiError
from serving.gateway.messages import Message, PromptRef
from serving.gateway.models import Models
from serving.gateway.prompt_table import Warm
from serving.gateway.queue import ClassQueue
from serving.gateway.registered import PromptBook
from serving.gateway.route import Engine, Pool
from serving.gateway.settle import Meter, UsageJournal
from serving.gateway.tenants import Tenant
from serving.gateway.trace import NO_TRACE
from serving.gateway.validate import ChatRequest
from serving.metering.events import Outcome, UsageOpen
from serving.settings import GatewaySettings, ServedModel

log = structlog.get_logger()

TENANT = "_warm-up"
"""Of the usage events: no tenant's id begins so."""
ENDPOINT, PRICE_VERSION = "warm_up", "warm_up"
REPLICAS = 2
MAX_PROMPTS = 64
"""Those whose latest version is newest; older ones stay warm by their requests alone."""
MAX_TOKENS = 65_536
"""Of each class's prompts that are kept warm, at each engine: a sixth of what an A100 with 40 GB holds beside a 7B model."""
LOOK_EVERY_S = 10.0
AGAIN_AFTER_S = 30.0
"""An engine is asked for one prompt no more often than this, by all gateways of a region together."""
TIMEOUT_S = 60.0
MOSTLY_IDLE = 4
"""An engine is, while it has less than one in so many of its slots taken."""
_CACHE_TIMEOUT_S = 0.25
_MAX_REMEMBERED = 4096
_BEHIND = ("a", "b")
"""What two requests have in common that ask these is the prompt."""


@dataclass(frozen=True)
class _Prefix:
    """A prompt as engines of one class know it."""

    body: bytes
    prompt_tokens: int
    chain: Chain
    """The blocks of it that every request which begins with it shares."""
    release_id: str


class WarmUp:
    """A gateway's part. `run` looks again and again, at once when a prompt was registered here."""

    def __init__(
        self,
        settings: GatewaySettings,
        gateway: str,
        *,
        prompts: PromptBook,
        tenant_of: Callable[[str], Tenant | None],
        authenticator: Authenticator,
        models: Models,
        context: ContextCounter,
        pools: Mapping[str, Pool],
        queues: Mapping[str, ClassQueue],
        dispatcher: Dispatcher,
        journal: UsageJournal,
    ) -> None:
        """`tenant_of` blocks."""
        self._settings, self._gateway = settings, gateway
        self._prompts, self._tenant_of, self._authenticator = prompts, tenant_of, authenticator
        self._models: dict[str, ServedModel] = {model.model_class: model for model in models.served}
        self._context = context
        self._pools, self._queues, self._dispatcher, self._journal = pools, queues, dispatcher, journal
        self._awake = asyncio.Event()
        prompts.on_registered = self._awake.set
        self._prefixes: OrderedDict[tuple[str, ...], _Prefix] = OrderedDict()
        self._seen: OrderedDict[tuple[int, str], float] = OrderedDict()
        """By prompt and engine: since when the engine had been up when it was last known to hold the prompt."""
        self._redis = Redis.from_url(
            settings.cache_url,
            socket_timeout=_CACHE_TIMEOUT_S,
            socket_connect_timeout=_CACHE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    async def run(self) -> None:
        """Look every `LOOK_EVERY_S`, and when woken, until cancelled."""
        while True:
            try:
                await self.look()
            except (BotoCoreError, ClientError, RedisError, OSError, TimeoutError) as error:
                log.warning("warm_up_waits", error=type(error).__name__)
            except Exception:  # it costs no client anything; the next look tries again
                log.exception("warm_up_broke")
            self._awake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), LOOK_EVERY_S)

    async def aclose(self) -> None:
        """Let the cache go."""
        await self._redis.aclose()

    async def look(self) -> int:
        """Ask for every prompt that is missing where it should be; how many were asked for."""
        num_sent, tokens = 0, dict.fromkeys(self._models, 0)
        tenants: dict[str, Tenant | None] = {}
        for warm in await self._prompts.in_thread(lambda: self._prompts.table.warm(MAX_PROMPTS)):
            if warm.tenant not in tenants:
                tenants[warm.tenant] = await self._prompts.in_thread(partial(self._tenant_of, warm.tenant))
            tenant = tenants[warm.tenant]
            for model_class in warm.models:
                model = self._models.get(model_class)
                if model is None or tenant is None or not tenant.may_use(model_class):
                    continue
                try:
                    prefix = await self._prefix(warm, tenant, model)
                except ApiError:  # deleted meanwhile, too long for the window, or the class is not ready
                    continue
                tokens[model_class] += prefix.prompt_tokens
                if prefix.chain and tokens[model_class] <= MAX_TOKENS:
                    num_sent += await self._keep(model, prefix)
        return num_sent

    async def _keep(self, model: ServedModel, prefix: _Prefix) -> int:
        pool, num_sent = self._pools[model.model_class], 0
        for engine in pool.places_of(prefix.chain, REPLICAS):
            seen, up_since_s = (prefix.chain[-1], engine.endpoint.name), engine.replica.started_s
            if pool.holds(engine, prefix.chain) and self._seen.setdefault(seen, up_since_s) == up_since_s:
                continue
            if self._queues[model.model_class].num_waiting or not self._is_idle(engine, model):
                continue
            if not await self._is_ours(seen):
                continue
            if await self._send(model, pool, engine, prefix):
                num_sent += 1
                self._seen[seen] = up_since_s
                while len(self._seen) > _MAX_REMEMBERED:
                    self._seen.popitem(last=False)
        return num_sent

    async def _send(self, model: ServedModel, pool: Pool, engine: Engine, prefix: _Prefix) -> bool:
        """Whether the engine has answered."""
        loop = asyncio.get_running_loop()
        meter, began_s = self._meter(model, prefix), loop.time()
        try:
            await meter.open()
        except ApiError:
            return False
        outcome = Outcome.NOT_SERVED
        try:
            seat = pool.seat_at(engine, prefix.prompt_tokens, prefix.chain)
            meter.asked(engine.endpoint.name, seat.reason, began_s)
            async with asyncio.timeout(TIMEOUT_S):
                path = validate.ENGINE_PATHS["chat.completions"]
                upstream = await self._dispatcher.send(seat, path, prefix.body, meter.opened.request_id, NO_TRACE)
                try:
                    totals = _Totals()
                    upstream.read(totals)
                    usage = await totals.usage
                    meter.final(usage, loop.time())
                    outcome = Outcome.FINISHED
                    upstream.recycle()
                finally:
                    upstream.abort()
        except (ApiError, EngineFailed, TimeoutError) as error:
            log.info("warm_up_failed", model=model.model_class, engine=engine.endpoint.name, reason=str(error))
        finally:
            with suppress(ApiError):
                await meter.close(outcome, began_s, loop.time())
        return outcome is Outcome.FINISHED

    async def _prefix(self, warm: Warm, tenant: Tenant, model: ServedModel) -> _Prefix:
        """The prompt as this class's engines know it; remembered.

        Raises:
            ApiError: as `PromptBook.get` and `ContextCounter.place` say.
        """
        salt = self._authenticator.salt_of(tenant)
        key = (self._context.release_id(model.model_class), model.model_class, warm.tenant, warm.id, str(warm.version), salt)
        if (known := self._prefixes.get(key)) is not None:
            self._prefixes.move_to_end(key)
            return known
        prompt = await self._prompts.get(warm.tenant, PromptRef(warm.id, str(warm.version)))
        requests = [
            ChatRequest(
                model=model.model_class, messages=[*prompt.messages, Message("user", text)], max_tokens=1, temperature=0.0
            )
            for text in _BEHIND
        ]
        one, other = [await self._context.place(model, request, salt) for request in requests]
        chain = tuple(block for block, same in zip(one.chain, other.chain, strict=False) if block == same)
        body = validate.engine_body(requests[1], model=model.model_class, max_tokens=1, cache_salt=salt)
        made = self._prefixes[key] = _Prefix(body, other.prompt_tokens, chain, other.release_id)
        while len(self._prefixes) > 2 * MAX_PROMPTS * len(self._models):
            self._prefixes.popitem(last=False)
        return made

    async def _is_ours(self, seen: tuple[int, str]) -> bool:
        """No other gateway of the region has just asked the engine for it."""
        name = blake2b(f"{seen[1]}/{seen[0]}".encode(), digest_size=16).hexdigest()
        return bool(await self._redis.set(f"flotilla:warm:{name}", self._gateway, nx=True, px=int(AGAIN_AFTER_S * 1000)))

    @staticmethod
    def _is_idle(engine: Engine, model: ServedModel) -> bool:
        return engine.replica.num_in_flight * MOSTLY_IDLE < model.max_in_flight_per_engine

    def _meter(self, model: ServedModel, prefix: _Prefix) -> Meter:
        opened = UsageOpen(
            event_id=settle.mint_event_id(),
            tenant=TENANT,
            key_id="",
            model=model.model_class,
            release_id=prefix.release_id,
            region=self._settings.region,
            gateway=self._gateway,
            endpoint=ENDPOINT,
            opened_at_ms=settle.now_ms(),
            prompt_tokens=prefix.prompt_tokens,
            price_version=PRICE_VERSION,
            input_micro_usd_per_mtok=0,
            cached_input_micro_usd_per_mtok=0,
            output_micro_usd_per_mtok=0,
            request_id=mint_request_id(),
        )
        return Meter(self._journal, self._settings.journal, opened, 1)


class _Totals:
    """Reads an engine's answer for its counts alone."""

    def __init__(self) -> None:
        self.usage: asyncio.Future[sse.Usage] = asyncio.get_running_loop().create_future()

    def events(self, events: Sequence[bytes]) -> None:
        """Look for the totals."""
        for event in events:
            if self.usage.done() or event == sse.DONE or not sse.has_no_choices(event):
                continue
            try:
                _, usage = sse.cut_usage(event)
            except sse.BrokenStream as error:
                self.ended(str(error), False)
                return
            if usage is not None:
                self.usage.set_result(usage)

    def ended(self, reason: str, has_broken_off: bool) -> None:
        """No totals come any more."""
        if not self.usage.done():
            self.usage.set_exception(TimeoutError(reason or "the engine ended its answer without counts"))
