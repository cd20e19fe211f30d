"""Whether a tenant's request is let in now: rates a minute, requests at once, and budgets of a day and a month.

Rates are kept by GCRA (`gcra.py`): requests, tokens, and tokens of prompts and of answers by themselves. A request that runs
holds a lease, which counts against `concurrency` and holds the most that the request may cost; a lease that nobody renews runs
out, so what a dead gateway held comes back by itself. Of a budget, what was spent and what leases hold is never more than the
budget: a request that wants more than is left is granted what is left, which ends its answer early, and is refused when that
does not pay for its prompt and one token.

All limits are decided together and nothing is taken unless everything is granted. Reserving before and settling after is
what makes a limit exact: checking before and charging after admits 4,670 tokens on a limit of 1,000 under concurrency.
`limits_lua.py` holds the same decision as a Valkey script; a property test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from policies.admission import gcra

BUSY_RETRY_S = 1.0
"""Retry-After when it is requests that run which are in the way: when one of them ends is not known."""
UNLIMITED = -1
NANO_PER_MICRO = 1000
"""Money is counted in billionths of a dollar: a token costs less than a millionth, and a double is exact to 9 million dollars."""

Rated = Literal["requests", "tokens", "input_tokens", "output_tokens"]
RATED: tuple[Rated, ...] = ("requests", "tokens", "input_tokens", "output_tokens")
Reason = Literal[
    "admitted", "requests", "tokens", "input_tokens", "output_tokens", "concurrency", "budget_day", "budget_month", "unseeded"
]


@dataclass(frozen=True)
class Limits:
    """A tenant's limits; None means unlimited."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    """Prompt and answer together."""
    concurrency: int | None = None
    input_tokens_per_min: int | None = None
    output_tokens_per_min: int | None = None
    budget_day_micro_usd: int | None = None
    budget_month_micro_usd: int | None = None
    """By UTC's days and months."""

    @property
    def is_unlimited(self) -> bool:
        """No limit is set, so there is nothing to decide."""
        return self == Limits()

    @property
    def has_budget(self) -> bool:
        """Money is limited."""
        return self.budget_day_micro_usd is not None or self.budget_month_micro_usd is not None

    @property
    def has_leases(self) -> bool:
        """Something is limited that a request holds while it runs."""
        return self.concurrency is not None or self.has_budget

    @property
    def per_min(self) -> tuple[int | None, ...]:
        """The rates, in the order of `RATED`."""
        return (self.requests_per_min, self.tokens_per_min, self.input_tokens_per_min, self.output_tokens_per_min)


@dataclass(frozen=True)
class Cost:
    """What a request is let in for, or the change of that."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0
    """The most that it may cost."""
    least_nano_usd: int = 0
    """Its prompt and one token of each answer: with less left of a budget it is refused."""

    @property
    def rated(self) -> tuple[int, ...]:
        """In the order of `RATED`."""
        return (self.requests, self.input_tokens + self.output_tokens, self.input_tokens, self.output_tokens)


@dataclass(frozen=True)
class Window:
    """The day and the month that it is, as numbers that grow: 20261124 and 202611, and what is left of each."""

    day: int
    month: int
    day_left_us: float
    month_left_us: float


@dataclass(frozen=True)
class Spent:
    """What settled requests cost in the newest day and month that were asked about."""

    day: int
    month: int
    day_nano_usd: int = 0
    month_nano_usd: int = 0

    def at(self, window: Window) -> Spent:
        """The same in `window`: a new day or month starts at nothing. A clock that is behind does not turn it back."""
        return Spent(
            max(self.day, window.day),
            max(self.month, window.month),
            0 if window.day > self.day else self.day_nano_usd,
            0 if window.month > self.month else self.month_nano_usd,
        )


@dataclass(frozen=True)
class Lease:
    """What a running request holds."""

    expires_us: float
    nano_usd: int = 0


@dataclass(frozen=True)
class State:
    """What is remembered of a tenant. Times are microseconds of any clock that does not jump; 0 means nothing is owed."""

    tats_us: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    """Theoretical arrival times, in the order of `RATED`."""
    leases: Mapping[str, Lease] = field(default_factory=dict)
    spent: Spent | None = None
    """None where it is not known: it was never read, or it was lost. It must be seeded before a budget can be decided on."""


@dataclass(frozen=True)
class Decision:
    """The answer, with its reason and what is left. `UNLIMITED` stands for no limit."""

    reason: Reason
    retry_after_s: float
    """When the same request would be let in if nothing else came; 0 where it was."""
    remaining: tuple[int, ...]
    """Of rates, in the order of `RATED`."""
    granted_nano_usd: int
    day_left_nano_usd: int
    month_left_nano_usd: int
    """Of budgets, less what running requests hold."""
    held_nano_usd: int = 0
    """What they hold."""
    seats_left: int = UNLIMITED
    """Of requests at once."""
    bound_by: Reason = "admitted"
    """The budget that granted less than was wanted."""

    @property
    def is_admitted(self) -> bool:
        """The request may go on."""
        return self.reason == "admitted"


def exceeds_burst(limits: Limits, cost: Cost) -> Reason | None:
    """The limit that could never let the request in, however long it waited: an error of the request, not a matter of time."""
    for name, cap, amount in zip(RATED, limits.per_min, cost.rated, strict=True):
        if cap is not None and amount > cap:
            return name
    return None


def share_of(limits: Limits, num_gateways: int) -> Limits:
    """What one of `num_gateways` may let in by itself: an equal part, and at least one, of rates and requests at once.
    Budgets are not divided here: what is left of them is known only where they are.

    All gateways together let in at most the limit, or one each where the limit is smaller than their number.
    """

    def part(limit: int | None) -> int | None:
        return None if limit is None else max(1, limit // num_gateways)

    return replace(
        limits,
        requests_per_min=part(limits.requests_per_min),
        tokens_per_min=part(limits.tokens_per_min),
        concurrency=part(limits.concurrency),
        input_tokens_per_min=part(limits.input_tokens_per_min),
        output_tokens_per_min=part(limits.output_tokens_per_min),
    )


def reserve(
    state: State, limits: Limits, cost: Cost, *, lease: str, now_us: float, lease_us: float, window: Window
) -> tuple[Decision, State]:
    """Let in one request, or say when to come back.

    Example: at 60 requests a minute a request costs one second. Sixty at once are let in; the 61st waits 1 s.
    """
    decisions, states = reserve_all([(state, limits)], cost, lease=lease, now_us=now_us, lease_us=lease_us, window=window)
    return decisions[0], states[0]


def reserve_all(
    accounts: Sequence[tuple[State, Limits]],
    cost: Cost,
    *,
    lease: str,
    now_us: float,
    lease_us: float,
    window: Window,
) -> tuple[list[Decision], list[State]]:
    """Let in one request by all accounts, a tenant's and its key's, or by none. Each is granted what the least of them grants.

    Where one refuses, the others' decisions say `admitted` and what they have left: the request is let in where all say so.
    """
    weighed = [_weigh(state, limits, cost, now_us, window) for state, limits in accounts]
    all_limits = [limits for _, limits in accounts]
    if any(one.reason != "admitted" for one in weighed):
        pairs = zip(weighed, all_limits, strict=True)
        decisions = [_decision(one.reason, one.wait_us, limits, one.state, now_us) for one, limits in pairs]
        return decisions, [one.state for one in weighed]
    granted = min(one.granted_nano_usd for one in weighed)
    decisions, states = [], []
    for one, limits in zip(weighed, all_limits, strict=True):
        leases = dict(one.state.leases)
        if limits.has_leases:
            leases[lease] = Lease(now_us + lease_us, granted if limits.has_budget else 0)
        taken = State(_charged(one.state.tats_us, limits, cost, now_us), leases, one.state.spent)
        decision = _decision("admitted", 0.0, limits, taken, now_us)
        decisions.append(replace(decision, granted_nano_usd=granted, bound_by=one.bound_by))
        states.append(taken)
    return decisions, states


@dataclass(frozen=True)
class _Weighed:
    """What an account says of a request, and its state without what has run out."""

    state: State
    reason: Reason
    wait_us: float
    granted_nano_usd: int
    bound_by: Reason


def _weigh(state: State, limits: Limits, cost: Cost, now_us: float, window: Window) -> _Weighed:
    state = replace(state, leases={name: held for name, held in state.leases.items() if held.expires_us > now_us})
    if limits.has_budget and state.spent is None:
        return _Weighed(state, "unseeded", 0.0, 0, "admitted")
    if state.spent is not None and limits.has_budget:
        state = replace(state, spent=state.spent.at(window))
    tats_us = _charged(state.tats_us, limits, cost, now_us)
    waits_us: dict[Reason, float] = {
        name: gcra.wait_us(tat_us, cap, now_us) for name, tat_us, cap in zip(RATED, tats_us, limits.per_min, strict=True)
    }
    is_full = limits.concurrency is not None and len(state.leases) >= limits.concurrency
    waits_us["concurrency"] = BUSY_RETRY_S * 1e6 if is_full else 0.0
    granted = cost.nano_usd
    bound_by: Reason = "admitted"
    day_left, month_left = _left(state, limits)
    lefts: tuple[tuple[Reason, int, float], ...] = (
        ("budget_day", day_left, window.day_left_us),
        ("budget_month", month_left, window.month_left_us),
    )
    held = _held(state)
    for name, left, window_left_us in lefts:
        if left == UNLIMITED:
            continue
        if left < granted:
            granted, bound_by = left, name
        is_spent = left + held < cost.least_nano_usd
        waits_us[name] = 0.0 if left >= cost.least_nano_usd else window_left_us if is_spent else BUSY_RETRY_S * 1e6
    refusals: list[Reason] = [reason for reason, wait_us in waits_us.items() if wait_us > 0]
    reason: Reason = refusals[0] if refusals else "admitted"
    return _Weighed(state, reason, max(waits_us.values()), granted, bound_by)


def settle(state: State, limits: Limits, change: Cost, *, lease: str, now_us: float, window: Window) -> State:
    """The request is over: give its lease back, correct its tokens by `change` (used minus reserved), and spend
    `change.nano_usd`, all that it did cost. What is spent where nothing is known to be spent is for the seed to tell."""
    leases = {name: held for name, held in state.leases.items() if name != lease}
    tats_us = tuple(
        tat_us if cap is None else max(tat_us, now_us)
        for tat_us, cap in zip(_charged(state.tats_us, limits, change, now_us), limits.per_min, strict=True)
    )
    spent = state.spent
    if spent is not None and limits.has_budget:
        spent = spent.at(window)
        spent = replace(
            spent,
            day_nano_usd=spent.day_nano_usd + change.nano_usd,
            month_nano_usd=spent.month_nano_usd + change.nano_usd,
        )
    return State(tats_us, leases, spent)


def recall(state: State, limits: Limits, owed: Sequence[int], *, now_us: float) -> State:
    """At least so much is owed of each rate: what a cache is told that may have forgotten it."""
    tats_us = tuple(
        tat_us if cap is None else max(tat_us, now_us + amount * gcra.PERIOD_US / cap)
        for tat_us, cap, amount in zip(state.tats_us, limits.per_min, owed, strict=True)
    )
    return replace(state, tats_us=tats_us)


def seed(state: State, ledger: Spent) -> State:
    """What is spent is at least what the ledger says. It lags behind, so it never lowers what is known."""
    if state.spent is None:
        return replace(state, spent=ledger)
    known = state.spent.at(Window(ledger.day, ledger.month, 0, 0))
    day = max(known.day_nano_usd, ledger.day_nano_usd) if known.day == ledger.day else known.day_nano_usd
    month = max(known.month_nano_usd, ledger.month_nano_usd) if known.month == ledger.month else known.month_nano_usd
    return replace(state, spent=replace(known, day_nano_usd=day, month_nano_usd=month))


def _charged(tats_us: tuple[float, ...], limits: Limits, cost: Cost, now_us: float) -> tuple[float, ...]:
    charges = zip(tats_us, limits.per_min, cost.rated, strict=True)
    return tuple(gcra.charged(tat_us, cap, amount, now_us) for tat_us, cap, amount in charges)


def _held(state: State) -> int:
    return sum(held.nano_usd for held in state.leases.values())


def _left(state: State, limits: Limits) -> tuple[int, int]:
    """Of the day's budget and of the month's; never below zero."""
    spent, held = state.spent, _held(state)
    pairs = (
        (limits.budget_day_micro_usd, spent.day_nano_usd if spent else 0),
        (limits.budget_month_micro_usd, spent.month_nano_usd if spent else 0),
    )
    day, month = (UNLIMITED if cap is None else max(0, cap * NANO_PER_MICRO - used - held) for cap, used in pairs)
    return day, month


def _decision(reason: Reason, wait_us: float, limits: Limits, state: State, now_us: float) -> Decision:
    remaining = tuple(
        UNLIMITED if cap is None else gcra.remaining(tat_us, cap, now_us)
        for tat_us, cap in zip(state.tats_us, limits.per_min, strict=True)
    )
    day, month = _left(state, limits)
    seats = UNLIMITED if limits.concurrency is None else max(0, limits.concurrency - len(state.leases))
    return Decision(reason, wait_us / 1e6, remaining, 0, day, month, _held(state) if limits.has_budget else 0, seats)
