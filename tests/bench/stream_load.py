"""Open-loop load of streamed chats over raw sockets: arrivals do not wait for answers, and every answer is checked.

A client library would cost more than the gateways it measures. Connections are kept and used again, as a busy client does.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Measured:
    """What came of a run. Times in seconds."""

    ttfts: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def ttft_ms(self, fraction: float) -> float:
        ordered = sorted(self.ttfts)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] * 1e3


_END = b"0\r\n\r\n"


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.done: asyncio.Future[float] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes, num_chunks: int) -> asyncio.Future[float]:
        """The time to the first event; set when the answer has ended."""
        loop = asyncio.get_running_loop()
        self.done, self.began_s, self.first_s = loop.create_future(), time.perf_counter(), 0.0
        self.head, self.tail, self.is_done, self.num_events, self.num_chunks = b"", b"", False, 0, num_chunks
        self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        if self.done is None or self.done.done():
            return
        if not self.head.startswith(b"HTTP/1.1 200"):
            self.head += data
            if len(self.head) >= 12 and not self.head.startswith(b"HTTP/1.1 200"):
                self.done.set_exception(RuntimeError(self.head[:200].decode(errors="replace")))
                return
        events = data.count(b"data: {")
        if events and not self.first_s:
            self.first_s = time.perf_counter()  # the loop's own clock counts milliseconds
        self.num_events += events
        if self.num_events == 1 and self.num_chunks == 1:
            self.done.set_result(self.first_s - self.began_s)
            return
        self.tail = (self.tail + data)[-len(_END) :]
        self.is_done = self.is_done or b"data: [DONE]" in data
        if self.is_done and self.tail == _END:
            if self.num_events < self.num_chunks:
                self.done.set_exception(RuntimeError(f"{self.num_events} events of {self.num_chunks}"))
            else:
                self.done.set_result(self.first_s - self.began_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(RuntimeError(f"connection lost: {exc}"))


def request(host: str, key: str, body: bytes) -> bytes:
    """A POST of `body`."""
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n{authorization}content-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


async def run(host: str, port: int, wire: bytes, *, num: int, per_s: float, num_chunks: int, seed: int) -> Measured:
    """`num` requests at Poisson arrivals of `per_s`."""
    loop, rng, measured = asyncio.get_running_loop(), random.Random(seed), Measured()
    free: list[Client] = []

    async def one() -> None:
        try:
            while free and free[-1].transport.is_closing():  # the server has had enough of it
                free.pop()
            if free:
                client = free.pop()
            else:
                _, client = await loop.create_connection(Client, host, port)
            measured.ttfts.append(await asyncio.wait_for(client.ask(wire, num_chunks), 60))
            free.append(client)
        except (OSError, RuntimeError, TimeoutError) as error:
            measured.failures.append(f"{type(error).__name__}: {error}")

    tasks, at_s = [], loop.time()
    for _ in range(num):
        at_s += rng.expovariate(per_s)
        await asyncio.sleep(max(0.0, at_s - loop.time()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    await asyncio.sleep(0.05)
    for client in free:
        client.transport.abort()
    return measured


async def hold(host: str, port: int, wire: bytes, num: int, at_once: int) -> list[Client]:
    """`num` open streams that have had their first event; raises where one fails."""
    loop, clients = asyncio.get_running_loop(), []
    limit = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with limit:
            _, client = await loop.create_connection(Client, host, port)
            await asyncio.wait_for(client.ask(wire, 1), 60)
            clients.append(client)

    await asyncio.gather(*(one() for _ in range(num)))
    return clients
