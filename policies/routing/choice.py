"""Which replica serves a request: the one that needs the least work before its first token, unless it has too much to do.

Two pains pull apart. Round robin spreads load and prefills every system prompt everywhere; pure affinity prefills once and
queues everybody at one replica. So:

1. Nobody gets more than its share: a replica with more than `(1 + SLACK)` of the mean is not a candidate (but a few requests are
   no load). That bound is what keeps the two rules below from overloading anybody.
2. The requests that share the most with a prompt went to its *holders*. Among several holders the prompt's first block that is
   new to all of them decides, by consistent hashing: every gateway sends the turns of one conversation to one replica, though
   none has told another. Nobody holds anything of it: then all are holders of nothing, and the same rule places a cold prompt.
3. That replica is taken unless another would be done much sooner. Work is `(prefill queued there + prefill that this adds) x
   (requests running there + BATCH)`: after LMetric (arXiv:2603.15202), without weights to tune; BATCH because a few running
   requests slow a prefill down hardly at all. Near-ties are broken at random, or all gateways would pick one idle replica.

Loads are our own in-flight requests: exact and immediate, where polled metrics are neither. With several gateways each sees its
own share, which is near enough while the shares are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from policies.routing.prefix_index import BLOCK_TOKENS, Chain, PrefixIndex
from policies.routing.ring import Ring

SLACK = 0.25
NO_LOAD = 16
"""So many requests at a replica are never too many: engines batch several times as many, and a bound near the mean of a quiet
fleet sends prompts away from their cache for nothing."""
BATCH = 8
MUCH_SOONER = 2.0
"""Affinity is given up for a replica that has less than half of the work."""
NEAR_TIE = 1.05
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
    ejected_until_s: float = -math.inf
    """It is passed over until then."""
    started_s: float = -math.inf
    """When it came, or came back."""


@dataclass(frozen=True)
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
    suspects: list[int] = []
    near: list[int] = []
    for n, replica in enumerate(replicas):
        if replica.is_ready and not (failed and n in failed):
            (near if replica.ejected_until_s <= now_s else suspects).append(n)
    if not near and not suspects:
        return Choice(-1, "none_ready")
    is_panic = len(near) < len(suspects)
    if is_panic:
        near += suspects
    total = 0
    loads: dict[int, float] = {}
    warm_since_s = now_s - SLOW_START_S
    for n in near:
        replica = replicas[n]
        num = replica.num_in_flight
        total += num
        if num < max_in_flight:
            loads[n] = num if replica.started_s <= warm_since_s else _slow_load(replica, now_s)
    if not loads:
        return Choice(-1, "all_full", is_panic=is_panic)
    bound = max(NO_LOAD, (1 + SLACK) * (total + 1) / len(near))
    if min(loads.values()) >= bound:  # all are slow starters: none has a share yet
        bound = math.inf

    base = prompt_tokens + BLOCK_TOKENS
    work = {n: (replicas[n].queued_tokens + base) * (load + BATCH) for n, load in loads.items() if load < bound}
    matches = index.match(chain)
    held: dict[int, int] = {}
    for length, holders in matches:
        for n in _bits(holders):
            if n in work:
                held[n] = min(length * BLOCK_TOKENS, prompt_tokens - 1)
                work[n] -= held[n] * (loads[n] + BATCH)
    least = min(work.values())

    chosen = _nearest(work, matches, chain, ring)
    reason: Literal["prefix", "ring", "least_work"] = "prefix" if matches else "ring"
    if chosen < 0 or work[chosen] > MUCH_SOONER * least:
        tied = [n for n, much in work.items() if much <= NEAR_TIE * least]
        chosen, reason = random.choice(tied), "least_work"
    return Choice(chosen, reason, prompt_tokens - held.get(chosen, 0), is_panic)


def _nearest(work: dict[int, float], matches: Sequence[tuple[int, int]], chain: Chain, ring: Ring) -> int:
    """Of the candidates, which are those that `work` names, the one that the prompt belongs to; -1 for a prompt that belongs
    nowhere, being shorter than a block."""
    if not chain:
        return -1
    holding: list[int] = []
    for _, holders in matches:
        holding = [n for n in _bits(holders) if n in work]
        if holding:
            break
    longest = matches[0][0] if matches else 0
    if longest < len(chain):
        return ring.first(chain[longest], holding or work)
    return min(holding, key=work.__getitem__, default=-1)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _slow_load(replica: Replica, now_s: float) -> float:
    """Requests at a replica that is not warmed up, where each counts for several."""
    return replica.num_in_flight / max((now_s - replica.started_s) / SLOW_START_S, _SLOWEST_START)
