"""Whether a tenant's request is let in now: requests and tokens a minute by GCRA, and a number of requests at once.

GCRA (the generic cell rate algorithm) keeps one number a limit, the theoretical arrival time: the moment at which everything
let in so far has been paid for at the limit's rate. A request of cost `c` moves it by `c * period / limit` and is let in if it
then lies at most one period ahead of now. So an idle tenant may spend one minute's worth at once, and from there on gets exactly
its rate. It needs no history, takes costs (tokens), and gives back what was reserved and not used.

All limits are decided together and nothing is taken unless everything is granted. Reserving before and settling after is
what makes a limit exact: checking before and charging after admits 4,670 tokens on a limit of 1,000 under concurrency.
`gcra_lua.py` holds the same decision as a Valkey script; a property test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

PERIOD_US = 60_000_000.0
"""Limits are per minute, and a burst is at most one minute's worth."""
CONCURRENCY_RETRY_S = 1.0
"""Retry-After when too many requests run at once: when one of them ends is not known."""
UNLIMITED = -1

Reason = Literal["admitted", "requests", "tokens", "concurrency"]


@dataclass(frozen=True)
class Limits:
    """A tenant's limits; None means unlimited."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrency: int | None = None

    @property
    def is_unlimited(self) -> bool:
        """No limit is set, so there is nothing to decide."""
        return self.requests_per_min is None and self.tokens_per_min is None and self.concurrency is None


@dataclass(frozen=True)
class State:
    """What is remembered of a tenant. Times are microseconds of any clock that does not jump; 0 means nothing is owed."""

    requests_tat_us: float = 0.0
    tokens_tat_us: float = 0.0
    leases: Mapping[str, float] = field(default_factory=dict)
    """Requests that run now, each with the time at which it is taken for dead."""


@dataclass(frozen=True)
class Decision:
    """The answer, with its reason and what is left. `UNLIMITED` stands for no limit."""

    reason: Reason
    retry_after_s: float
    """When the same request would be let in if nothing else came; 0 where it was."""
    remaining_requests: int
    remaining_tokens: int

    @property
    def is_admitted(self) -> bool:
        """The request may go on."""
        return self.reason == "admitted"


def exceeds_burst(limits: Limits, tokens: int) -> bool:
    """A request of `tokens` could never be let in, however long it waited: an error of the request, not a matter of time."""
    return limits.tokens_per_min is not None and tokens > limits.tokens_per_min


def reserve(state: State, limits: Limits, *, lease: str, tokens: int, now_us: float, lease_us: float) -> tuple[Decision, State]:
    """Let in one request of `tokens`, or say when to come back.

    Example: at 60 requests a minute a request costs one second. Sixty at once are let in; the 61st waits 1 s.
    """
    leases = {name: expires_us for name, expires_us in state.leases.items() if expires_us > now_us}
    requests_tat_us = _charged(state.requests_tat_us, limits.requests_per_min, 1, now_us)
    tokens_tat_us = _charged(state.tokens_tat_us, limits.tokens_per_min, tokens, now_us)
    waits_us: dict[Reason, float] = {
        "requests": _wait_us(requests_tat_us, limits.requests_per_min, now_us),
        "tokens": _wait_us(tokens_tat_us, limits.tokens_per_min, now_us),
        "concurrency": _full_us(len(leases), limits.concurrency),
    }
    refusals: list[Reason] = [reason for reason, wait_us in waits_us.items() if wait_us > 0]
    if refusals:
        kept = replace(state, leases=leases)
        return _decision(refusals[0], max(waits_us.values()), limits, kept, now_us), kept
    if limits.concurrency is not None:
        leases[lease] = now_us + lease_us
    taken = State(requests_tat_us, tokens_tat_us, leases)
    return _decision("admitted", 0.0, limits, taken, now_us), taken


def settle(state: State, limits: Limits, *, lease: str, tokens_delta: int, now_us: float) -> State:
    """The request is over: give its lease back and correct its tokens by `tokens_delta` (used minus reserved)."""
    leases = {name: expires_us for name, expires_us in state.leases.items() if name != lease}
    tokens_tat_us = _charged(state.tokens_tat_us, limits.tokens_per_min, tokens_delta, now_us)
    if limits.tokens_per_min is not None:
        tokens_tat_us = max(tokens_tat_us, now_us)
    return State(state.requests_tat_us, tokens_tat_us, leases)


def _charged(tat_us: float, per_min: int | None, cost: int, now_us: float) -> float:
    """The theoretical arrival time after a charge of `cost`."""
    if per_min is None:
        return tat_us
    return max(tat_us, now_us) + cost * PERIOD_US / per_min


def _wait_us(charged_us: float, per_min: int | None, now_us: float) -> float:
    """How long until a charge would fit; 0 where it does."""
    return 0.0 if per_min is None else max(0.0, charged_us - PERIOD_US - now_us)


def _full_us(num_running: int, concurrency: int | None) -> float:
    return CONCURRENCY_RETRY_S * 1e6 if concurrency is not None and num_running >= concurrency else 0.0


def _decision(reason: Reason, wait_us: float, limits: Limits, state: State, now_us: float) -> Decision:
    return Decision(
        reason=reason,
        retry_after_s=wait_us / 1e6,
        remaining_requests=_remaining(state.requests_tat_us, limits.requests_per_min, now_us),
        remaining_tokens=_remaining(state.tokens_tat_us, limits.tokens_per_min, now_us),
    )


def _remaining(tat_us: float, per_min: int | None, now_us: float) -> int:
    """What could be spent at this moment."""
    if per_min is None:
        return UNLIMITED
    return max(0, int((now_us + PERIOD_US - max(tat_us, now_us)) * per_min / PERIOD_US))
