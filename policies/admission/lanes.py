"""What a fair queue keeps: requests and their tenants, in bands."""

from __future__ import annotations

import heapq
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
MOST_S = 5.0
"""How fast it is forgotten how many requests of tenants with credit were out at once (e-fold)."""
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
    had_credit: bool = False
    """It went out while its tenant had credit."""

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
class Rate:
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
class Account:
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
    rate: Rate = field(default_factory=Rate)
    unsent: float = 0.0
    num_out: int = 0
    """Requests that went out and have not ended."""
    """Charged and not told to other gateways yet."""

    @property
    def num_open(self) -> int:
        """Requests that wait or are out."""
        return self.num_waiting + self.num_out

    @property
    def first(self) -> Ticket:
        """The request that goes out first, of a tenant that waits."""
        while not self.waiting[0][2].is_waiting:
            heapq.heappop(self.waiting)
        return self.waiting[0][2]


@dataclass(slots=True)
class Lane:
    """A band."""

    reserved: float
    accounts: dict[str, Account] = field(default_factory=dict)
    backlogged: dict[str, Account] = field(default_factory=dict)
    level: float = 0.0
    """The highest counter at which anybody was served. No tenant that waits is further below than the credit."""
    owed: float = 0.0
    num_with_credit: int = 0
    """Requests that went out while their tenants had credit, and have not ended."""
    most_with_credit: float = 0.0
    """The most of them there were at once, as it was at `most_at_s`; from then on it is forgotten."""
    most_at_s: float = 0.0
    rate: Rate = field(default_factory=Rate)

    def with_credit_of_late(self, now_s: float) -> float:
        """The most requests of tenants with credit that were out at once."""
        return self.most_with_credit * math.exp(-max(now_s - self.most_at_s, 0.0) / MOST_S)

    def sent_with_credit(self, now_s: float) -> None:
        """One more of them goes out."""
        self.num_with_credit += 1
        self.most_with_credit = max(self.with_credit_of_late(now_s), float(self.num_with_credit))
        self.most_at_s = now_s
