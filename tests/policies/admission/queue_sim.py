"""The fair queue in virtual time: several gateways before slots that are each held for about as long, and tell each other what
they charged and have out as `serving.gateway.queue_share` does. No machine's speed is in it, so it shows what the policy does."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Sequence

from policies.admission.fair_queue import FairQueue
from policies.admission.lanes import Ticket

SLOTS = 32
HELD_S = 0.66
"""What a request of the drill takes at an engine, and..."""
FIRST_TOKEN_S = 0.07
"""...until its first token."""
NUM_OTHERS, LOAD_RATIO, TIMES_ITS_SHARE, VARIATION = 199, 0.85, 50, 13.0
EVERY_S = 0.1
PATIENCE_S = 10.0
PROMPT_TOKENS, ANSWER_TOKENS = 130, 24


class Simulation:
    """Plays arrivals, each at the next gateway."""

    def __init__(self, num_gateways: int, rng: random.Random) -> None:
        self.waits: list[tuple[str, float]] = []
        self._num, self._rng = num_gateways, rng
        self._queues = [FairQueue(1000) for _ in range(num_gateways)]
        self._out = [0] * num_gateways
        self._told = [0] * num_gateways
        """What each had out when gateways last told each other."""
        self._events: list[tuple[float, int, str, int, Ticket | None]] = []
        self._order = itertools.count()

    def play(self, arrivals: Sequence[tuple[float, str]]) -> None:
        for number, (at_s, tenant) in enumerate(sorted(arrivals)):
            ticket = Ticket(tenant, "standard", 1, PROMPT_TOKENS, ANSWER_TOKENS, at_s + PATIENCE_S, at_s)
            self._at(at_s, "came", number % self._num, ticket)
        self._at(EVERY_S, "tell")
        while len(self._events) > 1:
            now_s, _, kind, gateway, ticket = heapq.heappop(self._events)
            if ticket is None:
                self._tell(now_s)
            elif kind == "came":
                refusal, _ = self._queues[gateway].enter(ticket, self._own(gateway), now_s)
                if refusal is None:
                    self._at(ticket.deadline_s, "expired", gateway, ticket)
            elif kind == "expired":
                self._queues[gateway].leave(ticket)
            else:
                self._out[gateway] -= 1
                self._queues[gateway].ended(ticket, uncached_tokens=PROMPT_TOKENS, output_tokens=ANSWER_TOKENS, now_s=now_s)
            self._pump(gateway, now_s)

    def _at(self, at_s: float, kind: str, gateway: int = 0, ticket: Ticket | None = None) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), kind, gateway, ticket))

    def _own(self, gateway: int) -> int:
        return max(SLOTS - sum(self._told) + self._told[gateway], math.ceil(SLOTS / self._num))

    def _tell(self, now_s: float) -> None:
        self._told = list(self._out)
        charges = [queue.take_charges() for queue in self._queues]
        for here, queue in enumerate(self._queues):
            for there, told in enumerate(charges):
                for (_, tenant), tokens in told.items():
                    if here != there:
                        queue.merge("standard", tenant, tokens)
        for gateway in range(self._num):
            self._pump(gateway, now_s)
        self._at(now_s + EVERY_S, "tell")

    def _pump(self, gateway: int, now_s: float) -> None:
        queue = self._queues[gateway]
        while (free := self._own(gateway) - self._out[gateway]) > 0:
            taken = max(self._out[gateway] - self._told[gateway], 0)
            ticket = queue.next(now_s, free, SLOTS, (self._num - 1) * (1 + taken))
            if ticket is None:
                return
            self._out[gateway] += 1
            self.waits.append((ticket.tenant, now_s - ticket.entered_s))
            self._at(now_s + HELD_S * self._rng.uniform(0.95, 1.05), "ended", gateway, ticket)


def arrivals(rng: random.Random, tenant: str, per_s: float, lasts_s: float, variation: float = 1.0) -> list[tuple[float, str]]:
    """Gaps from a gamma distribution with this coefficient of variation: 1 is Poisson, 13 comes in bursts."""
    shape, at_s, made = 1 / variation**2, 0.0, list[tuple[float, str]]()
    while (at_s := at_s + rng.gammavariate(shape, 1 / (per_s * shape))) < lasts_s:
        made.append((at_s, tenant))
    return made


def waits_of_others(num_gateways: int, *, flood: bool, lasts_s: float, seed: int) -> list[float]:
    """How long the requests of tenants within their share waited, beside one at 50 times its share or alone."""
    rng = random.Random(seed)
    share_per_s = SLOTS / HELD_S / (NUM_OTHERS + 1)
    plan = [one for number in range(NUM_OTHERS) for one in arrivals(rng, f"t{number}", LOAD_RATIO * share_per_s, lasts_s)]
    if flood:
        plan += arrivals(rng, "flood", TIMES_ITS_SHARE * share_per_s, lasts_s, VARIATION)
    simulation = Simulation(num_gateways, rng)
    simulation.play(plan)
    return [wait_s for tenant, wait_s in simulation.waits if tenant != "flood"]


def first_token_p99_s(waits_s: Sequence[float]) -> float:
    """With what the engine takes."""
    return FIRST_TOKEN_S + sorted(waits_s)[int(0.99 * len(waits_s))]
