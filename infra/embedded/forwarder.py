"""A Service's port on 127.0.0.1: TCP connections spread in turn over its ready pods.

Bytes pass untouched. One side's end of stream is passed on as such (half-close); an abort of either side, or a reset, aborts
the other at once, so that a client's disconnect reaches the gateway as it would without us.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 1.0
Admit = Callable[[bytes], Awaitable[None]]
"""Returns once these bytes may go on; an OSError breaks the connection."""


class Forwarder:
    """Listens on one address and port. `backends` gives the ready pods' (address, port) pairs at any moment."""

    def __init__(self, port: int, backends: Callable[[], Sequence[tuple[str, int]]], host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = port
        self._backends = backends
        self._turn = itertools.count()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and aborts what is still connected."""
        await end(self._server, self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            upstream = await self._connect()
            if upstream is None:
                reset(writer)
                return
            up_reader, up_writer = upstream
            await join(reader, writer, up_reader, up_writer)
        finally:
            self._connections.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the next ready pod, or to one after it; None if no pod takes one."""
        backends = list(self._backends())
        first = next(self._turn)
        for step in range(len(backends)):
            address, port = backends[(first + step) % len(backends)]
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(address, port, limit=CHUNK_BYTES)
            except OSError:  # TimeoutError included: the pod has gone since; the next may be there
                continue
        return None


async def end(server: asyncio.Server | None, connections: Iterable[asyncio.Task[None]]) -> None:
    """Closes `server`, if there is one, and returns once each connection's task has been cancelled and is over."""
    if server is not None:
        server.close()
    tasks = list(connections)  # each leaves its collection as it ends
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up_reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
    outbound: Admit | None = None,
    inbound: Admit | None = None,
) -> None:
    """Passes bytes both ways, those that are let, until both ends have ended, or either has failed."""
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_pass(reader, up_writer, outbound))
            both.create_task(_pass(up_reader, writer, inbound))
        writer.close()
        up_writer.close()
    except* OSError:
        pass  # one side was reset: the task group has ended the other direction, and both are aborted below
    finally:
        for side in (writer, up_writer):
            if not side.transport.is_closing():
                reset(side)


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter, admit: Admit | None) -> None:
    while data := await source.read(CHUNK_BYTES):
        if admit is not None:
            await admit(data)
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


def reset(side: asyncio.StreamWriter) -> None:
    """Aborts with a TCP reset: an orderly end would make half an answer look whole."""
    side.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.transport.abort()
