"""A lean mock of vLLM's streaming endpoint for `bench_gateway.py`: 51 chunks at a fixed pace, and nothing thought about.

It is no twin: it costs so little that the gateway in front of it is what is measured. Chunks have vLLM's shape and length,
running usage included where it is asked for. A request with `"seed":999` gets its first chunk and then silence, for as long as
its client stays: that is an idle open stream.

    python tests/bench/mock_engine.py PORT INTERVAL_MS
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

NUM_CHUNKS = 51
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 5)]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
DOCUMENT = b'{"object":"list","data":[{"id":"small","object":"model","created":0,"owned_by":"vllm"}]}'
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(DOCUMENT), DOCUMENT)


def chunk(number: int, has_usage: bool) -> bytes:
    """One event in its HTTP chunk."""
    usage = (
        b',"usage":{"prompt_tokens":60,"total_tokens":%d,"completion_tokens":%d}' % (60 + number, number) if has_usage else b""
    )
    delta = b'{"role":"assistant","content":""}' if number == 0 else b'{"content":" word"}'
    finish = b'"stop"' if number == NUM_CHUNKS - 1 else b"null"
    event = (
        b'data: {"id":"chatcmpl-2b1a6c9e0f6d4c0f8f6f2f1f","object":"chat.completion.chunk","created":1795390202,"model":"small",'
        b'"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]%b}\n\n' % (delta, finish, usage)
    )
    return b"%x\r\n%b\r\n" % (len(event), event)


def last(has_usage: bool) -> bytes:
    """The totals, the end, and the end of the message."""
    totals = (
        b'data: {"id":"chatcmpl-2b1a6c9e0f6d4c0f8f6f2f1f","object":"chat.completion.chunk","created":1795390202,"model":"small",'
        b'"choices":[],"usage":{"prompt_tokens":60,"total_tokens":110,"completion_tokens":50}}\n\n'
    )
    event = (totals if has_usage else b"") + b"data: [DONE]\n\n"
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)


CHUNKS = {has_usage: [chunk(number, has_usage) for number in range(NUM_CHUNKS)] for has_usage in (True, False)}
LAST = {has_usage: last(has_usage) for has_usage in (True, False)}


class Engine(asyncio.Protocol):
    """One connection."""

    interval_s = 0.01

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.data = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        lower = head.lower()
        place = lower.find(b"content-length:")
        length = int(lower[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(body) < length:
            return
        self.data = b""
        if not head.startswith(b"POST") or b'"stream":true' not in body.replace(b" ", b""):
            self.transport.write(PLAIN)
            return
        has_usage = b"include_usage" in body
        self.chunks = CHUNKS[has_usage]
        self.last = LAST[has_usage]
        self.transport.write(HEAD + self.chunks[0])
        self.number = 1
        if b'"seed":999' not in body.replace(b" ", b""):
            self.timer = asyncio.get_running_loop().call_later(self.interval_s, self.tick)

    def tick(self) -> None:
        if self.number < NUM_CHUNKS:
            self.transport.write(self.chunks[self.number])
            self.number += 1
            self.timer = asyncio.get_running_loop().call_later(self.interval_s, self.tick)
        else:
            self.transport.write(self.last)
            self.timer = None


async def main(port: int, interval_ms: float) -> None:
    Engine.interval_s = interval_ms / 1e3
    server = await asyncio.get_running_loop().create_server(Engine, ADDRESSES, port, backlog=8192)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
