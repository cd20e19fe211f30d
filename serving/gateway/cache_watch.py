"""Follows what engines say of their caches, so that each gateway knows what every replica holds, whoever sent it there.

An engine's batches are numbered. A follower asks for all that the engine's buffer holds when it begins, and so a gateway that has
just started knows what its predecessor knew; it asks again for what it missed. What cannot be had again may have been evictions:
then all that is known of this engine is forgotten and learnt anew. So it is when the connection breaks or a number goes back:
that is an engine that has started anew.

Sockets are looked at every 20 ms, not waited for: an event loop that wakes for every batch of 64 engines does little else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
import zmq

from policies.routing.cache_events import EngineCache
from policies.routing.prefix_index import BLOCK_TOKENS
from serving.gateway.discovery import CacheEvents
from serving.gateway.route import Engine, Pool
from serving.kv_events import END, AllBlocksCleared, BlockRemoved, Event, EventBatch, external

log = structlog.get_logger()

POLL_S = 0.02
LOOK_S = 0.25
"""How often the list of engines is looked at."""
REPLAY_S = 5.0
"""A replay that is silent for this long does not come any more."""
MAX_BATCHES = 64
"""Of one engine at a look: a replay of thousands must not hold up anybody's token."""
_HWM = 100_000

_decoder = msgspec.msgpack.Decoder(EventBatch)


class Follower:
    """Follows one engine."""

    def __init__(
        self, context: zmq.Context[Any], source: CacheEvents, cache: EngineCache, on_prefill: Callable[[int], None], now_s: float
    ) -> None:
        """`on_prefill` is told how many tokens the engine has just computed of prompts that were not known to be there."""
        self._context, self._source, self._cache, self._on_prefill = context, source, cache, on_prefill
        self.is_broken = False
        """It says what nobody here understands."""
        self._subscribed = context.socket(zmq.SUB)
        self._subscribed.set_hwm(_HWM)
        self._subscribed.linger, self._subscribed.ipv6 = 0, True
        self._subscribed.subscribe(b"")
        self._lost_touch: zmq.Socket[bytes] = self._subscribed.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._subscribed.connect(source.publishes)
        self._replay: zmq.Socket[bytes] | None = None
        self._deadline_s = 0.0
        self._due = 0
        """The number of the next batch."""
        self._latest = -1
        """The last number that came live."""
        self._waiting: tuple[int, bytes] | None = None
        """A live batch that has to wait for a replay."""
        self._ask(now_s)

    def close(self) -> None:
        """Let go of the sockets."""
        self._subscribed.disable_monitor()
        self._subscribed.close()
        self._end_replay()

    def look(self, now_s: float) -> int:
        """Take in what has come, `MAX_BATCHES` at most; how many batches that were."""
        try:
            self._lost_touch.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            pass
        else:
            self._start_over()
            self._ask(now_s)
        try:
            return self._take_replay(now_s) if self._replay is not None else self._take_live(now_s)
        except (msgspec.MsgspecError, ValueError) as error:
            log.warning("cache_events_unreadable", engine=self._source.publishes, error=f"{error!s:.200}")
            self._cache.cleared()
            self.is_broken = True
            return 0

    @property
    def is_catching_up(self) -> bool:
        """What is known is not all yet."""
        return self._replay is not None

    def _take_live(self, now_s: float) -> int:
        for number in range(MAX_BATCHES):
            try:
                _, sequence, payload = self._subscribed.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return number
            at = int.from_bytes(sequence, "big")
            if at <= self._latest:
                self._start_over()
            self._latest = at
            if at > self._due:
                self._waiting = (at, payload)
                self._ask(now_s)
                return number
            if at == self._due:
                self._apply(payload, is_live=True)
                self._due = at + 1
        return MAX_BATCHES

    def _take_replay(self, now_s: float) -> int:
        assert self._replay is not None
        for number in range(MAX_BATCHES):
            try:
                *_, sequence, payload = self._replay.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if now_s > self._deadline_s:
                    self._go_on()
                return number
            self._deadline_s = now_s + REPLAY_S
            if sequence == END:
                self._go_on()
                return number
            at = int.from_bytes(sequence, "big")
            if at >= self._due:
                if at > self._due:
                    self._lost(at)
                self._apply(payload, is_live=False)
                self._due = at + 1
        return MAX_BATCHES

    def _start_over(self) -> None:
        """It may be another engine's life: nothing is known."""
        self._end_replay()
        self._cache.cleared()
        self._due, self._latest, self._waiting = 0, -1, None

    def _ask(self, now_s: float) -> None:
        """Ask for all from the batch that is due on."""
        if self._source.replays is None:
            self._go_on()
            return
        self._replay = self._context.socket(zmq.DEALER)
        self._replay.linger, self._replay.ipv6 = 0, True
        self._replay.set_hwm(_HWM)
        self._replay.connect(self._source.replays)
        self._replay.send_multipart((b"", self._due.to_bytes(8, "big")), zmq.NOBLOCK)
        self._deadline_s = now_s + REPLAY_S

    def _go_on(self) -> None:
        """After a replay, or without one: from what came live."""
        self._end_replay()
        if self._waiting is not None:
            (at, payload), self._waiting = self._waiting, None
            if at > self._due:
                self._lost(at)
            if at >= self._due:
                self._apply(payload, is_live=True)
                self._due = at + 1

    def _lost(self, at: int) -> None:
        """Batches before `at` are gone for good; before the first that was ever seen nothing was known."""
        if self._due:
            log.info("cache_events_lost", engine=self._source.publishes, lost=at - self._due)
            self._cache.cleared()
        self._due = at

    def _end_replay(self) -> None:
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    def _apply(self, payload: bytes, *, is_live: bool) -> None:
        for event in _decoder.decode(payload).events:
            num_new = apply(self._cache, event)
            # One block at a time is an answer being written, or a prompt that costs little.
            if is_live and num_new and len(event.block_hashes) > 1:  # type: ignore[union-attr]
                self._on_prefill(num_new * BLOCK_TOKENS)


def apply(cache: EngineCache, event: Event) -> int:
    """Tell `cache` of an event; how many blocks of the index are new. Blocks of images, of other layers than those of full
    attention, and of other places than the GPU's are not the index's."""
    if isinstance(event, AllBlocksCleared):
        cache.cleared()
        return 0
    if event.medium not in (None, "GPU") or event.group_idx not in (None, 0):
        return 0
    if isinstance(event, BlockRemoved):
        cache.removed(map(external, event.block_hashes))
        return 0
    if event.kv_cache_spec_kind not in (None, "full_attention"):
        return 0
    extra_keys = event.extra_keys or [None]
    first = extra_keys[0] or ()
    salts = first[1:] if event.lora_name else first
    if any(not isinstance(value, str) for keys in extra_keys for value in keys or ()) or len(salts) > 1:
        return 0
    return cache.stored(
        [external(value) for value in event.block_hashes],
        None if event.parent_block_hash is None else external(event.parent_block_hash),
        event.token_ids,
        event.block_size,
        adapter=event.lora_name or "",
        salt=salts[0] if salts else "",
    )


async def watch_caches(pool: Pool) -> None:
    """Follow every ready engine that publishes, until cancelled. One that is not ready any more has lost its cache, or will."""
    loop = asyncio.get_running_loop()
    context: zmq.Context[Any] = zmq.Context.instance()
    followers: dict[Engine, Follower] = {}
    looked_s = loop.time()
    try:
        while True:
            now_s = loop.time()
            _reconcile(pool, context, followers, now_s)
            pool.fade(now_s - looked_s)
            looked_s = now_s
            while followers and loop.time() < now_s + LOOK_S:
                for follower in followers.values():
                    if not follower.is_broken and follower.look(loop.time()) == MAX_BATCHES:
                        await asyncio.sleep(0)
                await asyncio.sleep(POLL_S)
            if not followers:
                await asyncio.sleep(LOOK_S)
    finally:
        for follower in followers.values():
            follower.close()


def _reconcile(pool: Pool, context: zmq.Context[Any], followers: dict[Engine, Follower], now_s: float) -> None:
    """Of one pool, whose `followers` these are."""
    published = {engine: engine.endpoint.cache_events for engine in pool.engines if engine.endpoint.is_ready}
    for engine in [engine for engine in followers if not published.get(engine)]:
        followers.pop(engine).close()
        pool.forget(engine)
    for engine, source in published.items():
        if source is not None and engine not in followers:
            followers[engine] = Follower(context, source, pool.cache_of(engine), engine.prefilled_for_others, now_s)
            log.info("following_cache", engine=engine.endpoint.name)
