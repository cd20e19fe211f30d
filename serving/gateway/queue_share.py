"""What gateways tell each other of their queues, through the region's cache and off every request's path.

Each gateway appends what it has charged and what it has at engines to one stream, `EVERY_S` apart, and reads what others did. So
over all gateways fairness lags by what is charged in `EVERY_S` and the cache's answer (`policies.admission.fair_queue` states the
bound), and slots likewise. Without the cache each is fair by itself, as if it were alone, and what it charged meanwhile is told
when the cache is back; an append whose answer is lost may be told twice.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from policies.admission.lanes import Band
from serving.gateway.queue import ClassQueue

log = structlog.get_logger()

EVERY_S = 0.1
SILENT_S = 2.0
"""A gateway that has said nothing for so long has nothing at engines."""
TIMEOUT_S = 0.5
RETRY_S = 1.0
STREAM = "flotilla:queues"
_MAX_ENTRIES = 2000


class Said(msgspec.Struct, array_like=True):
    """What a gateway says of one class."""

    name: str
    out: int
    charges: list[tuple[Band, str, float]]
    waiting: int = 0


class Word(msgspec.Struct, array_like=True):
    """What a gateway says."""

    gateway: str
    classes: list[Said]


class QueueShare:
    """Runs beside a gateway's requests."""

    def __init__(self, cache_url: str, gateway: str, queues: Mapping[str, ClassQueue]) -> None:
        self._queues = queues
        self._gateway = f"{gateway}.{os.urandom(4).hex()}"
        """Of this process: one that starts anew is another, and takes no word of its last life for its own."""
        self._redis: Any = Redis.from_url(
            cache_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, protocol=2, retry=Retry(NoBackoff(), 0)
        )
        self._seen = ""
        self._unsent: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in queues}
        self._others: dict[str, tuple[float, dict[str, Said]]] = {}
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Word)

    async def run(self) -> None:
        """Tell and listen until cancelled."""
        while True:
            try:
                await self.exchange()
                await asyncio.sleep(EVERY_S)
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("queues_not_shared", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_S)
                self._sum_up()
            for queue in self._queues.values():
                queue.pump()

    async def exchange(self) -> None:
        """Once.

        Raises:
            RedisError, OSError, TimeoutError: the cache does not answer; what was to be told is told next time.
        """
        for name, queue in self._queues.items():
            self._unsent[name].update(queue.fair.take_charges())
        word = Word(
            self._gateway,
            [Said(name, queue.num_out, self._charges(name), queue.fair.num_waiting) for name, queue in self._queues.items()],
        )
        pipe = self._redis.pipeline(transaction=False)
        pipe.xadd(STREAM, {"w": self._encoder.encode(word)}, maxlen=_MAX_ENTRIES)
        if self._seen:
            pipe.xread({STREAM: self._seen}, count=_MAX_ENTRIES)
        own, *read = await pipe.execute()
        for told in self._unsent.values():
            told.clear()
        self._seen = self._seen or own
        for _, entries in (read[0] or ()) if read else ():
            for entry, fields in entries:
                self._seen = entry
                self._heard(self._decoder.decode(fields[b"w"]))
        self._sum_up()

    async def aclose(self) -> None:
        """Close the connection to the cache."""
        with suppress(RedisError, OSError, TimeoutError):
            await self._redis.aclose()

    def _heard(self, word: Word) -> None:
        if word.gateway == self._gateway:
            return
        self._others[word.gateway] = asyncio.get_running_loop().time(), {said.name: said for said in word.classes}
        for said in word.classes:
            queue = self._queues.get(said.name)
            for band, tenant, tokens in said.charges if queue is not None else ():
                queue.fair.merge(band, tenant, tokens)  # type: ignore[union-attr]

    def _sum_up(self) -> None:
        """Forget who has been silent, and tell queues the sum of what the others last said: it is not summed for each request."""
        since_s = asyncio.get_running_loop().time() - SILENT_S
        self._others = {gateway: word for gateway, word in self._others.items() if word[0] >= since_s}
        for name, queue in self._queues.items():
            said = [classes[name] for _, classes in self._others.values() if name in classes]
            queue.hear(len(self._others), sum(one.out for one in said), sum(one.waiting for one in said))

    def _charges(self, name: str) -> list[tuple[Band, str, float]]:
        return [(band, tenant, left) for (band, tenant), left in self._unsent[name].items()]  # type: ignore[misc]
