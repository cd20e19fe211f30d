"""Requests that are cancelled at random moments of their lives, at a limiter whose leases are as long as those of gateways."""

from __future__ import annotations

import asyncio
import random

from redis.asyncio import Redis

from policies.admission import limits_lua
from policies.admission.limits import Cost
from serving.gateway.accounts import accounts_of
from serving.gateway.budgets import Budgets
from serving.gateway.limits import LEASE_S, Limiter
from serving.gateway.metrics import Metrics
from serving.gateway.tenants import Tenant
from tests.drills.drill_frame import Row
from tests.drills.limits_storm import nothing_spent

AT_ONCE = 50
RUNS_S = 0.02
TENANT = Tenant("cancelled", concurrency=1_000_000, budget_day_micro_usd=1_000_000, requests_per_min=1_000_000)
MARGIN_S = 1.0


async def cancels(cache_url: str, num_requests: int, seed: int, *, lease_s: float = LEASE_S) -> list[Row]:
    """Cancel so many requests, and wait until the leases of those that nobody gave back have run out."""
    rng = random.Random(seed)
    limiter = Limiter(cache_url, Metrics([]), Budgets(nothing_spent), lease_s=lease_s)
    await limiter.warm_up()
    running = asyncio.create_task(limiter.run())
    num_admitted = num_settled = 0

    async def request(number: int, is_in: asyncio.Event) -> None:
        nonlocal num_admitted, num_settled
        reservation = await limiter.reserve(accounts_of(TENANT), f"c{number}", Cost(1, 1, 1, 100, 1))
        assert reservation is not None
        num_admitted += 1
        is_in.set()
        try:
            await asyncio.sleep(rng.uniform(0, RUNS_S))
        finally:
            await limiter.settle(reservation, Cost(1, 1, 1, 1))
            num_settled += 1

    async def cancelled(number: int) -> None:
        is_in = asyncio.Event()
        task = asyncio.create_task(request(number, is_in))
        for _ in range(rng.randint(0, 4)):  # some before or while they ask, others while they run
            await asyncio.sleep(0)
        if rng.random() < 0.7:
            await is_in.wait()
            await asyncio.sleep(rng.uniform(0, RUNS_S))
        for _ in range(2):  # the second may hit it while it settles
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(task, return_exceptions=True)

    for first in range(0, num_requests, AT_ONCE):
        await asyncio.gather(*(cancelled(number) for number in range(first, min(first + AT_ONCE, num_requests))))
    async with Redis.from_url(cache_url, decode_responses=True) as cache:
        await asyncio.sleep(MARGIN_S)
        left_at_once, _ = await _left(cache)
        await asyncio.sleep(lease_s - MARGIN_S)
        left, held = await _left(cache)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await limiter.aclose()
    return [
        Row("cancels_num", num_requests, "", holds=True),
        Row("cancels_num_before_they_were_let_in", num_requests - num_admitted, "> 0", num_requests > num_admitted),
        Row("cancels_num_while_they_ran", num_admitted, "> 0", num_admitted > 0),
        Row("cancels_num_while_they_settled", num_admitted - num_settled, "", holds=True),
        Row("cancels_num_reservations_left_after_1_s", left_at_once, "", holds=True),
        Row(f"cancels_num_reservations_left_after_{lease_s:.0f}_s", left, "0", left == 0),
        Row("cancels_held_nano_usd_left", held, "0", held == 0),
    ]


async def _left(cache: Redis) -> tuple[int, int]:
    _, leases, held, _ = limits_lua.keys(TENANT.id)
    return await cache.zcard(leases), int(await cache.hget(held, "") or 0)
