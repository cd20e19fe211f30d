"""How limits are told to clients: OpenAI's rate-limit headers, ours for budgets, and refusals that say when to come back.

Retry-After is when the same request would be let in if nothing else came, and up to a tenth more: clients that were refused
together must not come back together.
"""

from __future__ import annotations

import random

from policies.admission.gcra import PERIOD_US
from policies.admission.limits import NANO_PER_MICRO, Cost, Decision, Limits, Reason
from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Headers

JITTER = 0.1
ALLOWANCE_HEADER = b"x-flotilla-output-allowance"
"""Tokens of each answer that the budget still pays for, where those are fewer than were asked for."""

_PER_MIN = (b"requests", b"tokens", b"input-tokens", b"output-tokens")


def headers(limits: Limits, decision: Decision) -> list[tuple[bytes, bytes]]:
    """Of the limits that the tenant has. `reset` is when all of a limit is free again; budgets are in millionths of a dollar."""
    said: list[tuple[bytes, bytes]] = []
    for name, limit, remaining in zip(_PER_MIN, limits.per_min, decision.remaining, strict=True):
        if limit is not None:
            reset_s = (limit - remaining) * PERIOD_US / 1e6 / limit
            said.append((b"x-ratelimit-limit-" + name, b"%d" % limit))
            said.append((b"x-ratelimit-remaining-" + name, b"%d" % remaining))
            said.append((b"x-ratelimit-reset-" + name, b"%.3fs" % reset_s))
    for name, budget, left in (
        (b"day", limits.budget_day_micro_usd, decision.day_left_nano_usd),
        (b"month", limits.budget_month_micro_usd, decision.month_left_nano_usd),
    ):
        if budget is not None:
            said.append((b"x-flotilla-budget-remaining-micro-usd-" + name, b"%d" % (left // NANO_PER_MICRO)))
    return said


def refusal(limits: Limits, decision: Decision, said: Headers) -> ApiError:
    """The 429 for a request that was not let in: OpenAI's `insufficient_quota` for money, which a short wait does not help."""
    wait_s = decision.retry_after_s * random.uniform(1, 1 + JITTER)  # noqa: S311 (nothing is secret)
    name = _name(limits, decision.reason)
    error = ApiError(
        errors.INSUFFICIENT_QUOTA if decision.reason.startswith("budget") else errors.RATE_LIMIT_EXCEEDED,
        f"Your limit of {name} is reached. Try again in {wait_s:.1f} s.",
        retry_after_s=wait_s,
    )
    error.headers.extend(said)
    return error


def never_fits(limits: Limits, reason: Reason, cost: Cost) -> ApiError:
    """The 400 for a request that is more than a whole limit."""
    return ApiError(
        errors.REQUEST_EXCEEDS_LIMIT,
        f"This request counts as {cost.input_tokens + cost.output_tokens} tokens ({cost.input_tokens} of prompt, up to"
        f" {cost.output_tokens} of answer), more than your whole limit of {_name(limits, reason)}. Shorten the prompt or lower"
        " `max_tokens`.",
    )


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
