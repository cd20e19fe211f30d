"""Publishes a twin's KV cache events over ZMQ, and replays them, as vLLM does (`serving.kv_events` has the schema).

Unlike vLLM's, `tcp://*:PORT` binds the twin's own address only: many twins share a machine, each with an address of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from serving.kv_events import END, Event, EventBatch


class EventsConfig(msgspec.Struct, frozen=True):
    """vLLM's `--kv-events-config`."""

    enable_kv_cache_events: bool = False
    publisher: str = "zmq"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""


class Publisher:
    """Publishes the batches of one twin, and replays them. Needs a running event loop."""

    def __init__(self, config: EventsConfig, host: str) -> None:
        self._topic = config.topic.encode()
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._encoder = msgspec.msgpack.Encoder()
        self._next_sequence = 0
        context: zmq.Context[Any] = zmq.Context.instance()
        self._publish = context.socket(zmq.PUB)
        self._publish.set_hwm(config.hwm)
        self._publish.linger = 0
        if "*" in config.endpoint:
            self._publish.bind(config.endpoint.replace("*", host))
        else:
            self._publish.connect(config.endpoint)
        self._replay: zmq.asyncio.Socket | None = None
        self._replaying: asyncio.Task[None] | None = None
        if config.replay_endpoint:
            self._replay = zmq.asyncio.Context(context).socket(zmq.ROUTER)
            self._replay.linger = 0
            self._replay.bind(config.replay_endpoint.replace("*", host))
            self._replaying = asyncio.get_running_loop().create_task(self._serve_replay(self._replay))

    def publish(self, events: list[Event]) -> None:
        """Send the events of one step."""
        payload = self._encoder.encode(EventBatch(time.time(), events, 0))
        sequence = self._next_sequence
        self._next_sequence += 1
        self._publish.send_multipart((self._topic, sequence.to_bytes(8, "big"), payload))
        self._buffer.append((sequence, payload))

    async def close(self) -> None:
        """Let go of the sockets."""
        if self._replaying:
            self._replaying.cancel()
            await asyncio.wait({self._replaying})
        if self._replay:
            self._replay.close()
        self._publish.close()

    async def _serve_replay(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            if len(frames) != 3:
                continue
            client, _, first = frames
            begin = int.from_bytes(first, "big")
            for sequence, payload in list(self._buffer):
                if sequence >= begin:
                    await socket.send_multipart((client, b"", self._topic, sequence.to_bytes(8, "big"), payload))
            await socket.send_multipart((client, b"", b"", END, b""))
