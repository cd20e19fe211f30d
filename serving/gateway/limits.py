"""Limits: reserve what a request may cost before it runs, settle what it did cost after.

The decision is `policies.admission.gcra`; here is where its state lives. Normally that is the region's cache, where one script
decides for all gateways at once. When the cache is slow or gone, each gateway decides by itself with the same function on state
of its own, and counts that: N gateways may then let in up to N times a limit, which is better than refusing everybody.
Tenants without limits cost no round trip.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from policies.admission import gcra, gcra_lua
from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.gateway.tenants import Tenant

log = structlog.get_logger()

EXPECTED_OUTPUT_TOKENS = 512
"""Of each answer at most so many tokens are reserved. Conversations average 211 (Azure 2023 trace), so most requests reserve more
than they use and get it back; one that uses more pays at the end and delays the tenant's next."""
CACHE_TIMEOUT_S = 0.05
CACHE_RETRY_S = 1.0
"""After a failure the cache is left alone for this long."""
LEASE_S = 60.0
"""A running request counts against `concurrency` for this long after its gateway last said so."""
_NUM_CONNECTIONS = 8
"""Few, and opened before they are needed: a burst must not spend its 50 ms on hand-shakes."""

_WARM_UP_S = 1.0

_CacheFailure = (RedisError, OSError, TimeoutError)


@dataclass(frozen=True)
class Reservation:
    """What a request holds of its tenant's limits."""

    tenant: str
    limits: gcra.Limits
    lease: str
    tokens: int
    is_local: bool
    headers: Sequence[tuple[bytes, bytes]] = field(default=())
    """`x-ratelimit-*`, for the answer."""


class Limiter:
    """Reserves and settles. `run` keeps the leases of running requests alive."""

    def __init__(self, cache_url: str, metrics: Metrics) -> None:
        self._metrics = metrics
        pool = BlockingConnectionPool.from_url(
            cache_url,
            max_connections=_NUM_CONNECTIONS,
            timeout=CACHE_TIMEOUT_S,
            protocol=2,
            driver_info=None,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(gcra_lua.SCRIPT)
        self._skip_cache_until_s = 0.0
        self._local: dict[str, gcra.State] = {}
        self._held: dict[str, Reservation] = {}

    async def reserve(self, tenant: Tenant, lease: str, *, prompt_tokens: int, output_tokens: int) -> Reservation | None:
        """Let a request of up to this many tokens in; None where the tenant has no limits. `lease` names the request.

        Raises:
            ApiError: `rate_limit_exceeded` with Retry-After, or `request_exceeds_limit`.
        """
        limits = tenant.limits
        if limits.is_unlimited:
            return None
        tokens = prompt_tokens + output_tokens
        if gcra.exceeds_burst(limits, tokens):
            raise ApiError(
                errors.REQUEST_EXCEEDS_LIMIT,
                f"This request counts as {tokens} tokens ({prompt_tokens} of prompt, up to {output_tokens} of answer), more than"
                f" your whole limit of {limits.tokens_per_min} tokens a minute. Shorten the prompt or lower `max_tokens`.",
            )
        decision, is_local = await self._decide(tenant.id, limits, lease, tokens)
        headers = _headers(limits, decision)
        if not decision.is_admitted:
            raise _refusal(limits, decision, headers)
        reservation = Reservation(tenant.id, limits, lease, tokens, is_local, headers)
        self._held[lease] = reservation
        return reservation

    async def settle(self, reservation: Reservation, used_tokens: int) -> None:
        """Give the lease back and correct the tokens. Where the cache fails the lease runs out by itself."""
        self._held.pop(reservation.lease, None)
        delta = used_tokens - reservation.tokens
        if reservation.is_local:
            state = self._local.get(reservation.tenant, gcra.State())
            self._local[reservation.tenant] = gcra.settle(
                state, reservation.limits, lease=reservation.lease, tokens_delta=delta, now_us=_now_us()
            )
            return
        with suppress(*_CacheFailure):
            await self._call("settle", reservation.tenant, reservation.limits, reservation.lease, delta)

    async def warm_up(self) -> None:
        """Open the connections and load the script. A cache that does not answer is for `reserve` to find."""
        with suppress(*_CacheFailure):
            async with asyncio.timeout(_WARM_UP_S):
                await asyncio.gather(*(self._redis.script_load(gcra_lua.SCRIPT) for _ in range(_NUM_CONNECTIONS)))

    async def run(self) -> None:
        """Renew the leases of running requests until cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with suppress(*_CacheFailure):  # then the next round does it: two may fail before a lease runs out
                for held in list(self._held.values()):
                    if not held.is_local and held.limits.concurrency is not None:
                        await self._call("renew", held.tenant, held.limits, held.lease, 0)

    async def aclose(self) -> None:
        """Close the connections to the cache."""
        with suppress(*_CacheFailure):
            await self._redis.aclose()

    async def _decide(self, tenant: str, limits: gcra.Limits, lease: str, tokens: int) -> tuple[gcra.Decision, bool]:
        """The decision, and whether it was made locally."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._skip_cache_until_s:
            try:
                reason, wait_us, requests_left, tokens_left = await self._call("reserve", tenant, limits, lease, tokens)
                return gcra.Decision(reason, float(wait_us) / 1e6, requests_left, tokens_left), False
            except _CacheFailure as error:
                self._skip_cache_until_s = now_s + CACHE_RETRY_S
                log.warning("limits_decided_locally", error=f"{type(error).__name__}: {error}")
        self._metrics.limiter_fallbacks.inc()
        decision, self._local[tenant] = gcra.reserve(
            self._local.get(tenant, gcra.State()), limits, lease=lease, tokens=tokens, now_us=_now_us(), lease_us=math.inf
        )
        return decision, True

    async def _call(self, operation: str, tenant: str, limits: gcra.Limits, lease: str, tokens: int) -> Any:
        """Run the script, once.

        Raises:
            RedisError, OSError, TimeoutError: the cache did not answer within `CACHE_TIMEOUT_S`.
        """
        arguments: list[str | int] = [
            operation,
            "",
            limits.requests_per_min or 0,
            limits.tokens_per_min or 0,
            limits.concurrency or 0,
            tokens,
            lease,
            int(LEASE_S * 1e6),
        ]
        async with asyncio.timeout(CACHE_TIMEOUT_S):
            return await self._script(keys=gcra_lua.keys(tenant), args=arguments)


def _refusal(limits: gcra.Limits, decision: gcra.Decision, headers: Sequence[tuple[bytes, bytes]]) -> ApiError:
    allowed = {
        "requests": f"{limits.requests_per_min} requests a minute",
        "tokens": f"{limits.tokens_per_min} tokens a minute",
        "concurrency": f"{limits.concurrency} requests at once",
    }[decision.reason]
    message = f"Your limit of {allowed} is reached. Try again in {decision.retry_after_s:.1f} s."
    error = ApiError(errors.RATE_LIMIT_EXCEEDED, message, retry_after_s=decision.retry_after_s)
    error.headers.extend(headers)
    return error


def _headers(limits: gcra.Limits, decision: gcra.Decision) -> list[tuple[bytes, bytes]]:
    """OpenAI's rate-limit headers, for the limits that the tenant has. `reset` is when all of a limit is free again."""
    headers: list[tuple[bytes, bytes]] = []
    for name, limit, remaining in (
        (b"requests", limits.requests_per_min, decision.remaining_requests),
        (b"tokens", limits.tokens_per_min, decision.remaining_tokens),
    ):
        if limit is not None:
            reset_s = (limit - remaining) * gcra.PERIOD_US / 1e6 / limit
            headers.append((b"x-ratelimit-limit-" + name, b"%d" % limit))
            headers.append((b"x-ratelimit-remaining-" + name, b"%d" % remaining))
            headers.append((b"x-ratelimit-reset-" + name, b"%.3fs" % reset_s))
    return headers


def _now_us() -> float:
    return asyncio.get_running_loop().time() * 1e6
