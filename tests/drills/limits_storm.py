"""A storm on limits: processes that reserve and settle at random for the same tenants, through the gateway's own limiter.

The control does the same with check-then-charge: it reads what is used, compares, and charges when the request is over.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import uvloop
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from policies.admission.limits import NANO_PER_MICRO, Cost, Spent
from serving.gateway.budgets import Budgets, window_at
from serving.gateway.errors import ApiError
from serving.gateway.limits import Limiter
from serving.gateway.metrics import Metrics
from serving.gateway.tenants import Tenant
from tests.drills.limits_truth import Ran, Truth

NUM_PROCESSES = 8
AT_ONCE = 32
TIMEOUT_S = 30.0
"""The storm takes all that the machine has; a cache that is only starved must not open the breaker, which is another part's."""
MAX_TOKENS, MAX_NANO_USD = (400, 200), 200
SEATS = 10
RUNS_S = 0.01


def tenants_of(num_operations: int) -> tuple[Tenant, ...]:
    """Tenants whose limits so many operations use up, each by another kind of limit."""
    return (
        Tenant("seats", concurrency=SEATS),
        Tenant("requests", requests_per_min=num_operations // 20),
        Tenant(
            "tokens",
            tokens_per_min=num_operations * 10,
            input_tokens_per_min=num_operations * 8,
            output_tokens_per_min=num_operations * 4,
        ),
        Tenant(
            "money", budget_day_micro_usd=num_operations // 100, budget_month_micro_usd=num_operations // 200, concurrency=200
        ),
    )


_running: dict[str, Any] = {}
"""In each process: how many requests of each tenant run, in memory that all share."""


@dataclass(frozen=True)
class Held:
    """What a request was let in for."""

    tenant: Tenant
    cost: Cost
    granted_nano_usd: int
    lease: Any
    is_alone: bool = False


class Admission(Protocol):
    """Lets requests in, one way or the other."""

    async def reserve(self, tenant: Tenant, lease: str, cost: Cost) -> Held | None:
        """None where it is refused."""

    async def settle(self, held: Held, used: Cost) -> None:
        """It is over."""

    async def aclose(self) -> None:
        """Close connections."""


class Ours:
    """The gateway's limiter."""

    def __init__(self, cache_url: str) -> None:
        self._limiter = Limiter(cache_url, Metrics([]), Budgets(nothing_spent), timeout_s=TIMEOUT_S)

    async def reserve(self, tenant: Tenant, lease: str, cost: Cost) -> Held | None:
        try:
            reservation = await self._limiter.reserve(tenant, lease, cost)
        except ApiError:
            return None
        assert reservation is not None
        return Held(tenant, cost, reservation.granted_nano_usd, reservation, reservation.is_local)

    async def settle(self, held: Held, used: Cost) -> None:
        await self._limiter.settle(held.lease, used)

    async def aclose(self) -> None:
        await self._limiter.aclose()


class CheckThenCharge:
    """What others do: what is used is read, and charged when the request is over."""

    def __init__(self, cache_url: str) -> None:
        self._redis = AsyncRedis.from_url(cache_url, decode_responses=True)

    async def reserve(self, tenant: Tenant, lease: str, cost: Cost) -> Held | None:
        used = {name: int(value) for name, value in (await self._redis.hgetall(f"control:{tenant.id}")).items()}
        limits = tenant.limits
        caps = {
            **dict(zip(("requests", "tokens", "inputs", "outputs"), limits.per_min, strict=True)),
            "running": limits.concurrency,
            "money": None if limits.budget_month_micro_usd is None else limits.budget_month_micro_usd * NANO_PER_MICRO,
        }
        if any(cap is not None and used.get(name, 0) >= cap for name, cap in caps.items()):
            return None
        await self._redis.hincrby(f"control:{tenant.id}", "running", 1)
        return Held(tenant, cost, cost.nano_usd, lease)

    async def settle(self, held: Held, used: Cost) -> None:
        requests, tokens, inputs, outputs = Cost(1, used.input_tokens, used.output_tokens).rated
        changes = {"requests": requests, "tokens": tokens, "inputs": inputs, "outputs": outputs, "money": used.nano_usd}
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, change in {**changes, "running": -1}.items():
                pipe.hincrby(f"control:{held.tenant.id}", name, change)
            await pipe.execute()

    async def aclose(self) -> None:
        await self._redis.aclose()


def storm(cache_url: str, num_operations: int, seed: int, *, is_control: bool) -> Truth:
    """All processes' part, on a cache that is emptied first."""
    with Redis.from_url(cache_url) as client:
        client.flushall()
    num_operations = -(-num_operations // NUM_PROCESSES) * NUM_PROCESSES
    context = multiprocessing.get_context("fork")
    running = {tenant.id: context.Value("i", 0) for tenant in tenants_of(num_operations)}
    truth = Truth()
    with ProcessPoolExecutor(NUM_PROCESSES, mp_context=context, initializer=_share, initargs=(running,)) as pool:
        each = num_operations // NUM_PROCESSES
        parts = [pool.submit(_part, cache_url, seed * 1000 + number, each, is_control) for number in range(NUM_PROCESSES)]
        for part in parts:
            truth.add(part.result())
    return truth


def nothing_spent(tenant: str, at_ms: int) -> Spent:
    """A ledger in which nobody has spent anything."""
    window = window_at(at_ms / 1e3)
    return Spent(window.day, window.month)


def _share(running: dict[str, Any]) -> None:
    _running.update(running)


def _part(cache_url: str, seed: int, num_operations: int, is_control: bool) -> Truth:
    return uvloop.run(_storm(cache_url, seed, num_operations, is_control))


async def _storm(cache_url: str, seed: int, num_operations: int, is_control: bool) -> Truth:
    rng, truth, tenants = random.Random(seed), Truth(), tenants_of(num_operations * NUM_PROCESSES)
    admission: Admission = CheckThenCharge(cache_url) if is_control else Ours(cache_url)
    number = 0

    async def client() -> None:
        nonlocal number
        while truth.num_operations < num_operations:
            number += 1
            tenant, nano = rng.choice(tenants), rng.randint(1, MAX_NANO_USD)
            cost = Cost(1, rng.randint(1, MAX_TOKENS[0]), rng.randint(1, MAX_TOKENS[1]), nano, max(1, nano // 4))
            asked_s = time.monotonic()
            held = await admission.reserve(tenant, f"{seed}-{number}", cost)
            truth.num_operations += 1
            if held is None:
                continue
            truth.num_alone += held.is_alone
            running = _running[tenant.id]
            with running.get_lock():
                running.value += 1
                truth.most_running[tenant.id] = max(truth.most_running.get(tenant.id, 0), running.value)
            await asyncio.sleep(rng.uniform(0, RUNS_S))
            used = Cost(1, cost.input_tokens, rng.randint(0, cost.output_tokens), rng.randint(0, held.granted_nano_usd))
            with running.get_lock():  # before it is given back: the counter never shows more than was let in
                running.value -= 1
            await admission.settle(held, used)
            truth.num_operations += 1
            ran = Ran(asked_s, time.monotonic(), _rated(cost), _rated(used), used.nano_usd)
            truth.ran.setdefault(tenant.id, []).append(ran)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    await admission.aclose()
    return truth


def _rated(cost: Cost) -> tuple[int, int, int, int]:
    requests, tokens, inputs, outputs = cost.rated
    return requests, tokens, inputs, outputs
