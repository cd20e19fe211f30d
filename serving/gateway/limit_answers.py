"""How limits are told to clients: OpenAI's rate-limit headers, ours for budgets, and refusals that say when to come back.

Retry-After is when the same request would be let in if nothing else came, and up to a tenth more: clients that were refused
together must not come back together.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from policies.admission.gcra import PERIOD_US
from policies.admission.limits import NANO_PER_MICRO, Cost, Decision, Limits, Reason, Window
from serving.gateway import errors
from serving.gateway.accounts import Account
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Headers

JITTER = 0.1
ALLOWANCE_HEADER = b"x-flotilla-output-allowance"
"""Tokens of each answer that the budget still pays for, where those are fewer than were asked for."""

_PER_MIN = (b"requests", b"tokens", b"input-tokens", b"output-tokens")


def headers(accounts: Sequence[Account], decisions: Sequence[Decision], window: Window) -> list[tuple[bytes, bytes]]:
    """Every limit that the request counted against; of a tenant's and its key's, the one with less left.

    `reset` is when all of a limit is free again; of requests at once nobody knows. Budgets are in millionths of a dollar.
    """
    told: dict[bytes, tuple[int, int, float | None]] = {}
    for account, decision in zip(accounts, decisions, strict=True):
        for name, limit, left, reset_s in _told(account.limits, decision, window):
            if name not in told or left < told[name][1]:
                told[name] = limit, left, reset_s
    said: list[tuple[bytes, bytes]] = []
    for name, (limit, left, reset_s) in told.items():
        said.append((b"x-ratelimit-limit-" + name, b"%d" % limit))
        said.append((b"x-ratelimit-remaining-" + name, b"%d" % left))
        if reset_s is not None:
            said.append((b"x-ratelimit-reset-" + name, b"%.3fs" % reset_s))
    return said


def _told(limits: Limits, decision: Decision, window: Window) -> Iterator[tuple[bytes, int, int, float | None]]:
    """Name, limit, what remains and when it is reset."""
    for name, limit, remaining in zip(_PER_MIN, limits.per_min, decision.remaining, strict=True):
        if limit is not None:
            yield name, limit, remaining, (limit - remaining) * PERIOD_US / 1e6 / limit
    if limits.concurrency is not None:
        yield b"concurrency", limits.concurrency, decision.seats_left, None
    for name, budget, left, left_us in (
        (b"budget-day-micro-usd", limits.budget_day_micro_usd, decision.day_left_nano_usd, window.day_left_us),
        (b"budget-month-micro-usd", limits.budget_month_micro_usd, decision.month_left_nano_usd, window.month_left_us),
    ):
        if budget is not None:
            yield name, budget, left // NANO_PER_MICRO, left_us / 1e6


def refusal(accounts: Sequence[Account], decisions: Sequence[Decision], said: Headers) -> ApiError:
    """The 429 for a request that was not let in: OpenAI's `insufficient_quota` for money, which a short wait does not help.
    Retry-After holds for all limits that refused it."""
    wait_s = max(decision.retry_after_s for decision in decisions) * random.uniform(1, 1 + JITTER)  # noqa: S311 (nothing is secret)
    account, reason = next((account, one.reason) for account, one in zip(accounts, decisions, strict=True) if not one.is_admitted)
    error = ApiError(
        errors.INSUFFICIENT_QUOTA if reason.startswith("budget") else errors.RATE_LIMIT_EXCEEDED,
        f"{_whose(account)} limit of {_name(account.limits, reason)} is reached. Try again in {wait_s:.1f} s.",
        retry_after_s=wait_s,
    )
    error.headers.extend(said)
    return error


def never_fits(account: Account, reason: Reason, cost: Cost) -> ApiError:
    """The 400 for a request that is more than a whole limit."""
    return ApiError(
        errors.REQUEST_EXCEEDS_LIMIT,
        f"This request counts as {cost.input_tokens + cost.output_tokens} tokens ({cost.input_tokens} of prompt, up to"
        f" {cost.output_tokens} of answer), more than {_whose(account).lower()} whole limit of {_name(account.limits, reason)}."
        " Shorten the prompt or lower `max_tokens`.",
    )


def _whose(account: Account) -> str:
    return "This key's" if account.key_ids else "Your"


def _name(limits: Limits, reason: Reason) -> str:
    return {
        "requests": f"{limits.requests_per_min} requests a minute",
        "tokens": f"{limits.tokens_per_min} tokens a minute",
        "input_tokens": f"{limits.input_tokens_per_min} tokens of prompts a minute",
        "output_tokens": f"{limits.output_tokens_per_min} tokens of answers a minute",
        "concurrency": f"{limits.concurrency} requests at once",
        "budget_day": f"{(limits.budget_day_micro_usd or 0) / 1e6:.6f} dollars a day",
        "budget_month": f"{(limits.budget_month_micro_usd or 0) / 1e6:.6f} dollars a month",
    }[reason]
