"""Prefix caching by vLLM's rules: what is found again, what is evicted, and the events that say so."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import zmq.asyncio

from serving.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, external
from serving.twin.blocks import NONE_HASH, BlockPool, BlockTable, CacheKey, block_hash
from serving.twin.kv_events import EventsConfig
from tests.serving.twin.conftest import Asker, Start, free_port

SIZE = 16
VLLM_NONE_HASH = "066b1e8987e027138e98701c46128929378935f9b6cd1549105ae6b4f0d71198"
VLLM_SALTED_HASH = "23bb70ca91a3697ed579080cc3a4d36b53c7348f3a8a63c7b5b67491d85e237d"


def prompt(num_tokens: int, first: int = 300) -> list[int]:
    return list(range(first, first + num_tokens))


async def cached(twin: Asker, ids: list[int], **fields: object) -> int:
    answer = await twin.complete(ids, 1, **fields)
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (15, 0),  # no block is full
        (16, 0),  # the last token is always computed, and with it its block
        (17, 16),
        (32, 16),
        (100, 96),  # 6 blocks of 16
    ],
)
async def test_a_prompt_asked_again_finds_its_full_blocks(twin: Asker, num_tokens: int, expected: int) -> None:
    assert await cached(twin, prompt(num_tokens)) == 0
    assert await cached(twin, prompt(num_tokens)) == expected


async def test_only_an_unbroken_prefix_is_found(twin: Asker) -> None:
    await cached(twin, prompt(64))
    changed = prompt(64)
    changed[20] = 1
    assert await cached(twin, changed) == 16


async def test_salts_and_adapters_keep_blocks_apart(twin: Asker, adapter: str) -> None:
    twin.twin.load_adapter("acme", adapter)
    await cached(twin, prompt(64))
    assert await cached(twin, prompt(64), cache_salt="a") == 0
    assert await cached(twin, prompt(64), cache_salt="b") == 0
    assert await cached(twin, prompt(64), cache_salt="a") == 48
    assert await cached(twin, prompt(64), model="acme") == 0
    assert await cached(twin, prompt(64), model="acme") == 48


async def test_an_answer_is_found_as_part_of_the_next_question(twin: Asker) -> None:
    first = (await twin.complete(prompt(20), 30, return_token_ids=True))["choices"][0]
    whole = first["prompt_token_ids"] + first["token_ids"]
    assert await cached(twin, [*whole, 7, 7]) == 48  # of 50 tokens the last was never computed; 3 blocks are full


async def test_without_caching_nothing_is_found(start: Start) -> None:
    forgetful = await start(is_caching=False)
    await cached(forgetful, prompt(64))
    assert await cached(forgetful, prompt(64)) == 0


async def test_ground_truth_metrics_and_usage_agree(twin: Asker) -> None:
    for _ in range(3):
        await cached(twin, prompt(40))
    assert [record.cached_tokens for record in twin.records] == [0, 32, 32]
    _, metrics = await twin.get("/metrics")
    assert 'vllm:prefix_cache_queries_total{engine="0",model_name="small"} 120.0' in metrics
    assert 'vllm:prefix_cache_hits_total{engine="0",model_name="small"} 64.0' in metrics


def pool_of(num_blocks: int) -> BlockPool:
    return BlockPool(num_blocks + 1, SIZE, has_events=True)


def fill(pool: BlockPool, ids: list[int]) -> BlockTable:
    """A sequence whose tokens are all computed."""
    table = BlockTable(CacheKey(), SIZE)
    table.extend_hashes(ids)
    pool.adopt(table, pool.find(table, len(ids)))
    assert pool.grow(table, -(-len(ids) // SIZE))
    pool.cache_full(table, ids, len(ids))
    return table


def num_found(pool: BlockPool, ids: list[int]) -> int:
    table = BlockTable(CacheKey(), SIZE)
    table.extend_hashes(ids)
    return len(pool.find(table, len(ids) + 1))


def test_the_longest_unused_goes_first_and_of_a_request_its_last_block() -> None:
    pool = pool_of(4)
    old, new = prompt(32, 100), prompt(32, 500)
    for ids in (old, new):
        pool.free(fill(pool, ids))
    pool.free(fill(pool, prompt(16, 900)))  # takes one block
    assert (num_found(pool, old), num_found(pool, new)) == (1, 2)
    pool.free(fill(pool, prompt(16, 1200)))
    assert (num_found(pool, old), num_found(pool, new)) == (0, 2)


def test_blocks_in_use_are_never_evicted() -> None:
    pool = pool_of(4)
    held = fill(pool, prompt(32, 100))
    other = BlockTable(CacheKey(), SIZE)
    assert not pool.grow(other, 3) and not other.blocks
    assert pool.grow(other, 2)
    assert pool.num_free == 0 and num_found(pool, prompt(32, 100)) == 2
    pool.free(held)
    assert pool.num_free == 2


def test_what_is_stored_and_removed_is_told_with_its_parent() -> None:
    pool = pool_of(2)
    ids = prompt(32)
    pool.free(fill(pool, ids))
    first = block_hash(None, ids[:16], None)
    second = block_hash(first, ids[16:], None)
    pool.free(fill(pool, prompt(16, 900)))
    stored, removed, again = pool.events
    assert isinstance(stored, BlockStored) and stored.block_hashes == [external(first), external(second)]
    assert (stored.parent_block_hash, stored.token_ids, stored.block_size) == (None, ids, SIZE)
    assert removed == BlockRemoved([external(second)], medium="GPU", group_idx=0)
    assert isinstance(again, BlockStored)
    assert pool.clear() and pool.events[-1] == AllBlocksCleared() and pool.num_free == 2


def test_hashes_are_vllms_own() -> None:
    """Written down from vLLM 0.32, Python 3.11: `hash_block_tokens(sha256, None, range(16), (("cache_salt", "s"),))`."""
    assert NONE_HASH.hex() == VLLM_NONE_HASH
    assert block_hash(None, list(range(16)), (("cache_salt", "s"),)).hex() == VLLM_SALTED_HASH


async def test_events_come_by_zmq_and_what_was_missed_is_replayed(start: Start) -> None:
    port, replay_port = free_port(), free_port()
    events = EventsConfig(True, endpoint=f"tcp://*:{port}", replay_endpoint=f"tcp://*:{replay_port}", topic="kv", buffer_steps=3)
    twin = await start(events=events)
    context = zmq.asyncio.Context()
    with context.socket(zmq.SUB) as live, context.socket(zmq.DEALER) as replay:
        live.connect(f"tcp://127.0.0.1:{port}")
        live.subscribe("kv")
        await asyncio.sleep(0.2)  # a subscription takes its time; ZMQ tells nobody when it is there
        for number in range(5):
            await cached(twin, prompt(33, 1000 * number + 300))
        batches = [await asyncio.wait_for(live.recv_multipart(), 5) for _ in range(5)]
        assert [int.from_bytes(number, "big") for _, number, _ in batches] == [0, 1, 2, 3, 4]
        batch = msgspec.msgpack.decode(batches[0][2], type=EventBatch)
        assert batch.data_parallel_rank == 0
        assert [len(event.block_hashes) for event in batch.events if isinstance(event, BlockStored)] == [2]
        replay.connect(f"tcp://127.0.0.1:{replay_port}")
        await replay.send_multipart((b"", (1).to_bytes(8, "big")))
        replayed = [await asyncio.wait_for(replay.recv_multipart(), 5) for _ in range(4)]
        assert [frames[2] for frames in replayed] == [n.to_bytes(8, "big", signed=True) for n in (2, 3, 4, -1)]
        assert replayed[0][3] == batches[2][2]
    context.term()
