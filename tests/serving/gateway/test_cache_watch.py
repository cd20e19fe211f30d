"""What a gateway knows of an engine's cache, over real sockets: joining late, gaps, restarts, nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import zmq
from gateway_support import make_settings

from policies.routing.cache_events import EngineCache
from policies.routing.prefix_index import BLOCK_TOKENS, PrefixIndex, chain_of
from serving.gateway.cache_watch import REPLAY_S, Follower, watch_caches
from serving.gateway.discovery import CacheEvents, Endpoint, endpoint
from serving.gateway.metrics import Metrics
from serving.gateway.route import Pool
from serving.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from serving.twin.kv_events import EventsConfig, Publisher

HOST = "127.0.0.1"


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def prompt(letter: str, num_blocks: int = 3) -> list[int]:
    return [ord(letter)] * (num_blocks * BLOCK_TOKENS)


def stored(letter: str, **changes: Any) -> BlockStored:
    """A prompt of one letter in blocks of the index's size; its hashes are 1000 times the letter, and on."""
    ids = prompt(letter)
    hashes: list[int | bytes] = [1000 * ord(letter) + number for number in range(3)]
    values: dict[str, Any] = {
        "block_hashes": hashes,
        "parent_block_hash": None,
        "token_ids": ids,
        "block_size": BLOCK_TOKENS,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [("salt",), None, None],
    }
    return BlockStored(**(values | changes))


class Engine:
    """An engine that publishes, and may lose what it publishes on the way."""

    def __init__(self, *, replays: bool = True, buffer_steps: int = 100) -> None:
        self.ports = free_port(), free_port()
        self.config = EventsConfig(
            True,
            endpoint=f"tcp://*:{self.ports[0]}",
            replay_endpoint=f"tcp://*:{self.ports[1]}" if replays else None,
            buffer_steps=buffer_steps,
        )
        self.publisher = Publisher(self.config, HOST)
        self.source = CacheEvents(f"tcp://{HOST}:{self.ports[0]}", f"tcp://{HOST}:{self.ports[1]}" if replays else None)

    def publish(self, *events: Event, is_lost: bool = False) -> None:
        if is_lost:
            real = self.publisher._publish
            self.publisher._publish = zmq.Context.instance().socket(zmq.PUB)  # nobody listens there
            self.publisher.publish(list(events))
            self.publisher._publish.close()
            self.publisher._publish = real
        else:
            self.publisher.publish(list(events))

    async def restart(self) -> None:
        await self.publisher.close()
        for _ in range(100):
            try:
                self.publisher = Publisher(self.config, HOST)
                return
            except zmq.ZMQError as error:  # ZeroMQ gives the old port back a little later, in a thread of its own
                if error.errno != zmq.EADDRINUSE:
                    raise
            await asyncio.sleep(0.02)
        raise AssertionError("its port stays taken")


class Gateway:
    """What follows it."""

    def __init__(self, engine: Engine) -> None:
        self.index = PrefixIndex()
        self.cache = EngineCache(self.index, 1)
        self.prefilled: list[int] = []
        self.now_s = 0.0
        self.follower = Follower(zmq.Context.instance(), engine.source, self.cache, self.prefilled.append, 0.0)

    def knows(self, letter: str, salt: str = "salt") -> int:
        found = self.index.match(chain_of(prompt(letter), adapter="", salt=salt))
        return found[0][0] if found else 0

    async def until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(500):
            self.follower.look(self.now_s)
            if is_so():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not come about")

    async def joined(self) -> None:
        """The replay is over, and what is published from now on arrives."""
        await self.until(lambda: not self.follower.is_catching_up)
        await asyncio.sleep(0.2)


@pytest.fixture
async def closing() -> AsyncIterator[list[Any]]:
    opened: list[Any] = []
    yield opened
    for one in opened:
        if isinstance(one, Gateway):
            one.follower.close()
        else:
            await one.publisher.close()


def both(closing: list[Any], **how: Any) -> tuple[Engine, Gateway]:
    engine = Engine(**how)
    gateway = Gateway(engine)
    closing += [engine, gateway]
    return engine, gateway


async def test_a_gateway_that_starts_late_learns_what_is_there_and_goes_on_from_there(closing: list[Any]) -> None:
    engine = Engine()
    for letter in "abc":
        engine.publish(stored(letter))
    engine.publish(BlockRemoved([1000 * ord("b") + 2], "GPU"))
    gateway = Gateway(engine)
    closing += [engine, gateway]
    await gateway.joined()
    assert [gateway.knows(letter) for letter in "abcd"] == [3, 2, 3, 0]
    assert gateway.prefilled == [], "that was long ago"
    engine.publish(stored("d"))
    await gateway.until(lambda: gateway.knows("d") == 3)
    assert gateway.prefilled == [3 * BLOCK_TOKENS]


async def test_what_was_lost_on_the_way_is_asked_for_again(closing: list[Any]) -> None:
    engine, gateway = both(closing)
    await gateway.joined()
    engine.publish(stored("a"))
    engine.publish(BlockRemoved([1000 * ord("a") + 2], "GPU"), is_lost=True)
    engine.publish(stored("b"), is_lost=True)
    engine.publish(stored("c"))
    await gateway.until(lambda: gateway.knows("c") == 3)
    assert [gateway.knows(letter) for letter in "ab"] == [2, 3]


@pytest.mark.parametrize("how", [{"replays": False}, {"buffer_steps": 1}], ids=["no replay", "too far back"])
async def test_what_cannot_be_had_again_makes_all_of_this_engine_unknown(closing: list[Any], how: dict[str, Any]) -> None:
    """What was lost may have been evictions."""
    engine, gateway = both(closing, **how)
    await gateway.joined()
    engine.publish(stored("a"))
    await gateway.until(lambda: gateway.knows("a") == 3)
    engine.publish(stored("b"), is_lost=True)
    engine.publish(stored("c"))
    await gateway.until(lambda: gateway.knows("c") == 3)
    assert [gateway.knows(letter) for letter in "ab"] == [0, 0]


async def test_a_replay_that_does_not_come_is_not_waited_for(closing: list[Any]) -> None:
    engine = Engine(replays=False)
    engine.source = CacheEvents(engine.source.publishes, f"tcp://{HOST}:{free_port()}")
    gateway = Gateway(engine)
    closing += [engine, gateway]
    await asyncio.sleep(0.2)
    engine.publish(stored("a"))
    gateway.follower.look(REPLAY_S)
    assert gateway.follower.is_catching_up
    gateway.now_s = REPLAY_S + 0.1
    await gateway.until(lambda: gateway.knows("a") == 3)


async def test_an_engine_that_starts_anew_has_an_empty_cache(closing: list[Any]) -> None:
    engine, gateway = both(closing)
    await gateway.joined()
    for letter in "abc":
        engine.publish(stored(letter))
    await gateway.until(lambda: gateway.knows("c") == 3)
    await engine.restart()
    for _ in range(8):  # more than before, so that numbers alone would not tell
        engine.publish(stored("d"))
    await gateway.until(lambda: gateway.knows("d") == 3)
    assert [gateway.knows(letter) for letter in "abc"] == [0, 0, 0]


async def test_a_cache_that_is_cleared_is_empty(closing: list[Any]) -> None:
    engine, gateway = both(closing)
    await gateway.joined()
    engine.publish(stored("a"), AllBlocksCleared(), stored("b"))
    await gateway.until(lambda: gateway.knows("b") == 3)
    assert gateway.knows("a") == 0


OTHERS = [
    ("on the CPU", {"medium": "CPU"}),
    ("another group's", {"group_idx": 1}),
    ("a sliding window's", {"kv_cache_spec_kind": "sliding_window"}),
    ("an image's", {"extra_keys": [(("picture", 0), "salt"), None, None]}),
]


@pytest.mark.parametrize("changes", [row[1] for row in OTHERS], ids=[row[0] for row in OTHERS])
async def test_blocks_that_no_prompt_of_text_finds_are_left_alone(closing: list[Any], changes: dict[str, Any]) -> None:
    engine, gateway = both(closing)
    await gateway.joined()
    engine.publish(stored("a", **changes), stored("b"))
    await gateway.until(lambda: gateway.knows("b") == 3)
    assert gateway.knows("a") == 0


async def test_hashes_may_come_as_bytes(closing: list[Any]) -> None:
    engine, gateway = both(closing)
    await gateway.joined()
    hashes = [number.to_bytes(32, "big") for number in (7, 8, 9)]
    engine.publish(stored("a", block_hashes=hashes), BlockRemoved([hashes[2]], "GPU"))
    await gateway.until(lambda: gateway.knows("a") == 2)


async def test_an_engine_that_talks_nonsense_is_not_listened_to(closing: list[Any]) -> None:
    engine, gateway = both(closing)
    await gateway.joined()
    engine.publish(stored("a"))
    await gateway.until(lambda: gateway.knows("a") == 3)
    engine.publisher._publish.send_multipart((b"", (1).to_bytes(8, "big"), b"\xc1"))
    await gateway.until(lambda: gateway.follower.is_broken)
    assert gateway.knows("a") == 0


async def test_a_pool_follows_ready_engines_and_forgets_those_that_are_not(closing: list[Any]) -> None:
    engine = Engine()
    closing.append(engine)
    engine.publish(stored("a"))
    model = make_settings().models[0]
    pool = Pool(model, Metrics([model.model_class]))
    ports = {"http": 8000, "kv-events": engine.ports[0], "kv-replay": engine.ports[1]}

    def at(name: str, *, is_ready: bool) -> Endpoint:
        return endpoint(name, HOST, ports, 8000, is_ready=is_ready)

    async def knows(num_blocks: int) -> None:
        chain = chain_of(prompt("a"), adapter="", salt="salt")
        for _ in range(300):
            found = pool._index.match(chain)
            if (found[0][0] if found else 0) == num_blocks:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(pool._index.match(chain))

    pool.update((at("one", is_ready=True), Endpoint("plain", "127.0.0.2", 8000, True)))
    watching = asyncio.create_task(watch_caches(pool))
    try:
        await knows(3)
        pool.update((at("one", is_ready=False),))
        await knows(0)
        pool.update((at("one", is_ready=True),))
        await knows(3)
        pool.update(())
        await knows(0)
        pool.update((at("two", is_ready=True),))
        await knows(3)
        await asyncio.sleep(0.3)
        engine.publish(stored("b"))
        for _ in range(100):
            await asyncio.sleep(0.02)
            if (found := pool.engines[0].replica.foreign_tokens) > 0:
                break
        assert 0 < found <= 3 * BLOCK_TOKENS
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
