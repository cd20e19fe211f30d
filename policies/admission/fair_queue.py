"""Which of the waiting requests goes to an engine next, and how long one more would wait: priority bands, and fairness within.

A queue in order of arrival belongs to whoever sends the most: a tenant at 50 times its share makes everybody else wait 50 times
as long. So:

1. The highest band that waits goes first, but a lower one is owed its reserved share of all tokens that go out while it waits:
   it falls behind that share by no more than one request a band.
2. Within a band the tenant that has had the least goes first: a virtual token counter each (VTC, Sheng et al., OSDI 2024,
   arXiv:2401.00588), in tokens over weight. A request is charged when it goes out, for the prompt tokens that its engine will
   have to compute and twice the tokens that it will answer, both as its tenant's last ones were, and corrected when it has ended.
   A tenant that comes back from idling is lifted to what those who wait have had, less a small credit: so idling saves nothing
   up, and who asks little waits for one slot and not for its round. Two tenants that both wait all the time have had amounts
   that differ by no more than `2 x the dearest request`, and the credit where one had idled (corrections aside).
3. Within a tenant the earliest deadline goes first.

Several gateways are as fair as one but for what they have not told each other: `merge` takes in what others have charged. With
merges after at most D tokens of others, the bound is `2 x (the dearest request + D)` over all gateways.

A full queue makes room for whoever waits with less: the last request of the longest queue in the lowest band goes (longest queue
drop, Suter et al. 1998). Time is an argument, and nothing here waits.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Band = Literal["interactive", "standard", "batch"]
"""A tenant's priority. `interactive`: people wait for the tokens. `standard`: the default. `batch`: served from what is spare."""

RESERVED: Mapping[Band, float] = {"interactive": 0.0, "standard": 0.2, "batch": 0.05}
"""Highest first. Share of the tokens that a band is owed while it waits, whatever higher ones want. The rest is the highest's."""
OUTPUT_WEIGHT = 2.0
"""An output token costs twice an input token, as in the paper: decoding it takes a share of a whole step."""
CREDIT_TOKENS = 4096.0
"""What a tenant that comes back may have ahead of others, weighted: two conversations. Without it, one that always waits
gets every second slot while a single other waits, however little that one asks."""
FIRST_OUTPUT_TOKENS = 211.0
"""Expected of a tenant that has not answered yet: the mean of conversations (Azure 2023 trace)."""
LEARN = 0.1
"""How fast means of a tenant and of the class follow the last request."""
RATE_S = 5.0
"""How fast measured rates forget (e-fold), and..."""
PRIOR_S = 1.0
"""...for how long what was worked out beforehand weighs as much as what is measured."""
MAX_ACCOUNTS = 10_000
"""Of a band. Beyond it those are forgotten that would be lifted anyway."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request and where it stands."""

    tenant: str
    band: Band
    weight: int
    prompt_tokens: int
    max_output_tokens: int
    deadline_s: float
    """It is of no use to be sent to an engine later."""
    entered_s: float
    cost: float = 0.0
    """Tokens that it is expected to come to, weighted."""
    uncached_tokens: float = 0.0
    """Of its prompt, that an engine is expected to have to compute."""
    predicted_wait_s: float = 0.0
    dispatched_s: float = math.inf
    is_waiting: bool = False

    @property
    def is_dispatched(self) -> bool:
        """It may go, or has gone, to an engine."""
        return self.dispatched_s < math.inf


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not let in, and why."""

    reason: Literal["deadline", "full"]
    predicted_wait_s: float


@dataclass(slots=True)
class _Rate:
    """Weighted tokens a second that went out of a queue while it was not empty."""

    tokens: float = 0.0
    seconds: float = 0.0
    since_s: float = 0.0

    def went(self, tokens: float, now_s: float) -> None:
        passed_s = max(now_s - self.since_s, 0.0)
        left = math.exp(-passed_s / RATE_S)
        self.tokens = self.tokens * left + tokens
        self.seconds = self.seconds * left + passed_s
        self.since_s = now_s

    def per_s(self, prior_per_s: float) -> float:
        return (self.tokens + PRIOR_S * prior_per_s) / (self.seconds + PRIOR_S)


@dataclass(slots=True)
class _Account:
    """A tenant within a band."""

    counter: float = 0.0
    weight: int = 1
    output_tokens: float = FIRST_OUTPUT_TOKENS
    uncached_ratio: float = 1.0
    waiting: list[tuple[float, int, Ticket]] = field(default_factory=list)
    """By deadline. Those that left are still in it, until they come up."""
    num_waiting: int = 0
    cost: float = 0.0
    """Of those that wait."""
    latest_s: float = -math.inf
    """The last deadline of those that wait, or waited together with them."""
    rate: _Rate = field(default_factory=_Rate)
    unsent: float = 0.0
    """Charged and not told to other gateways yet."""


@dataclass(slots=True)
class _Lane:
    """A band."""

    reserved: float
    accounts: dict[str, _Account] = field(default_factory=dict)
    backlogged: dict[str, _Account] = field(default_factory=dict)
    level: float = 0.0
    """The highest counter at which anybody was served. No tenant that waits is further below than the credit."""
    owed: float = 0.0
    rate: _Rate = field(default_factory=_Rate)


class FairQueue:
    """The queue of one model class at one gateway."""

    def __init__(self, max_waiting: int, credit_tokens: float = CREDIT_TOKENS) -> None:
        self.num_waiting = 0
        self._credit = credit_tokens
        self._max_waiting = max_waiting
        self._lanes: dict[Band, _Lane] = {band: _Lane(share) for band, share in RESERVED.items()}
        self._order = itertools.count()
        self._mean_cost = 0.0
        self._mean_service_s = 0.0

    def expect(self, ticket: Ticket) -> None:
        """Fill in what the request is expected to come to, as its tenant's last ones did."""
        self._charged_to(ticket, self._lanes[ticket.band])

    def enter(self, ticket: Ticket, slots: int, now_s: float) -> tuple[Refusal | None, Ticket | None]:
        """Let a request wait, where `slots` requests may be at engines at once. Either its refusal, or a request that had to go
        to make room for it, or neither."""
        lane = self._lanes[ticket.band]
        account = self._charged_to(ticket, lane)
        ticket.predicted_wait_s = self._wait_s(ticket, lane, account, slots)
        if now_s + ticket.predicted_wait_s > ticket.deadline_s:
            return Refusal("deadline", ticket.predicted_wait_s), None
        pushed = None
        if self.num_waiting >= self._max_waiting:
            pushed = self._last_of_longest(ticket.band, (account.cost + ticket.cost) / account.weight)
            if pushed is None:
                return Refusal("full", ticket.predicted_wait_s), None
            self.leave(pushed)
        self._lift(lane, account)
        if not account.num_waiting:
            account.rate.since_s = now_s
            if not lane.backlogged:
                lane.rate.since_s = now_s
            lane.backlogged[ticket.tenant] = account
        heapq.heappush(account.waiting, (ticket.deadline_s, next(self._order), ticket))
        ticket.is_waiting = True
        account.num_waiting += 1
        account.cost += ticket.cost
        account.latest_s = max(account.latest_s, ticket.deadline_s)
        self.num_waiting += 1
        return None, pushed

    def pass_by(self, ticket: Ticket, now_s: float) -> None:
        """Nobody waits and there is room: the request goes out at once, and is charged all the same."""
        lane = self._lanes[ticket.band]
        account = self._charged_to(ticket, lane)
        self._lift(lane, account)
        self._charge(account, ticket.cost)
        lane.level = max(lane.level, account.counter - ticket.cost / account.weight)
        ticket.dispatched_s = now_s

    def next(self, now_s: float) -> Ticket | None:
        """The request that goes out now, charged; None where nobody waits."""
        if not self.num_waiting:
            return None
        band, lane, tenant, account, ticket = self._next_up()
        heapq.heappop(account.waiting)
        for other, its in self._lanes.items():
            its.owed = its.owed + its.reserved * ticket.cost if its.backlogged else 0.0
            if other == band:
                its.owed = max(its.owed - ticket.cost, 0.0)
        account.rate.went(ticket.cost, now_s)
        lane.rate.went(ticket.cost, now_s)
        self._charge(account, ticket.cost)
        lane.level = max(lane.level, account.counter - ticket.cost / account.weight)
        self._not_waiting(ticket, tenant, lane, account)
        ticket.dispatched_s = now_s
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """It does not wait any more, and nothing is charged; again changes nothing."""
        if ticket.is_waiting:
            lane = self._lanes[ticket.band]
            self._not_waiting(ticket, ticket.tenant, lane, lane.accounts[ticket.tenant])

    def ended(self, ticket: Ticket, *, uncached_tokens: int, output_tokens: int, now_s: float) -> None:
        """A request that went out is over, and came to this: the charge is put right, and its tenant's next are expected to be
        more like it. One that no engine worked on is charged nothing and teaches nothing."""
        account = self._lanes[ticket.band].accounts.get(ticket.tenant)
        if account is None:
            return
        actual = uncached_tokens + OUTPUT_WEIGHT * output_tokens
        self._charge(account, actual - ticket.cost)
        if actual > 0:
            account.output_tokens += LEARN * (output_tokens - account.output_tokens)
            account.uncached_ratio += LEARN * (min(uncached_tokens / max(ticket.prompt_tokens, 1), 1.0) - account.uncached_ratio)
            learn = LEARN if self._mean_service_s else 1.0
            self._mean_cost += learn * (actual - self._mean_cost)
            self._mean_service_s += learn * (now_s - ticket.dispatched_s - self._mean_service_s)

    def take_charges(self) -> dict[tuple[str, str], float]:
        """Tokens charged here since this was asked last, by band and tenant: what other gateways are to be told."""
        charges: dict[tuple[str, str], float] = {}
        for band, lane in self._lanes.items():
            for tenant, account in lane.accounts.items():
                if account.unsent:
                    charges[band, tenant] = account.unsent
                    account.unsent = 0.0
        return charges

    def merge(self, band: Band, tenant: str, tokens: float) -> None:
        """Other gateways have charged so much. A tenant that was never seen here owes nothing here: it would be lifted."""
        account = self._lanes[band].accounts.get(tenant)
        if account is not None:
            account.counter += tokens / account.weight

    def wait_s(self, ticket: Ticket, slots: int) -> float:
        """How long the request would wait if it came now, with its band and its tenant served as they have been of late."""
        lane = self._lanes[ticket.band]
        return self._wait_s(ticket, lane, self._charged_to(ticket, lane), slots)

    def counter(self, band: Band, tenant: str) -> float:
        """Tokens over weight that the tenant has had, or was lifted to; 0 for one that is not known."""
        account = self._lanes[band].accounts.get(tenant)
        return 0.0 if account is None else account.counter

    def _charged_to(self, ticket: Ticket, lane: _Lane) -> _Account:
        account = lane.accounts.get(ticket.tenant)
        if account is None:
            if len(lane.accounts) >= MAX_ACCOUNTS:
                least = lane.level - self._credit
                lane.accounts = {name: one for name, one in lane.accounts.items() if one.num_waiting or one.counter > least}
            account = lane.accounts[ticket.tenant] = _Account(counter=lane.level - self._credit)
        account.weight = ticket.weight
        output = min(float(ticket.max_output_tokens), account.output_tokens)
        ticket.uncached_tokens = ticket.prompt_tokens * account.uncached_ratio
        ticket.cost = ticket.uncached_tokens + OUTPUT_WEIGHT * output
        return account

    def _lift(self, lane: _Lane, account: _Account) -> None:
        if not account.num_waiting:
            account.counter = max(account.counter, lane.level - self._credit)

    @staticmethod
    def _charge(account: _Account, tokens: float) -> None:
        account.counter += tokens / account.weight
        account.unsent += tokens

    def _not_waiting(self, ticket: Ticket, tenant: str, lane: _Lane, account: _Account) -> None:
        ticket.is_waiting = False
        account.num_waiting -= 1
        account.cost -= ticket.cost
        self.num_waiting -= 1
        if not account.num_waiting:
            account.waiting.clear()
            account.cost, account.latest_s = 0.0, -math.inf
            del lane.backlogged[tenant]

    def _next_up(self) -> tuple[Band, _Lane, str, _Account, Ticket]:
        """Of the band that is owed the most, if it is owed that much; else of the highest."""
        waiting = [band for band, lane in self._lanes.items() if lane.backlogged]
        for band in (max(waiting, key=lambda one: self._lanes[one].owed), waiting[0]):
            lane = self._lanes[band]
            tenant, account = min(lane.backlogged.items(), key=lambda item: item[1].counter)
            while not account.waiting[0][2].is_waiting:
                heapq.heappop(account.waiting)
            ticket = account.waiting[0][2]
            if lane.owed >= ticket.cost:
                break
        return band, lane, tenant, account, ticket

    def _last_of_longest(self, band: Band, cost_per_weight: float) -> Ticket | None:
        """The last request of the longest queue in the lowest band that waits; None where that is shorter than `cost_per_weight`
        in the same band, or the band is higher."""
        for lowest in reversed(self._lanes):
            lane = self._lanes[lowest]
            if lane.backlogged:
                longest = max(lane.backlogged.values(), key=lambda one: one.cost / one.weight)
                if lowest == band and longest.cost / longest.weight <= cost_per_weight:
                    return None
                return max(item for item in longest.waiting if item[2].is_waiting)[2]
            if lowest == band:
                return None
        return None

    def _wait_s(self, ticket: Ticket, lane: _Lane, account: _Account, slots: int) -> float:
        """What goes out before it, over the rate at which it goes. Before the first answers nothing is known, and that is 0."""
        if not self._mean_service_s:
            return 0.0
        per_s = slots * self._mean_cost / self._mean_service_s
        own = account.cost
        if ticket.deadline_s < account.latest_s:
            own = sum(one.cost for at_s, _, one in account.waiting if one.is_waiting and at_s <= ticket.deadline_s)
        lifted = account.counter if account.num_waiting else max(account.counter, lane.level - self._credit)
        level = lifted + own / account.weight
        ahead = own + sum(
            min(other.cost, max(level - other.counter, 0.0) * other.weight)
            for other in lane.backlogged.values()
            if other is not account
        )
        higher = list(itertools.takewhile(lambda its: its is not lane, self._lanes.values()))
        prior_per_s = per_s * (max(lane.reserved, 0.05) if any(its.backlogged for its in higher) else 1.0)
        wait_s = ahead / max(lane.rate.per_s(prior_per_s), 1e-9)
        if own and account.rate.seconds >= PRIOR_S:  # others come and go before it: its own pace says how many
            wait_s = max(wait_s, own * account.rate.seconds / max(account.rate.tokens, 1e-9))
        return wait_s
