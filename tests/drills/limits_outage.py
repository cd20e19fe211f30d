"""Gateways' limiters while their cache stops, dies and comes back: what each let in, how long each decision took, and until when
they decided alone.

Requests come at their own pace whether or not others are answered, so one that waits for the cache holds up none of those whose
time is taken. The ledger is a sum that the processes share, and has what was settled at once.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import random
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog
import uvloop

from policies.admission.limits import NANO_PER_MICRO, Cost, Spent
from serving.gateway.accounts import Account, accounts_of
from serving.gateway.budgets import Budgets, window_at
from serving.gateway.errors import ApiError
from serving.gateway.limits import Limiter, Reservation
from serving.gateway.metrics import Metrics
from serving.gateway.tenants import Tenant
from tests.drills.drill_frame import Row
from tests.drills.local_valkey import Valkey

NUM_GATEWAYS = 4
PER_S = 250.0
"""Requests a second at each gateway, half of them of each tenant: fifty times what the rate lets in."""
RATED = Tenant("rated", requests_per_min=600)
PAID = Tenant("paid", budget_day_micro_usd=20, budget_month_micro_usd=20)
MAX_NANO_USD = 10
RUNS_S = 0.02
BEFORE_S, AFTER_S = 7.0, 5.0
"""Gateways learn within 5 s how many they are."""
START_S = 2.0
MAX_ADDED_P99_MS = 5.0
MAX_RETURN_S = 1.0


@dataclass
class Seen:
    """One gateway's record. Times are the machine's monotonic clock, the same for all processes."""

    decisions: list[tuple[float, float, bool]] = field(default_factory=list)
    """When it was asked, how long it took in s, whether it was alone."""
    admitted: list[float] = field(default_factory=list)
    """When requests of `RATED` that were let in were asked for."""
    spent_nano_usd: int = 0
    held_nano_usd: int = 0
    """The most that requests which ran at once were granted: what may be spent of a budget that is lost sight of."""


def outage(valkey: Valkey, label: str, sign: signal.Signals, lasts_s: float, seed: int) -> list[Row]:
    """Four gateways before, during and after an outage of so many seconds."""
    valkey.client().flushall()
    context = multiprocessing.get_context("fork")
    ledger, queue = context.Value("q", 0), context.SimpleQueue()
    began_s = time.monotonic() + START_S
    down_s, up_s = began_s + BEFORE_S, began_s + BEFORE_S + lasts_s
    until_s = up_s + AFTER_S

    def live(number: int) -> None:
        queue.put(uvloop.run(_gateway(valkey.url, seed + number, began_s, until_s, ledger)))

    processes = [context.Process(target=live, args=(number,)) for number in range(NUM_GATEWAYS)]
    for process in processes:
        process.start()
    time.sleep(max(0.0, down_s - time.monotonic()))
    down_s = time.monotonic()
    valkey.kill(sign)
    time.sleep(max(0.0, up_s - time.monotonic()))
    if sign is signal.SIGKILL:
        valkey.start()
    else:
        valkey.kill(signal.SIGCONT)
    up_s = time.monotonic()
    gateways: list[Seen] = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return list(_judge(label, gateways, began_s, down_s, up_s, is_lost=sign is signal.SIGKILL))


def _judge(label: str, gateways: list[Seen], began_s: float, down_s: float, up_s: float, *, is_lost: bool) -> Iterator[Row]:
    decisions = [decision for seen in gateways for decision in seen.decisions]
    ended_s = max(at for at, _, _ in decisions)
    alone = [at for at, _, is_alone in decisions if is_alone]
    yield Row(f"{label}_num_decided_alone", len(alone), "> 0", bool(alone))

    limit = RATED.requests_per_min or 0
    admitted = [at for seen in gateways for at in seen.admitted]
    over = len(admitted) - limit * (1 + (ended_s - began_s) / 60)
    # The stated share: one limit without the cache; and up to one more where the cache forgot its rates.
    stated = limit * (2 if is_lost else 1)
    yield Row(f"{label}_overshoot_requests", max(0.0, over), f"<= {stated}, stated", over <= stated)
    during = sum(down_s <= at < up_s for at in admitted)
    yield Row(f"{label}_let_in_without_cache_requests", during, "> 0", during > 0)

    budget = (PAID.budget_day_micro_usd or 0) * NANO_PER_MICRO
    spent, held = (sum(getattr(seen, name) for seen in gateways) for name in ("spent_nano_usd", "held_nano_usd"))
    yield Row(f"{label}_budget_overshoot_nano_usd", max(0, spent - budget), f"<= {held}, held", spent - budget <= held)
    yield Row(f"{label}_budget_used_ratio", spent / budget, "", holds=True)

    took_before, took_during = (
        [took_s * 1e3 for at, took_s, _ in decisions if since_s <= at < to_s]
        for since_s, to_s in ((began_s + 1, down_s - 0.1), (down_s, up_s))
    )
    added_ms = _p99(took_during) - _p99(took_before)
    yield Row(f"{label}_p99_before_ms", _p99(took_before), "", holds=True)
    yield Row(f"{label}_added_p99_ms", added_ms, f"<= {MAX_ADDED_P99_MS}", added_ms <= MAX_ADDED_P99_MS)
    yield Row(f"{label}_max_during_ms", max(took_during), "", holds=True)

    first = [min((at for at, _, is_alone in seen.decisions if at >= up_s and not is_alone), default=ended_s) for seen in gateways]
    back_s = max(first) - up_s
    yield Row(f"{label}_decided_together_after_s", back_s, f"<= {MAX_RETURN_S}", back_s <= MAX_RETURN_S)
    others = sum(is_alone for at, _, is_alone in decisions if at < down_s or at > max(first))
    yield Row(f"{label}_num_decided_alone_otherwise", others, "0 unless starved", holds=True)
    exact_from_s = up_s + MAX_RETURN_S
    after = sum(at >= exact_from_s for at in admitted)
    exact = limit * (ended_s - up_s) / 60 + 1
    yield Row(f"{label}_let_in_later_than_1_s_after", after, f"<= {exact:.0f}, the rate", after <= exact)


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def _gateway(cache_url: str, seed: int, began_s: float, until_s: float, ledger: Any) -> Seen:
    rng, seen = random.Random(seed), Seen()

    def spent(account: Account, at_ms: int) -> Spent:
        window = window_at(at_ms / 1e3)
        nano = ledger.value if account.tenant == PAID.id else 0
        return Spent(window.day, window.month, nano, nano)

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    limiter = Limiter(cache_url, Metrics([]), Budgets(spent))
    await limiter.warm_up()
    running = asyncio.create_task(limiter.run())
    held_nano_usd = 0

    async def serve(reservation: Reservation, used: int) -> None:
        nonlocal held_nano_usd
        held_nano_usd += reservation.granted_nano_usd
        seen.held_nano_usd = max(seen.held_nano_usd, held_nano_usd)
        await asyncio.sleep(RUNS_S)
        seen.spent_nano_usd += used
        with ledger.get_lock():
            ledger.value += used
        held_nano_usd -= reservation.granted_nano_usd
        await limiter.settle(reservation, Cost(1, 10, 10, used))

    async def request(number: int, due_s: float) -> None:
        tenant = RATED if number % 2 else PAID
        nano = rng.randint(1, MAX_NANO_USD)
        reservation = None
        try:
            reservation = await limiter.reserve(accounts_of(tenant), f"{seed}-{number}", Cost(1, 10, 10, nano, 1))
            is_alone = reservation is not None and reservation.is_local
        except ApiError:
            is_alone = limiter.is_local
        seen.decisions.append((due_s, time.monotonic() - due_s, is_alone))
        if reservation is not None:
            if tenant is RATED:
                seen.admitted.append(due_s)
            await serve(reservation, rng.randint(0, reservation.granted_nano_usd) if tenant is PAID else 0)

    due_s, number = began_s, 0
    async with asyncio.TaskGroup() as requests:
        while due_s < until_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            requests.create_task(request(number, time.monotonic()))
            number += 1
            due_s += rng.expovariate(PER_S)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await limiter.aclose()
    return seen
