"""Limits: reserve what a request may cost before it runs, settle what it did cost after.

The decision is `policies.admission.limits`; here is where its state lives. Normally that is the region's cache, where one script
decides for all gateways at once: one round trip before dispatch, one after the answer, none between, and requests that come
together share them (`limits_cache.py`). Tenants without limits cost none.

When the cache is slow or gone, those who ask find out together within `CACHE_TIMEOUT_S` and the breaker opens: every gateway
decides by itself with the same function, on its equal share of limits and of what it was last told that rates and budgets have
left; that is at most one more limit a minute over all gateways besides what the cache had let in. Nobody waits for the cache
meanwhile: a task of its own tries it, and when it answers again it is told what it may have forgotten, what was let in without
it and what was spent, and decides from then on.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from policies.admission import gcra, limits_lua
from policies.admission.limits import (
    NANO_PER_MICRO,
    Cost,
    Decision,
    Limits,
    Reason,
    Spent,
    State,
    exceeds_burst,
    reserve_all,
    share_of,
)
from policies.admission.limits import settle as decide_settle
from serving.gateway import limit_answers
from serving.gateway.accounts import Account
from serving.gateway.budgets import Budgets, window_at
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Headers
from serving.gateway.limits_cache import CacheFailure, ScriptCalls
from serving.gateway.metrics import Metrics

log = structlog.get_logger()

EXPECTED_OUTPUT_TOKENS = 512
"""Of each answer at most so many tokens are reserved of rates. Conversations average 211 (Azure 2023 trace), so most requests
reserve more than they use and get it back; one that uses more pays at the end and delays the tenant's next. Of budgets all that
an answer may cost is reserved: what is over cannot be taken back."""
CACHE_TIMEOUT_S = 0.05
PROBE_EVERY_S = 0.2
"""How often a cache that failed is tried again: it decides within a second of its return."""
LEASE_S = 60.0
"""A running request counts against `concurrency` for this long after its gateway last said so."""
PRESENT_EVERY_S = 5.0
PRESENT_S = 15.0
"""Gateways say so often that they are there; who has not for so long has no share."""
CORRECT_EVERY_S = 300.0
"""Budgets are held against the ledger so often: what a killed gateway did not settle is there once its journal is shipped."""
_PRESENT_KEY = "flotilla:gateways"
_NUM_CONNECTIONS = 4
"""One carries what is asked, one at a time; the others are for what this module asks besides."""

_WARM_UP_S = 1.0


@dataclass(frozen=True)
class Reservation:
    """What a request holds of the limits of its tenant and key."""

    accounts: tuple[Account, ...]
    lease: str
    cost: Cost
    is_local: bool
    granted_nano_usd: int
    """The most that it may cost, where money is limited."""
    bound_by: Reason
    """The budget that granted less than was wanted; `admitted` where none did."""
    headers: Headers = ()
    """What is left of limits, for the answer."""


@dataclass
class _Local:
    """An account without the cache: this gateway's share of its limits, and what was taken of it."""

    account: Account
    share: Limits
    state: State
    told_us: tuple[float, ...]
    """Theoretical arrival times as the cache last told them: what was owed before."""


_NOTHING_OWED = State().tats_us


class Limiter:
    """Reserves and settles. `run` keeps the leases of running requests alive and budgets correct."""

    def __init__(
        self, cache_url: str, metrics: Metrics, budgets: Budgets, *, lease_s: float = LEASE_S, timeout_s: float = CACHE_TIMEOUT_S
    ) -> None:
        self._metrics = metrics
        self._budgets = budgets
        self._lease_s = lease_s
        self._timeout_s = timeout_s
        pool = BlockingConnectionPool.from_url(
            cache_url,
            max_connections=_NUM_CONNECTIONS,
            timeout=timeout_s,
            protocol=2,
            driver_info=None,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = Redis.from_pool(pool)
        self._calls = ScriptCalls(self._redis, limits_lua.SCRIPT, timeout_s)
        self._id = os.urandom(8).hex()
        self._num_gateways = 1
        self.is_local = False
        """The breaker is open: the cache is not asked."""
        self._healing: asyncio.Task[None] | None = None
        self._local: dict[str, _Local] = {}
        self._told_us: dict[str, tuple[float, ...]] = {}
        """By account, what the cache last told of rates, or what was owed when it was back: a cache that comes and goes must not
        mean a fresh share each time."""
        self._held: dict[str, Reservation] = {}
        self._untold: set[Account] = set()
        """Of whose spending the cache may not know."""

    async def reserve(self, accounts: tuple[Account, ...], lease: str, cost: Cost) -> Reservation | None:
        """Let a request of up to this cost in, by all of its accounts or by none; None where it has none. `lease` names the
        request.

        Raises:
            ApiError: `rate_limit_exceeded` or `insufficient_quota` with Retry-After, `request_exceeds_limit`, or
                `budget_unknown`.
        """
        if not accounts:
            return None
        for account in accounts:
            if (reason := exceeds_burst(account.limits, cost)) is not None:
                raise limit_answers.never_fits(account, reason, cost)
        decisions, is_local = await self._decide(accounts, lease, cost)
        headers = limit_answers.headers(accounts, decisions, window_at(time.time()))
        if not all(decision.is_admitted for decision in decisions):
            raise limit_answers.refusal(accounts, decisions, headers)
        granted = decisions[0].granted_nano_usd
        bound_by: Reason = next((one.bound_by for one in decisions if one.bound_by != "admitted"), "admitted")
        reservation = Reservation(accounts, lease, cost, is_local, granted, bound_by, headers)
        self._held[lease] = reservation
        return reservation

    async def settle(self, reservation: Reservation, used: Cost) -> None:
        """Give the lease back, correct the tokens and spend what it cost. Where the cache fails the lease runs out by itself, and
        what was spent is told once it is back."""
        reservation = self._held.pop(reservation.lease, reservation)
        change = Cost(
            input_tokens=used.input_tokens - reservation.cost.input_tokens,
            output_tokens=used.output_tokens - reservation.cost.output_tokens,
            nano_usd=used.nano_usd,
        )
        settled, window = set(), window_at(time.time())
        for account in reservation.accounts if reservation.is_local else ():
            if (local := self._local.get(account.name)) is not None:
                settled.add(account)
                local.state = decide_settle(
                    local.state, local.share, change, lease=reservation.lease, now_us=_now_us(), window=window
                )
        others = [account for account in reservation.accounts if account not in settled]
        if others and not self.is_local:
            try:
                await self._put("settle", others, change, reservation.lease)
            except CacheFailure as error:
                self._trip(error)
            else:
                return
        for account in others:
            if account.limits.has_budget:  # where the cache took it after all, what it is told is the larger of the same
                self._budgets.spent(account, used.nano_usd, window)
                self._untold.add(account)

    async def warm_up(self) -> None:
        """Open the connections and load the script. A cache that does not answer is for `reserve` to find."""
        with suppress(*CacheFailure):
            async with asyncio.timeout(_WARM_UP_S):
                await self._calls.load()
                await self._be_present()

    async def run(self) -> None:
        """Until cancelled: say that this gateway is there, renew the leases of running requests, hold budgets against the
        ledger."""
        loop = asyncio.get_running_loop()
        renew_s, correct_s = loop.time() + self._lease_s / 3, loop.time() + CORRECT_EVERY_S
        while True:
            await asyncio.sleep(min(PRESENT_EVERY_S, self._lease_s / 3))
            if self.is_local:
                continue
            with suppress(*CacheFailure):  # then the next round does it: two may fail before a lease runs out
                await self._be_present()
                if loop.time() >= renew_s:
                    renew_s = loop.time() + self._lease_s / 3
                    for held in list(self._held.values()):
                        if any(account.limits.has_leases for account in held.accounts):
                            await self._put("renew", held.accounts, Cost(), held.lease)
            if loop.time() >= correct_s:
                correct_s = loop.time() + CORRECT_EVERY_S
                for account in self._budgets.accounts():
                    with suppress(*CacheFailure, ApiError):
                        await self._seed(account)

    async def aclose(self) -> None:
        """Close the connections to the cache."""
        if self._healing is not None:
            self._healing.cancel()
            await asyncio.gather(self._healing, return_exceptions=True)
        await self._calls.aclose()
        with suppress(*CacheFailure):
            await self._redis.aclose()

    async def _decide(self, accounts: tuple[Account, ...], lease: str, cost: Cost) -> tuple[list[Decision], bool]:
        """The decisions of the accounts, and whether they were made locally."""
        if not self.is_local:
            try:
                decisions = await self._reserve(accounts, lease, cost)
                if unseeded := [one for one, told in zip(accounts, decisions, strict=True) if told.reason == "unseeded"]:
                    await asyncio.gather(*map(self._seed, unseeded))
                    await asyncio.gather(*map(self._adopt, unseeded))
                    decisions = await self._reserve(accounts, lease, cost)
            except CacheFailure as error:
                self._trip(error)
            else:
                now_us = _now_us()
                for account, decision in zip(accounts, decisions, strict=True):
                    self._told_us[account.name] = tuple(
                        gcra.told(left, cap, now_us) for left, cap in zip(decision.remaining, account.limits.per_min, strict=True)
                    )
                    if account.limits.has_budget:
                        self._budgets.saw(account, decision, window_at(time.time()))
                return decisions, False
        self._metrics.limiter_fallbacks.inc()
        locals_ = [await self._local_of(account) for account in accounts]
        decisions, states = reserve_all(
            [(local.state, local.share) for local in locals_],
            cost,
            lease=lease,
            now_us=_now_us(),
            lease_us=float("inf"),
            window=window_at(time.time()),
        )
        for local, state in zip(locals_, states, strict=True):
            local.state = state
        return decisions, True

    async def _local_of(self, account: Account) -> _Local:
        local = self._local.get(account.name)
        if local is None or local.account != account:
            spent = await self._budgets.known(account) if account.limits.has_budget else None
            local = self._local.setdefault(account.name, self._share(account, spent))
        return local

    def _share(self, account: Account, spent: Spent | None) -> _Local:
        """What this gateway may let in by itself: its part of what limits have left, beside what its running requests hold."""
        limits = account.limits
        share, told_us = share_of(limits, self._num_gateways), self._told_us.get(account.name, _NOTHING_OWED)
        if spent is None:
            return _Local(account, share, State(told_us), told_us)

        held_nano = sum(its.granted_nano_usd for its in self._holding(account))

        def part(budget: int | None, used_nano: int) -> int | None:
            left = None if budget is None else budget - -(-(used_nano + held_nano) // NANO_PER_MICRO)
            return None if left is None else max(0, left) // self._num_gateways

        share = replace(
            share,
            budget_day_micro_usd=part(limits.budget_day_micro_usd, spent.day_nano_usd),
            budget_month_micro_usd=part(limits.budget_month_micro_usd, spent.month_nano_usd),
        )
        return _Local(account, share, State(told_us, spent=Spent(spent.day, spent.month)), told_us)

    async def _reserve(self, accounts: Sequence[Account], lease: str, cost: Cost) -> list[Decision]:
        asked = self._put("reserve", accounts, cost, lease)
        try:
            return limits_lua.decisions(await asyncio.shield(asked))
        except asyncio.CancelledError:  # what is let in now would be held by nobody until its lease runs out
            asked.add_done_callback(partial(self._give_back, accounts, cost, lease))
            raise

    def _give_back(self, accounts: Sequence[Account], cost: Cost, lease: str, asked: asyncio.Future[Any]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            return
        if all(decision.is_admitted for decision in limits_lua.decisions(asked.result())):
            change = Cost(-cost.requests, -cost.input_tokens, -cost.output_tokens)
            self._put("settle", accounts, change, lease).add_done_callback(lambda told: told.cancelled() or told.exception())

    async def _seed(self, account: Account) -> None:
        spent = await self._budgets.known(account)
        await self._calls.put(limits_lua.keys(account.name), limits_lua.seed_arguments(spent))

    def _holding(self, account: Account) -> list[Reservation]:
        """What running requests hold of an account that the cache has let in."""
        return [its for its in self._held.values() if not its.is_local and account in its.accounts]

    async def _adopt(self, account: Account) -> None:
        """Tell the cache what running requests hold: one that has lost everything knows of none."""
        adopted = (
            self._put("adopt", [account], Cost(nano_usd=its.granted_nano_usd), its.lease) for its in self._holding(account)
        )
        await asyncio.gather(*adopted)

    def _trip(self, error: BaseException) -> None:
        if not self.is_local:
            log.warning("limits_decided_locally", num_gateways=self._num_gateways, error=f"{type(error).__name__}: {error}")
            self.is_local = True
            if self._healing is None or self._healing.done():
                self._healing = asyncio.create_task(self._heal())

    async def _heal(self) -> None:
        """Try the cache until it answers; then let it decide, and tell it what was let in without it. In this order: told
        first, it would not know of what is let in meanwhile."""
        while self.is_local:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                await self._redis.connection_pool.disconnect()  # those from before are dead, and each would say so once
                async with asyncio.timeout(self._timeout_s):
                    await self._redis.ping()
            except CacheFailure:
                continue
            self.is_local = False
            taken, self._local = self._local, {}
            told = await asyncio.gather(*map(self._hand_over, taken.values()), self._tell_spending(), return_exceptions=True)
            errors = [error for error in told if isinstance(error, BaseException)]
            if errors:
                log.warning("limits_still_local", num_accounts=len(errors), error=f"{type(errors[0]).__name__}: {errors[0]}")
                untold = (each for each, error in zip(taken.items(), told[:-1], strict=True) if error is not None)
                self._local = {**dict(untold), **self._local}
                self.is_local = True
        with suppress(*CacheFailure):
            await self._be_present()
        log.info("limits_decided_together")

    async def _tell_spending(self) -> None:
        """Seed the budgets whose settlements the cache did not hear."""
        for account in list(self._untold):
            await self._seed(account)
            self._untold.discard(account)

    async def _hand_over(self, local: _Local) -> None:
        """Charge the cache with what this gateway let in of an account, and what of that still runs."""
        account, state, now_us = local.account, local.state, _now_us()
        told, owed = (_owed(tats_us, local.share, now_us) for tats_us in (local.told_us, state.tats_us))
        before = _owed(local.told_us, account.limits, now_us)
        recalled = self._put("recall", [account], Cost(), "", rated=before)
        self._told_us[account.name] = state.tats_us
        spent_nano = state.spent.day_nano_usd if state.spent is not None else 0
        taken = [all_of_it - known for all_of_it, known in zip(owed, told, strict=True)]
        charged = self._put("settle", [account], Cost(nano_usd=spent_nano), "", rated=taken)
        await asyncio.gather(recalled, charged)
        if account.limits.has_budget:  # after: where the cache kept its state, what was just told is in both, and counts once
            self._budgets.spent(account, spent_nano, window_at(time.time()))
            await self._seed(account)
        for lease in state.leases:
            held = self._held.get(lease)
            if held is not None:
                self._held[lease] = replace(held, is_local=False)
        await self._adopt(account)

    async def _be_present(self) -> None:
        now_s = time.time()
        async with asyncio.timeout(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(_PRESENT_KEY, {self._id: now_s})
            pipe.zremrangebyscore(_PRESENT_KEY, "-inf", now_s - PRESENT_S)
            pipe.zcard(_PRESENT_KEY)
            self._num_gateways = max(1, int((await pipe.execute())[-1]))

    def _put(
        self, operation: str, accounts: Sequence[Account], cost: Cost, lease: str, *, rated: Sequence[int] | None = None
    ) -> asyncio.Future[Any]:
        """What the script will answer.

        The future raises RedisError, OSError or TimeoutError: the cache did not answer within `CACHE_TIMEOUT_S`.
        """
        arguments = limits_lua.arguments(
            operation,
            [account.limits for account in accounts],
            cost,
            window_at(time.time()),
            lease=lease,
            lease_us=self._lease_s * 1e6,
            rated=rated,
        )
        return self._calls.put(limits_lua.keys(*(account.name for account in accounts)), arguments)


def _owed(tats_us: Sequence[float], limits: Limits, now_us: float) -> list[int]:
    return [gcra.owed(tat_us, cap, now_us) for tat_us, cap in zip(tats_us, limits.per_min, strict=True)]


def _now_us() -> float:
    return asyncio.get_running_loop().time() * 1e6
