"""A fleet of twin engines and the gateways before it, in virtual time and without sockets.

Engines are the twins' own (`serving.twin.engine`: vLLM's scheduling and caching, the A100's step law); gateways are the policies
(`policies.routing`), each with an index and counts of its own. Between them is nothing but the delay of the engines' KV events.
The event loop's clock jumps to the next timer, so an hour of traffic takes as long as its Python does, and a run is exact: the
same seed gives the same figures on any machine.

Prompts are blocks that are equal where prefixes are, so an engine hashes nothing; the index sees each as several of its own. What
an engine has generated is not in the next turn's blocks: no policy nor the oracle finds an answer again.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from time import thread_time
from typing import Any, Literal

from routing_traffic import Ask

from policies.capacity.step_law import PROFILES, Profile
from policies.routing.choice import Replica, choose, fade
from policies.routing.prefix_index import BLOCK_TOKENS, MAX_ENTRIES, Chain, PrefixIndex
from policies.routing.ring import Ring
from serving.kv_events import BlockRemoved, BlockStored, Event, external
from serving.twin import vocabulary
from serving.twin.blocks import BlockPool, BlockTable, CacheKey
from serving.twin.engine import Engine, Limits
from serving.twin.faults import Switches
from serving.twin.generation import Generation
from serving.twin.stats import Stats
from serving.twin.text import TextSource
from serving.twin.truth import Record

Policy = Literal["flotilla", "round_robin", "least_load"]
EVENT_DELAY_S = 0.03
"""From the end of an engine's step until a gateway knows: a look every 20 ms, and the way."""
FADE_EVERY_S = 0.25
_MAX_BLOCK = 1 << 40
"""Hashes above are of blocks that an engine generated."""


@dataclass(frozen=True)
class Fleet:
    """What is simulated."""

    num_replicas: int
    policy: Policy
    num_gateways: int = 1
    has_events: bool = True
    is_caching: bool = True
    profile: str = "a100-large"
    block_tokens: int = 512
    seed: int = 1

    @property
    def num_blocks(self) -> int:
        """Of one engine."""
        return PROFILES[self.profile].num_blocks * 16 // self.block_tokens


@dataclass(frozen=True)
class FirstToken:
    """What a gateway knew of a replica when it asked it, and when the first token came."""

    sent_s: float
    came_s: float
    replica: str
    uncached_tokens: int
    queued_tokens: int
    num_running: int


@dataclass
class Outcome:
    """What came of a run."""

    cached_tokens: int = 0
    prompt_tokens: int = 0
    ttft_s: list[float] = field(default_factory=list)
    decision_s: list[float] = field(default_factory=list)
    """CPU time of each."""
    num_sent: list[int] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    """Of each engine, in steps."""
    in_flight_s: list[float] = field(default_factory=list)
    """Of each engine: the sum over its requests of how long each was there, so its mean of requests in flight times the run."""
    reasons: Counter[str] = field(default_factory=Counter)
    first_tokens: list[FirstToken] = field(default_factory=list)
    """In the order in which they came."""


class _Instant(selectors.SelectSelector):
    """Nothing to wait for but time."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now_s += timeout or 0.0
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer."""

    def __init__(self) -> None:
        self._instant = _Instant()
        super().__init__(self._instant)

    def time(self) -> float:
        return self._instant.now_s


class _CountedLaw:
    """A step law that adds up how long its engine was busy."""

    def __init__(self, profile: Profile) -> None:
        self._law = profile.law
        self.busy_s = 0.0

    def step_s(self, *step: int) -> float:
        lasts_s = self._law.step_s(*step)
        self.busy_s += lasts_s
        return lasts_s


class Gateway:
    """What one gateway knows, and how it chooses."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.policy = fleet.policy
        self.index = PrefixIndex(MAX_ENTRIES // fleet.num_replicas)
        self.replicas = [Replica() for _ in range(fleet.num_replicas)]
        self.ring = Ring([f"engine-{number}" for number in range(fleet.num_replicas)])
        self.random = Random(seed)
        self._turn = seed

    def place(self, prompt_tokens: int, chain: Chain, now_s: float, outcome: Outcome) -> tuple[int, int]:
        """A replica, and the tokens that it will have to compute as far as is known."""
        if self.policy == "round_robin":
            self._turn += 1
            return self._turn % len(self.replicas), prompt_tokens
        if self.policy == "least_load":
            least = min(replica.num_in_flight for replica in self.replicas)
            idle = [n for n, replica in enumerate(self.replicas) if replica.num_in_flight == least]
            return self.random.choice(idle), prompt_tokens
        number, uncached = self.choose(prompt_tokens, chain, now_s, outcome)
        self.index.add(1 << number, chain)
        return number, uncached

    def choose(self, prompt_tokens: int, chain: Chain, now_s: float, outcome: Outcome) -> tuple[int, int]:
        """As `place` by this gateway's policy; nothing is remembered but how long it took."""
        began_s = thread_time()
        choice = choose(
            self.replicas,
            self.index,
            self.ring,
            prompt_tokens=prompt_tokens,
            chain=chain,
            failed=(),
            max_in_flight=256,
            now_s=now_s,
            random=self.random,
        )
        outcome.decision_s.append(thread_time() - began_s)
        outcome.reasons[choice.reason] += 1
        return choice.index, choice.uncached_tokens

    def hear(self, replica: int, events: Sequence[Event], keys: Callable[[int], tuple[int, ...]]) -> None:
        """An engine's events, its blocks already those of the index."""
        for event in events:
            if isinstance(event, BlockStored | BlockRemoved):
                known = [value for value in map(external, event.block_hashes) if value < _MAX_BLOCK]
                blocks = [key for value in known for key in keys(value)]
                if isinstance(event, BlockRemoved):
                    self.index.remove(1 << replica, blocks)
                else:
                    self.replicas[replica].foreign_tokens += self.index.add(1 << replica, blocks) * BLOCK_TOKENS


def simulate(asks: Sequence[Ask], fleet: Fleet) -> Outcome:
    """Serve `asks`."""
    loop = _VirtualLoop()
    try:
        return loop.run_until_complete(_Run(fleet, loop).serve(asks))
    finally:
        loop.close()


class _Run:
    def __init__(self, fleet: Fleet, loop: asyncio.AbstractEventLoop) -> None:
        self.fleet, self.loop = fleet, loop
        self.outcome = Outcome(num_sent=[0] * fleet.num_replicas, in_flight_s=[0.0] * fleet.num_replicas)
        self.gateways = [Gateway(fleet, fleet.seed + number) for number in range(fleet.num_gateways)]
        self.num_open = 0
        self.is_idle = asyncio.Event()
        self.text = TextSource(vocabulary.load(None), fleet.seed, 0)
        self.laws: list[_CountedLaw] = []
        self._keys: dict[int, tuple[int, ...]] = {}

    def keys(self, block: int) -> tuple[int, ...]:
        """The index's blocks in one of the traffic's."""
        if block not in self._keys:
            num = self.fleet.block_tokens // BLOCK_TOKENS
            spread = Random(block)
            self._keys[block] = tuple(spread.getrandbits(64) for _ in range(num))
        return self._keys[block]

    def engine(self, number: int) -> Engine:
        fleet, profile = self.fleet, PROFILES[self.fleet.profile]
        law = _CountedLaw(profile)
        self.laws.append(law)
        limits = Limits(
            max_model_len=1 << 18,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            max_loras=0,
            max_lora_rank=0,
            law=law,  # type: ignore[arg-type]
            lora_load_s=0,
            speed=1,
        )
        pool = BlockPool(fleet.num_blocks, fleet.block_tokens, is_caching=fleet.is_caching, has_events=fleet.has_events)
        switches = Switches()
        stats = Stats(limits.max_model_len)
        return Engine(limits, pool, self.text, stats, lambda: switches, lambda events: self.publish(number, events))

    def publish(self, number: int, events: Sequence[Event]) -> None:
        if self.fleet.policy == "flotilla":
            self.loop.call_later(EVENT_DELAY_S, self.tell, number, events)

    def tell(self, number: int, events: Sequence[Event]) -> None:
        for gateway in self.gateways:
            gateway.hear(number, events, self.keys)

    def fade(self) -> None:
        for gateway in self.gateways:
            fade(gateway.replicas, FADE_EVERY_S)
        self.loop.call_later(FADE_EVERY_S, self.fade)

    async def serve(self, asks: Sequence[Ask]) -> Outcome:
        engines = [self.engine(number) for number in range(self.fleet.num_replicas)]
        chance, began_s = Random(self.fleet.seed), self.loop.time()
        self.fade()
        for ask in asks:
            await asyncio.sleep(max(0.0, began_s + ask.at_s - self.loop.time()))
            gateway = chance.choice(self.gateways)
            chain = tuple(key for block in ask.blocks for key in self.keys(block))
            number, uncached = gateway.place(ask.prompt_tokens, chain, self.loop.time(), self.outcome)
            self.outcome.num_sent[number] += 1
            self.send(ask, engines[number], gateway.replicas[number], uncached, number)
        await self.is_idle.wait()
        self.outcome.busy_s = [law.busy_s for law in self.laws]
        return self.outcome

    def send(self, ask: Ask, engine: Engine, replica: Replica, uncached: int, number: int) -> None:
        name = f"engine-{number}"
        queued_tokens, num_running = replica.queued_tokens, replica.num_in_flight
        replica.num_in_flight += 1
        replica.num_recent += 1
        replica.queued_tokens += uncached
        self.num_open += 1
        self.is_idle.clear()
        arrived_s, outcome = self.loop.time(), self.outcome

        def deliver(generation: Generation, token_id: int, finish: str | None) -> bool:
            if generation.num_output == 1:
                replica.queued_tokens -= uncached
                came_s = self.loop.time()
                outcome.ttft_s.append(came_s - arrived_s)
                outcome.first_tokens.append(FirstToken(arrived_s, came_s, name, uncached, queued_tokens, num_running))
                outcome.cached_tokens += generation.num_cached
                outcome.prompt_tokens += generation.num_prompt
            if finish:
                replica.num_in_flight -= 1
                outcome.in_flight_s[number] += self.loop.time() - arrived_s
                self.num_open -= 1
                if not self.num_open:
                    self.is_idle.set()
            return False

        table = BlockTable(CacheKey(), self.fleet.block_tokens)
        table.hashes = [block.to_bytes(32, "big") for block in ask.blocks]
        engine.submit(
            [
                Generation(
                    Record(0, "", "", "", arrived_s, prompt_tokens=ask.prompt_tokens),
                    0,
                    [7] * ask.prompt_tokens,
                    table=table,
                    num_choices=1,
                    max_tokens=max(ask.output_tokens, 1),
                    min_tokens=0,
                    may_end=False,
                    choice_seed=None,
                    text=self.text,
                    fault=None,
                    form=None,
                    deliver=deliver,
                )
            ]
        )


def oracle(asks: Sequence[Ask], fleet: Fleet) -> int:
    """Cached tokens of one cache as large as all of the fleet's together, in which each prompt is there before the next comes."""
    kept: OrderedDict[int, None] = OrderedDict()
    cached = 0
    for ask in asks:
        for block in ask.blocks[: (ask.prompt_tokens - 1) // fleet.block_tokens]:
            if block not in kept:
                break
            cached += fleet.block_tokens
        for block in reversed(ask.blocks):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > fleet.num_blocks * fleet.num_replicas:
            kept.popitem(last=False)
    return cached
