"""What tenants and their keys have spent, as the ledger has it: what budgets start from when the cache does not know, and are
corrected by.

The ledger lags behind by what gateways have not shipped yet. So each gateway also remembers the most that the cache ever told it,
and a cache that lost everything is seeded with the larger of the two. One read at a time for each account: a burst on an empty
cache must not become a burst on the ledger.
"""

from __future__ import annotations

import asyncio
import calendar
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from policies.admission.limits import NANO_PER_MICRO, UNLIMITED, Decision, Spent, State, Window, seed
from serving.gateway import errors
from serving.gateway.accounts import Account
from serving.gateway.errors import ApiError
from serving.gateway.usage_routes import UsageOf

log = structlog.get_logger()

READ_TIMEOUT_S = 2.0
PICO_PER_NANO = 1000
UNKNOWN_RETRY_S = 2.0

SpentOf = Callable[[Account, int], Spent]
"""What an account has spent by now, at a Unix time in ms. Blocks."""


class Budgets:
    """What is known of accounts' spending besides what the cache knows."""

    def __init__(self, spent_of: SpentOf) -> None:
        self._spent_of = spent_of
        self._seen: dict[str, Spent] = {}
        self._accounts: dict[str, Account] = {}
        self._reads: dict[str, asyncio.Task[Spent]] = {}

    def saw(self, account: Account, decision: Decision, window: Window) -> None:
        """The cache has told what is left and held; the rest is spent."""
        limits = account.limits
        caps = (limits.budget_day_micro_usd, limits.budget_month_micro_usd)
        lefts = (decision.day_left_nano_usd, decision.month_left_nano_usd)
        day, month = (
            0 if cap is None or left == UNLIMITED else max(0, cap * NANO_PER_MICRO - left - decision.held_nano_usd)
            for cap, left in zip(caps, lefts, strict=True)
        )
        self._seen[account.name] = Spent(window.day, window.month, day, month)
        self._accounts[account.name] = account

    def spent(self, account: Account, nano_usd: int, window: Window) -> None:
        """So much was spent without the cache."""
        seen = self._seen.get(account.name, Spent(window.day, window.month)).at(window)
        self._seen[account.name] = Spent(seen.day, seen.month, seen.day_nano_usd + nano_usd, seen.month_nano_usd + nano_usd)

    def accounts(self) -> list[Account]:
        """Those whose budgets were decided on here."""
        return list(self._accounts.values())

    async def known(self, account: Account) -> Spent:
        """The most that is known to be spent.

        Raises:
            ApiError: `budget_unknown`, where neither the ledger answers nor this gateway has seen it: a budget is not guessed.
        """
        seen = self._seen.get(account.name)
        try:
            ledger = await self.read(account)
        except (BotoCoreError, ClientError, TimeoutError) as error:
            log.warning("budget_not_read", account=account.name, error=f"{type(error).__name__}: {error}")
            if seen is None:
                message = "What your budget has left cannot be told at the moment, so nothing is generated."
                raise ApiError(errors.BUDGET_UNKNOWN, message, retry_after_s=UNKNOWN_RETRY_S) from error
            return seen
        return seed(State(spent=seen), ledger).spent or ledger

    async def read(self, account: Account) -> Spent:
        """What the ledger says.

        Raises:
            BotoCoreError, ClientError, TimeoutError: it does not answer.
        """
        reading = self._reads.get(account.name)
        if reading is None:
            reading = asyncio.create_task(asyncio.to_thread(self._spent_of, account, time.time_ns() // 1_000_000))
            self._reads[account.name] = reading
            reading.add_done_callback(lambda _: self._reads.pop(account.name, None))
        return await asyncio.wait_for(asyncio.shield(reading), READ_TIMEOUT_S)


def spent_by_ledger(usage: UsageOf) -> SpentOf:
    """Reads the ledger's rows of this month."""
    return partial(_spent, usage)


def window_at(unix_s: float) -> Window:
    """The UTC day and month of a moment.

    Example: 2026-11-24 22:00 is (20261124, 202611), with 2 h and 6 days and 2 h left.
    """
    now = datetime.fromtimestamp(unix_s, UTC)
    next_day = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
    next_month = next_day + timedelta(days=calendar.monthrange(now.year, now.month)[1] - now.day)
    return Window(
        now.year * 10_000 + now.month * 100 + now.day,
        now.year * 100 + now.month,
        (next_day - now).total_seconds() * 1e6,
        (next_month - now).total_seconds() * 1e6,
    )


def _spent(usage: UsageOf, account: Account, at_ms: int) -> Spent:
    now = datetime.fromtimestamp(at_ms / 1e3, UTC)
    month = datetime(now.year, now.month, 1, tzinfo=UTC)
    report = usage(account.tenant, int(month.timestamp()) * 1000, at_ms + 1, ["day", "key"])
    rows = [row for row in report.rows if not account.key_ids or row.key_id in account.key_ids]
    today, whole = (sum(row.cost_pico_usd for row in rows if row.day == day or not day) for day in (f"{now:%Y-%m-%d}", ""))
    window = window_at(at_ms / 1e3)
    return Spent(window.day, window.month, -(-today // PICO_PER_NANO), -(-whole // PICO_PER_NANO))
