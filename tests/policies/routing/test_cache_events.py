"""An engine's events become the keys that a gateway makes of the same prompt, and leave the index as the engine's blocks go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.routing.cache_events import EngineCache
from policies.routing.prefix_index import BLOCK_TOKENS, PrefixIndex, chain_of
from serving.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from serving.twin.blocks import BlockPool, BlockTable, CacheKey

SMALL = 16


class Engine:
    """A twin's cache, and what a gateway makes of its events."""

    def __init__(self, num_blocks: int, block_tokens: int = SMALL) -> None:
        self.pool = BlockPool(num_blocks, block_tokens, has_events=True)
        self.index = PrefixIndex()
        self.cache = EngineCache(self.index, 0b100)
        self.num_new = 0

    def compute(self, ids: list[int], key: CacheKey, chunk: int = 1 << 20) -> None:
        """A request whose prompt is computed `chunk` tokens at a time, and which then ends."""
        table = BlockTable(key, self.pool.block_tokens)
        table.extend_hashes(ids)
        hits = self.pool.find(table, len(ids))
        self.pool.adopt(table, hits)
        done = len(hits) * self.pool.block_tokens
        while done < len(ids):
            done = min(len(ids), done + chunk)
            assert self.pool.grow(table, -(-done // self.pool.block_tokens))
            self.pool.cache_full(table, ids, done)
        self.pool.free(table)
        self.hear()

    def hear(self) -> None:
        for event in self.pool.events:
            self.num_new += tell(self.cache, event)
        self.pool.events = []

    def held(self, ids: list[int], key: CacheKey) -> int:
        """Blocks of the index that the engine itself would find, the prompt's last token aside."""
        table = BlockTable(key, self.pool.block_tokens)
        table.extend_hashes(ids)
        return len(self.pool.find(table, len(ids) + 1)) * self.pool.block_tokens // BLOCK_TOKENS

    def believed(self, ids: list[int], salt: str = "", adapter: str = "") -> int:
        found = self.index.match(chain_of(ids, adapter=adapter, salt=salt))
        return found[0][0] if found else 0


def tell(cache: EngineCache, event: Event) -> int:
    if isinstance(event, BlockStored):
        salt = (event.extra_keys or [None])[0] or ("",)
        return cache.stored(
            event.block_hashes,
            event.parent_block_hash,
            event.token_ids,
            event.block_size,
            adapter=event.lora_name or "",
            salt=salt[-1],
        )
    if isinstance(event, BlockRemoved):
        cache.removed(event.block_hashes)
    else:
        assert isinstance(event, AllBlocksCleared)
        cache.cleared()
    return 0


PROMPTS = st.lists(st.tuples(st.text("ab", min_size=1, max_size=24), st.sampled_from(["s", "t"])), min_size=1, max_size=30)


@settings(deadline=None)
@given(prompts=PROMPTS, num_blocks=st.integers(30, 80), chunk=st.sampled_from([16, 48, 80, 1000]))
def test_the_index_says_what_the_engine_would_find(prompts: list[tuple[str, str]], num_blocks: int, chunk: int) -> None:
    """Prompts that part in the middle of a block of the index, chunks that end there, evictions: after each request, for each
    prompt so far."""
    engine = Engine(num_blocks)
    for letters, salt in prompts:
        ids = [ord(letter) for letter in letters for _ in range(SMALL)]
        engine.compute(ids, CacheKey(salt), chunk)
        for others, other_salt in prompts:
            other = [ord(letter) for letter in others for _ in range(SMALL)]
            assert engine.believed(other, other_salt) == engine.held(other, CacheKey(other_salt))


@pytest.mark.parametrize("block_tokens", [8, 16, 32, 64])
def test_blocks_of_every_size_that_divides_the_indexs_are_understood(block_tokens: int) -> None:
    engine, ids = Engine(500, block_tokens), list(range(10 * BLOCK_TOKENS + 5))
    engine.compute(ids, CacheKey("s"), 3 * block_tokens)
    assert engine.believed(ids, "s") == 10
    assert engine.num_new == 10


def test_blocks_of_another_size_are_left_alone() -> None:
    engine, ids = Engine(100, 48), list(range(960))
    engine.compute(ids, CacheKey("s"))
    assert engine.believed(ids, "s") == 0


def test_adapters_and_salts_are_those_of_the_prompt() -> None:
    engine, ids = Engine(500), list(range(4 * BLOCK_TOKENS))
    engine.compute(ids, CacheKey("s", ("lora", "/lora", 1)))
    believed = {(salt, adapter): engine.believed(ids, salt, adapter) for salt in ("", "s") for adapter in ("", "lora")}
    assert believed == {("s", "lora"): 4, ("", "lora"): 0, ("s", ""): 0, ("", ""): 0}


def test_a_cache_that_is_cleared_holds_nothing_and_fills_again() -> None:
    engine, ids = Engine(500), list(range(4 * BLOCK_TOKENS))
    engine.compute(ids, CacheKey("s"))
    assert engine.pool.clear()
    engine.hear()
    assert (engine.believed(ids, "s"), len(engine.index)) == (0, 0)
    engine.compute(ids, CacheKey("s"))
    assert engine.believed(ids, "s") == 4


def test_blocks_behind_one_that_is_not_known_are_not_learnt() -> None:
    """A gateway that joins late, and finds the replay's beginning gone."""
    index = PrefixIndex()
    cache = EngineCache(index, 1)
    assert cache.stored([5], 4, list(range(64)), 64) == 0
    assert len(index) == 0


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_more_blocks_than_there_is_memory_for_lose_hits_and_nothing_else(seed: int) -> None:
    engine = Engine(40_000)
    engine.cache = EngineCache(engine.index, 0b100, num_engines=1024)  # 4,096 places
    prompts = [[seed * number % 50_000 + n for n in range(20 * BLOCK_TOKENS)] for number in range(1, 80)]
    for ids in prompts:
        engine.compute(ids, CacheKey("s"))
    assert all(engine.believed(ids, "s") <= engine.held(ids, CacheKey("s")) for ids in prompts)
    assert engine.believed(prompts[-1], "s") > 0
