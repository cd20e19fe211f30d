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

from policies.admission.limits import NANO_PER_MICRO, Cost, Limits, Spent
from serving.gateway.accounts import Account, accounts_of
from serving.gateway.budgets import Budgets, window_at
from serving.gateway.errors import ApiError
from serving.gateway.limits import Limiter
from serving.gateway.metrics import Metrics
from serving.gateway.tenants import Key, Tenant
from tests.drills.limits_truth import Ran, Truth

NUM_PROCESSES = 8
AT_ONCE = 32
TIMEOUT_S = 30.0
"""The storm takes all that the machine has; a cache that is only starved must not open the breaker, which is another part's."""
MAX_TOKENS, MAX_NANO_USD = (400, 200), 200
SEATS = 5
RUNS_S = 0.01


Accounts = tuple[Account, ...]


def askers_of(num_operations: int) -> tuple[Accounts, ...]:
    """Who asks: tenants, and keys of one of them, whose limits so many operations use up, each by another kind of limit."""
    keyed = Tenant("keyed", requests_per_min=num_operations // 30, budget_day_micro_usd=num_operations // 100)
    return (
        accounts_of(Tenant("seats", concurrency=SEATS)),
        accounts_of(Tenant("requests", requests_per_min=num_operations // 20)),
        accounts_of(
            Tenant(
                "tokens",
                tokens_per_min=num_operations * 10,
                input_tokens_per_min=num_operations * 8,
                output_tokens_per_min=num_operations * 4,
            )
        ),
        accounts_of(
            Tenant(
                "money", budget_day_micro_usd=num_operations // 100, budget_month_micro_usd=num_operations // 200, concurrency=200
            )
        ),
        accounts_of(keyed, Key("a", "keyed", requests_per_min=num_operations // 100, concurrency=SEATS)),
        accounts_of(keyed, Key("b", "keyed", budget_share_percent=20, tokens_per_min=num_operations * 5)),
    )


def limits_of(num_operations: int) -> dict[str, Limits]:
    """All limits of the storm, by account."""
    return {account.name: account.limits for accounts in askers_of(num_operations) for account in accounts}


def rounded(num_operations: int) -> int:
    """As many, but the same number for each process."""
    return -(-num_operations // NUM_PROCESSES) * NUM_PROCESSES


_running: dict[str, Any] = {}
"""In each process: how many requests of each account run, in memory that all share."""


@dataclass(frozen=True)
class Held:
    """What a request was let in for."""

    accounts: Accounts
    cost: Cost
    granted_nano_usd: int
    lease: Any
    is_alone: bool = False


class Admission(Protocol):
    """Lets requests in, one way or the other."""

    async def reserve(self, accounts: Accounts, lease: str, cost: Cost) -> Held | None:
        """None where it is refused."""

    async def settle(self, held: Held, used: Cost) -> None:
        """It is over."""

    async def aclose(self) -> None:
        """Close connections."""


class Ours:
    """The gateway's limiter."""

    def __init__(self, cache_url: str) -> None:
        self._limiter = Limiter(cache_url, Metrics([]), Budgets(nothing_spent), timeout_s=TIMEOUT_S)

    async def reserve(self, accounts: Accounts, lease: str, cost: Cost) -> Held | None:
        try:
            reservation = await self._limiter.reserve(accounts, lease, cost)
        except ApiError:
            return None
        assert reservation is not None
        return Held(accounts, cost, reservation.granted_nano_usd, reservation, reservation.is_local)

    async def settle(self, held: Held, used: Cost) -> None:
        await self._limiter.settle(held.lease, used)

    async def aclose(self) -> None:
        await self._limiter.aclose()


class CheckThenCharge:
    """What others do: what is used is read, and charged when the request is over."""

    def __init__(self, cache_url: str) -> None:
        self._redis = AsyncRedis.from_url(cache_url, decode_responses=True)

    async def reserve(self, accounts: Accounts, lease: str, cost: Cost) -> Held | None:
        for account in accounts:
            used = {name: int(value) for name, value in (await self._redis.hgetall(f"control:{account.name}")).items()}
            limits = account.limits
            budgets = [cap for cap in (limits.budget_day_micro_usd, limits.budget_month_micro_usd) if cap is not None]
            caps = {
                **dict(zip(("requests", "tokens", "inputs", "outputs"), limits.per_min, strict=True)),
                "running": limits.concurrency,
                "money": min(budgets) * NANO_PER_MICRO if budgets else None,
            }
            if any(cap is not None and used.get(name, 0) >= cap for name, cap in caps.items()):
                return None
        for account in accounts:
            await self._redis.hincrby(f"control:{account.name}", "running", 1)
        return Held(accounts, cost, cost.nano_usd, lease)

    async def settle(self, held: Held, used: Cost) -> None:
        requests, tokens, inputs, outputs = Cost(1, used.input_tokens, used.output_tokens).rated
        changes = {"requests": requests, "tokens": tokens, "inputs": inputs, "outputs": outputs, "money": used.nano_usd}
        async with self._redis.pipeline(transaction=False) as pipe:
            for account in held.accounts:
                for name, change in {**changes, "running": -1}.items():
                    pipe.hincrby(f"control:{account.name}", name, change)
            await pipe.execute()

    async def aclose(self) -> None:
        await self._redis.aclose()


def storm(cache_url: str, num_operations: int, seed: int, *, is_control: bool) -> Truth:
    """All processes' part, on a cache that is emptied first."""
    with Redis.from_url(cache_url) as client:
        client.flushall()
    num_operations = rounded(num_operations)
    context = multiprocessing.get_context("fork")
    running = {name: context.Value("i", 0) for name in limits_of(num_operations)}
    truth = Truth()
    with ProcessPoolExecutor(NUM_PROCESSES, mp_context=context, initializer=_share, initargs=(running,)) as pool:
        each = num_operations // NUM_PROCESSES
        parts = [pool.submit(_part, cache_url, seed * 1000 + number, each, is_control) for number in range(NUM_PROCESSES)]
        for part in parts:
            truth.add(part.result())
    return truth


def nothing_spent(account: Account, at_ms: int) -> Spent:
    """A ledger in which nobody has spent anything."""
    window = window_at(at_ms / 1e3)
    return Spent(window.day, window.month)


def _share(running: dict[str, Any]) -> None:
    _running.update(running)


def _part(cache_url: str, seed: int, num_operations: int, is_control: bool) -> Truth:
    return uvloop.run(_storm(cache_url, seed, num_operations, is_control))


async def _storm(cache_url: str, seed: int, num_operations: int, is_control: bool) -> Truth:
    rng, truth, askers = random.Random(seed), Truth(), askers_of(num_operations * NUM_PROCESSES)
    admission: Admission = CheckThenCharge(cache_url) if is_control else Ours(cache_url)
    number = 0

    async def client() -> None:
        nonlocal number
        while truth.num_operations < num_operations:
            number += 1
            accounts, nano = rng.choice(askers), rng.randint(1, MAX_NANO_USD)
            cost = Cost(1, rng.randint(1, MAX_TOKENS[0]), rng.randint(1, MAX_TOKENS[1]), nano, max(1, nano // 4))
            asked_s = time.monotonic()
            held = await admission.reserve(accounts, f"{seed}-{number}", cost)
            truth.num_operations += 1
            if held is None:
                continue
            truth.num_alone += held.is_alone
            for account in accounts:
                running = _running[account.name]
                with running.get_lock():
                    running.value += 1
                    truth.most_running[account.name] = max(truth.most_running.get(account.name, 0), running.value)
            await asyncio.sleep(rng.uniform(0, RUNS_S))
            used = Cost(1, cost.input_tokens, rng.randint(0, cost.output_tokens), rng.randint(0, held.granted_nano_usd))
            for account in accounts:  # before it is given back: the counter never shows more than was let in
                with _running[account.name].get_lock():
                    _running[account.name].value -= 1
            await admission.settle(held, used)
            truth.num_operations += 1
            ran = Ran(asked_s, time.monotonic(), _rated(cost), _rated(used), used.nano_usd)
            for account in accounts:
                truth.ran.setdefault(account.name, []).append(ran)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    await admission.aclose()
    return truth


def _rated(cost: Cost) -> tuple[int, int, int, int]:
    requests, tokens, inputs, outputs = cost.rated
    return requests, tokens, inputs, outputs
