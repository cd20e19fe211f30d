"""Which replica serves a request: the one that needs the least work before its first token, unless it has too much to do.

Two pains pull apart. Round robin spreads load and prefills every system prompt everywhere; pure affinity prefills once and
queues everybody at one replica. So:

1. Nobody gets more than its share: a replica with more requests than `load_bound` is not a candidate. That keeps the two rules
   below from overloading anybody.
2. The requests that share the most with a prompt went to its *holders*. Among several holders the prompt's first block that is
   new to all of them decides, by consistent hashing: every gateway sends the turns of one conversation to one replica, though
   none has told another. Nobody holds anything of it: then all are holders of nothing, and the same rule places a cold prompt.
   With engines' events all gateways know the same holders, and so agree on that block too.
3. That replica is taken unless another would be done much sooner. Work is `(prefill queued there + prefill that this adds) x
   (requests running there + BATCH)`: after LMetric (arXiv:2603.15202), without weights to tune; BATCH because a few running
   requests slow a prefill down hardly at all. Near-ties are broken at random, or all gateways would pick one idle replica.
4. A replica that got more than its share of requests *of late* has `OVER_SHARE_TOKENS` for each whole share too many added to its
   work. Requests in flight are few and vary by chance, so a bound on them that leaves chance alone lets the holder of a popular
   system prompt have three shares for ever; what was sent over half a minute varies less. As it is a price and not a bound, a new
   conversation leaves for a replica with less to do, and a long one stays with its cache.

Loads are our own: requests in flight and prompts queued, exact and immediate where polled metrics are neither. What other
gateways send shows in the engines' events: blocks that a replica stores and that we did not send there are prefill for somebody
else, and count as queued for a while (`foreign_tokens`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from policies.routing.prefix_index import BLOCK_TOKENS, Chain, PrefixIndex
from policies.routing.ring import Ring

SLACK = 0.25
DEVIATIONS = 2.0
"""Around a mean of m requests a replica has sqrt(m) more or less by chance: two of these are no reason to send a prompt away from
its cache. From a mean of 85 on `SLACK` allows more (0.25 m = 2 sqrt(m) + 1)."""
BATCH = 8
MUCH_SOONER = 4.0
"""Affinity is given up for a replica that has less than a quarter of the work. Simulated on Mooncake over 16 replicas with one
gateway, of the oracle's cached tokens and first tokens' median: 2 gives 91.5 % and 585 ms, 3 gives 94.9 % and 589 ms, 4 gives
95.3 % and 597 ms."""
NEAR_TIE = 1.05
FOREIGN_FADE_S = 2.5
"""How fast what others sent is forgotten (e-fold): about as long as a prompt is computed and waited for."""
SHARE_FADE_S = 30.0
"""How fast a request that was sent stops to count as of late (e-fold): a little longer than until a conversation's next turn."""
SHARE_SLACK = 0.05
"""So much more than the mean, and one request, is nobody's fault."""
OVER_SHARE_TOKENS = 50_000.0
"""Simulated conversations over 64 replicas with one gateway, the beginning of `make bench-routing`'s: without it the busiest gets
3.3 times its share of requests and 95.9 % of the oracle's cached tokens are found (2,500 requests); 50,000 gives 1.23 and 95.3 %,
100,000 gives 1.20 and 93.9 % (2,000). Over 5,400 requests 50,000 gives 1.17 and 97.7 %."""
SLOW_START_S = 10.0
"""A replica that is new or back gets its full share only after this long."""
_SLOWEST_START = 0.1


@dataclass(slots=True)
class Replica:
    """What a gateway knows of one replica; kept up to date, not made for each choice. Times are on the clock of `now_s`."""

    is_ready: bool = True
    num_in_flight: int = 0
    queued_tokens: int = 0
    """Prompt tokens sent there that have to be computed and whose first output token has not come."""
    foreign_tokens: float = 0.0
    """Prompt tokens that were computed there of late for other gateways' requests; fades (`fade`)."""
    num_recent: float = 0.0
    """Requests that this gateway sent there of late; fades (`fade`)."""
    ejected_until_s: float = -math.inf
    """It is passed over until then."""
    started_s: float = -math.inf
    """When it came, or came back."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Index into the replicas, or -1 with the reason why none was chosen."""

    index: int
    reason: Literal["prefix", "ring", "least_work", "none_ready", "all_full"]
    uncached_tokens: int = 0
    """Prompt tokens that the replica will have to compute, as far as is known."""
    is_panic: bool = False
    """So many replicas are ejected that ejection was disregarded."""

    @property
    def is_placed(self) -> bool:
        """A replica was chosen."""
        return self.index >= 0


def choose(
    replicas: Sequence[Replica],
    index: PrefixIndex,
    ring: Ring,
    *,
    prompt_tokens: int,
    chain: Chain,
    failed: Sequence[int],
    max_in_flight: int,
    now_s: float,
    random: Random,
) -> Choice:
    """Place one request; bit n of `index` and place n of `ring` are replica n. `failed` have already failed this very request and
    are not asked again. With no replicas, or none ready, the answer is `none_ready`; with every candidate at `max_in_flight`,
    `all_full`.

    Ejection counts while it leaves at least half of the ready replicas; with more of them suspect, suspicion says nothing
    (Envoy's panic threshold), and all are candidates.
    """
    in_flight = [replica.num_in_flight for replica in replicas]
    warm_since_s = now_s - SLOW_START_S
    special = [
        n
        for n, replica in enumerate(replicas)
        if replica.started_s > warm_since_s or replica.ejected_until_s > now_s or not replica.is_ready
    ]
    recent = [replica.num_recent for replica in replicas]
    loads: Sequence[float] = in_flight
    is_panic = False
    if special or failed:
        loads, is_panic = _loads(replicas, special, failed, now_s)
        in_flight = [num for num, load in zip(in_flight, loads, strict=True) if load < math.inf]
        recent = [num for num, load in zip(recent, loads, strict=True) if load < math.inf]
    if not in_flight:
        return Choice(-1, "none_ready")
    if max(in_flight) >= max_in_flight:
        if min(in_flight) >= max_in_flight:
            return Choice(-1, "all_full", is_panic=is_panic)
        loads = [
            math.inf if replica.num_in_flight >= max_in_flight else load for replica, load in zip(replicas, loads, strict=True)
        ]
    bound = load_bound((sum(in_flight) + 1) / len(in_flight))
    share = (1 + SHARE_SLACK) * sum(recent) / len(recent) + 1
    if min(loads) >= bound:  # all start slowly, and nobody has a share yet
        bound = math.inf

    matches = index.match(chain)
    added = [prompt_tokens + BLOCK_TOKENS] * len(replicas)  # a block more, or one prompt found whole would weigh nothing
    for length, holders in matches:
        uncached = max(prompt_tokens - length * BLOCK_TOKENS, 1)
        for n in _places(holders):
            added[n] = uncached + BLOCK_TOKENS
    work = [
        (replica.queued_tokens + replica.foreign_tokens + tokens) * (load + BATCH) if load < bound else math.inf
        for replica, tokens, load in zip(replicas, added, loads, strict=True)
    ]
    if max(recent) > share:
        for n, replica in enumerate(replicas):
            if replica.num_recent > share:
                work[n] += OVER_SHARE_TOKENS * (replica.num_recent / share - 1) * (loads[n] + BATCH)
    least = min(work)

    chosen = _nearest(work, matches, chain, ring)
    reason: Literal["prefix", "ring", "least_work"] = "prefix" if matches else "ring"
    if chosen < 0 or work[chosen] > MUCH_SOONER * least:
        limit = NEAR_TIE * least
        chosen, reason = random.choice([n for n, much in enumerate(work) if much <= limit]), "least_work"
    return Choice(chosen, reason, added[chosen] - BLOCK_TOKENS, is_panic)


def load_bound(mean: float) -> float:
    """So many requests at a replica are too many, where there are `mean` on average, the one to be placed included.

    0.1 gives 1.7, 1 gives 4, 16 gives 25, 100 gives 125.
    """
    return max((1 + SLACK) * mean, mean + DEVIATIONS * math.sqrt(mean) + 1)


def fade(replicas: Iterable[Replica], elapsed_s: float) -> None:
    """What was sent, by this gateway and by others, lies `elapsed_s` further back."""
    left = math.exp(-elapsed_s / FOREIGN_FADE_S)
    left_of_recent = math.exp(-elapsed_s / SHARE_FADE_S)
    for replica in replicas:
        replica.foreign_tokens *= left
        replica.num_recent *= left_of_recent


def _loads(replicas: Sequence[Replica], special: Sequence[int], failed: Sequence[int], now_s: float) -> tuple[list[float], bool]:
    """Requests at each replica, endless for those that may not be asked, and whether the ejected may be for panic. `special` are
    those that are not ready, ejected, or start slowly."""
    loads: list[float] = [replica.num_in_flight for replica in replicas]
    able = [n for n in special if replicas[n].is_ready and n not in failed]
    ejected = [n for n in able if replicas[n].ejected_until_s > now_s]
    num_able = len(replicas) - len({*failed, *(n for n in special if not replicas[n].is_ready)})
    is_panic = 2 * len(ejected) > num_able
    for n in special:
        loads[n] = _slow_load(replicas[n], now_s) if n in able and (is_panic or n not in ejected) else math.inf
    for n in failed:
        loads[n] = math.inf
    return loads, is_panic


def _nearest(work: Sequence[float], matches: Sequence[tuple[int, int]], chain: Chain, ring: Ring) -> int:
    """Of the candidates, whose `work` has an end, the one that the prompt belongs to; -1 for a prompt that belongs nowhere, being
    shorter than a block."""
    if not chain:
        return -1
    holding: list[int] = []
    for _, holders in matches:
        holding = [n for n in _places(holders) if work[n] < math.inf]
        if holding:
            break
    if len(holding) == 1:
        return holding[0]
    longest = matches[0][0] if matches else 0
    if longest < len(chain):
        return ring.first(chain[longest], set(holding) or {n for n, much in enumerate(work) if much < math.inf})
    return min(holding, key=work.__getitem__, default=-1)


@lru_cache(maxsize=4096)
def _places(mask: int) -> tuple[int, ...]:
    """The replicas of a set, by place. The holders of common prompts are the same again and again."""
    places = []
    while mask:
        lowest = mask & -mask
        places.append(lowest.bit_length() - 1)
        mask ^= lowest
    return tuple(places)


def _slow_load(replica: Replica, now_s: float) -> float:
    """Requests at a replica, where each counts for several until it is warmed up."""
    if replica.started_s <= now_s - SLOW_START_S:
        return replica.num_in_flight
    return replica.num_in_flight / max((now_s - replica.started_s) / SLOW_START_S, _SLOWEST_START)
