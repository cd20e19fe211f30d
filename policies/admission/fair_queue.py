"""Which of the waiting requests goes to an engine next, and how long one more would wait: priority bands, and fairness within.

A queue in order of arrival belongs to whoever sends the most: a tenant at 50 times its share makes everybody else wait 50 times
as long. So:

1. The highest band that waits goes first, but a lower one is owed its reserved share of all tokens that go out while it waits:
   it falls behind that share by no more than one request a band.
2. Within a band the tenant that has had the least goes first: a virtual token counter each (VTC, Sheng et al., OSDI 2024,
   arXiv:2401.00588), in tokens over weight. A request is charged when it goes out, for the prompt tokens that its engine will
   have to compute and twice the tokens that it will answer, both as its tenant's last ones were, and corrected when it has ended.
   A tenant that comes back from idling is lifted to what those who wait have had, less a small credit: so idling saves nothing
   up, and who asks little waits for one slot and not for its round. Tenants that have credit left go before all others, those
   with few requests first, in order of arrival: by their counters, whoever has asked once more than its equals would wait until
   all of them have been served. Two tenants that both wait all the time have had amounts that differ by no more than `2 x the
   dearest request`, and the credit (corrections aside).
3. Within a tenant the earliest deadline goes first.
4. A tenant that floods would still hold every slot, so that everybody else waits for one to come free, where alone they would
   have found one. So whoever has no credit leaves some of the last free slots to those who have: as many as these have had at
   once of late, and no more than `KEPT_RATIO`. That is the most that may stay idle while somebody waits; where nobody has credit
   it is none. A tenant's only two requests may always go.

Several gateways are as fair as one but for what they have not told each other: `merge` takes in what others have charged. With
merges after at most D tokens of others, the bound is `2 x (the dearest request + D)` over all gateways, and the credit.

A full queue makes room for whoever waits with less: the last request of the longest queue in the lowest band goes (longest queue
drop, Suter et al. 1998). Time is an argument, and nothing here waits.
"""

from __future__ import annotations

import heapq
import itertools
import math

from policies.admission.lanes import (
    CREDIT_TOKENS,
    LEARN,
    MAX_ACCOUNTS,
    OUTPUT_WEIGHT,
    PRIOR_S,
    RESERVED,
    Account,
    Band,
    Lane,
    Refusal,
    Ticket,
)

KEPT_RATIO = 0.2
"""Of the slots, at most, are kept for tenants with credit; half, with what other gateways may have taken meanwhile. In virtual
time (tests/policies/admission/queue_sim.py, 200 s, three seeds) first tokens of 199 tenants at 0.85 of their share take at p99,
beside one at 50 times its own, 0.96 to 1.03 times as long as alone before one gateway, and 0.96 to 1.15 times as long before
four; with 0.1 it is 1.01 to 1.44, with nothing kept 1.3 to 2.2."""
SPENT_RATIO = 7 / 8
"""Of its credit: a tenant that has had so much of it has none. Among equals nearly all then have some."""
FEW = 2
"""A tenant with no more requests than this, waiting and at engines, does not flood."""


def most_kept(slots: int, shy: int) -> int:
    """The most free slots, of `slots`, that are ever kept from anybody, where `shy` of them may be taken elsewhere already."""
    return min(math.ceil(KEPT_RATIO * slots) + shy, slots // 2)


class FairQueue:
    """The queue of one model class at one gateway."""

    def __init__(self, max_waiting: int, credit_tokens: float = CREDIT_TOKENS) -> None:
        self.num_waiting = 0
        self._credit = credit_tokens
        self._max_waiting = max_waiting
        self._lanes: dict[Band, Lane] = {band: Lane(share) for band, share in RESERVED.items()}
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
        own = account.cost
        if ticket.deadline_s < account.latest_s:
            own = sum(one.cost for at_s, _, one in account.waiting if one.is_waiting and at_s <= ticket.deadline_s)
        ticket.predicted_wait_s = self._wait_s(lane, account, own, slots)
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
        self._sent(ticket, lane, account, now_s)

    def next(self, now_s: float, free: float = math.inf, slots: int = 0, shy: int = 0) -> Ticket | None:
        """The request that goes out now, charged, where `free` of `slots` slots are; None where nobody waits, or nobody who may
        have one of the last; `shy` of the free ones may have been taken by other gateways."""
        found = self._next_up(now_s, free, slots, shy) if self.num_waiting else None
        if found is None:
            return None
        band, lane, tenant, account, ticket = found
        heapq.heappop(account.waiting)
        for other, its in self._lanes.items():
            its.owed = its.owed + its.reserved * ticket.cost if its.backlogged else 0.0
            if other == band:
                its.owed = max(its.owed - ticket.cost, 0.0)
        account.rate.went(ticket.cost, now_s)
        lane.rate.went(ticket.cost, now_s)
        self._sent(ticket, lane, account, now_s)
        self._not_waiting(ticket, tenant, lane, account)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """It does not wait any more, and nothing is charged; again changes nothing."""
        if ticket.is_waiting:
            lane = self._lanes[ticket.band]
            self._not_waiting(ticket, ticket.tenant, lane, lane.accounts[ticket.tenant])

    def ended(self, ticket: Ticket, *, uncached_tokens: int, output_tokens: int, now_s: float) -> None:
        """A request that went out is over, and came to this: the charge is put right, and its tenant's next are expected to be
        more like it. One that no engine worked on is charged nothing and teaches nothing."""
        lane = self._lanes[ticket.band]
        lane.num_with_credit -= ticket.had_credit
        account = lane.accounts.get(ticket.tenant)
        if account is None:
            return
        account.num_out -= 1
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
        """How long a request like this one would wait if it came now, last of its tenant's."""
        lane = self._lanes[ticket.band]
        account = self._charged_to(ticket, lane)
        return self._wait_s(lane, account, account.cost - (ticket.cost if ticket.is_waiting else 0.0), slots)

    def counter(self, band: Band, tenant: str) -> float:
        """Tokens over weight that the tenant has had, or was lifted to; 0 for one that is not known."""
        account = self._lanes[band].accounts.get(tenant)
        return 0.0 if account is None else account.counter

    def _charged_to(self, ticket: Ticket, lane: Lane) -> Account:
        account = lane.accounts.get(ticket.tenant)
        if account is None:
            if len(lane.accounts) >= MAX_ACCOUNTS:
                least = lane.level - self._credit
                lane.accounts = {name: one for name, one in lane.accounts.items() if one.num_waiting or one.counter > least}
            account = lane.accounts[ticket.tenant] = Account(counter=lane.level - self._credit)
        account.weight = ticket.weight
        output = min(float(ticket.max_output_tokens), account.output_tokens)
        ticket.uncached_tokens = ticket.prompt_tokens * account.uncached_ratio
        ticket.cost = ticket.uncached_tokens + OUTPUT_WEIGHT * output
        return account

    def _lift(self, lane: Lane, account: Account) -> None:
        if not account.num_waiting:
            account.counter = max(account.counter, lane.level - self._credit)

    @staticmethod
    def _charge(account: Account, tokens: float) -> None:
        account.counter += tokens / account.weight
        account.unsent += tokens

    def _not_waiting(self, ticket: Ticket, tenant: str, lane: Lane, account: Account) -> None:
        ticket.is_waiting = False
        account.num_waiting -= 1
        account.cost -= ticket.cost
        self.num_waiting -= 1
        if not account.num_waiting:
            account.waiting.clear()
            account.cost, account.latest_s = 0.0, -math.inf
            del lane.backlogged[tenant]

    def kept_back(self, band: Band, slots: int, shy: int, now_s: float) -> int:
        """Free slots that a tenant of the band without credit leaves to those of its band and of higher ones who have it."""
        kept = 0.0
        for each, lane in self._lanes.items():
            kept += lane.with_credit_of_late(now_s)
            if each == band:
                break
        return min(int(kept) + shy, most_kept(slots, shy)) if kept >= 1 else 0

    def _next_up(self, now_s: float, free: float, slots: int, shy: int) -> tuple[Band, Lane, str, Account, Ticket] | None:
        """Of the band that is owed the most, if it is owed that much; else of the highest that has somebody who may go."""
        waiting = [band for band, lane in self._lanes.items() if lane.backlogged]
        most = max(waiting, key=lambda one: self._lanes[one].owed)
        for band in (most, *waiting):
            lane = self._lanes[band]
            tenant, account = self._first_of(lane)
            ticket = account.first
            if band == most and band != waiting[0] and lane.owed < ticket.cost:
                continue
            is_bound = account.num_open > FEW and not self._has_credit(lane, account)
            if free > (self.kept_back(band, slots, shy, now_s) if is_bound else 0):
                return band, lane, tenant, account, ticket
        return None

    def _first_of(self, lane: Lane) -> tuple[str, Account]:
        """The one with credit whose request has waited the longest, those with few first; where none has credit, the one that has
        had the least."""
        with_credit = [item for item in lane.backlogged.items() if self._has_credit(lane, item[1])]
        if with_credit:
            return min(with_credit, key=lambda item: (item[1].num_open > FEW, item[1].first.entered_s))
        return min(lane.backlogged.items(), key=lambda item: item[1].counter)

    def _has_credit(self, lane: Lane, account: Account) -> bool:
        return account.counter < self._spent_at(lane)

    def _cost_before(self, lane: Lane, other: Account, account: Account) -> float:
        """Of what waits of `other`, what goes out before one more of `account`, where both have credit."""
        if other.num_open <= FEW:
            return other.cost
        return 0.0 if account.num_open < FEW else min(other.cost, (self._spent_at(lane) - other.counter) * other.weight)

    def _spent_at(self, lane: Lane) -> float:
        return lane.level - self._credit * (1 - SPENT_RATIO)

    def _sent(self, ticket: Ticket, lane: Lane, account: Account, now_s: float) -> None:
        """It goes out, and is charged."""
        ticket.dispatched_s = now_s
        ticket.had_credit = self._has_credit(lane, account)
        if ticket.had_credit:
            lane.sent_with_credit(now_s)
        account.num_out += 1
        self._charge(account, ticket.cost)
        lane.level = max(lane.level, account.counter - ticket.cost / account.weight)

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

    def _wait_s(self, lane: Lane, account: Account, own: float, slots: int) -> float:
        """What goes out before a request that has `own` tokens of its tenant before it, over the rate at which it goes. Before
        the first answers nothing is known, and that is 0."""
        if not self._mean_service_s:
            return 0.0
        lifted = account.counter if account.num_waiting else max(account.counter, lane.level - self._credit)
        level = lifted + own / account.weight
        others = [other for other in lane.backlogged.values() if other is not account]
        if level < self._spent_at(lane):
            before = [self._cost_before(lane, other, account) for other in others if self._has_credit(lane, other)]
        else:
            before = [min(other.cost, max(level - other.counter, 0.0) * other.weight) for other in others]
        higher = itertools.takewhile(lambda its: its is not lane, self._lanes.values())
        share = max(lane.reserved, 0.05) if any(its.backlogged for its in higher) else 1.0
        prior_per_s = share * slots * self._mean_cost / self._mean_service_s
        if own and account.rate.seconds >= PRIOR_S:  # others come and go before it: its own pace says how many
            return own * account.rate.seconds / max(account.rate.tokens, 1e-9)
        return (own + sum(before)) / max(lane.rate.per_s(prior_per_s), 1e-9)
