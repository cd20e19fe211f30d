"""A worker that is full stops listening, and its neighbour or a later moment takes who waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from serving.gateway.accept import Room, max_connections


@pytest.mark.parametrize(("files", "connections"), [(20_000, 9_744), (4_096, 1_792), (514, 1), (100, 1)])
def test_two_descriptors_a_connection_and_some_to_spare(files: int, connections: int) -> None:
    assert max_connections(files) == connections


@dataclass
class Worker:
    """Accepts on a shared socket, and knows who came."""

    room: Room
    servers: list[asyncio.Server] = field(default_factory=list)
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def open(self, listening: socket.socket) -> None:
        async def listen(copy: socket.socket) -> asyncio.Server:
            return await asyncio.start_server(self.serve, sock=copy)

        await self.room.open(listening, listen, self.servers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.append(writer)
        self.room.entered()
        writer.write(b"x")
        await reader.read()
        self.room.left()
        writer.close()


@pytest.fixture
async def listening() -> AsyncIterator[socket.socket]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.setblocking(False)
        yield bound


async def connect(listening: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*listening.getsockname())


async def test_above_the_bound_connections_wait_until_others_have_gone(listening: socket.socket) -> None:
    worker = Worker(Room(2))
    await worker.open(listening)
    first, second, third = [await connect(listening) for _ in range(3)]
    async with asyncio.timeout(5):
        assert await first[0].read(1) == await second[0].read(1) == b"x"
        await asyncio.sleep(0.05)
        assert (len(worker.clients), worker.room.is_listening) == (2, False)
        first[1].close()
        assert await third[0].read(1) == b"x"
    for _, writer in (second, third):
        writer.close()


async def test_a_neighbour_on_the_same_socket_takes_who_waits(listening: socket.socket) -> None:
    full, free = Worker(Room(1)), Worker(Room(10))
    await full.open(listening)
    first = await connect(listening)
    second = await connect(listening)
    async with asyncio.timeout(5):
        assert await first[0].read(1) == b"x"
        await free.open(listening)
        assert await second[0].read(1) == b"x"
    assert (len(full.clients), len(free.clients)) == (1, 1)
    for server in free.servers:
        server.close()
    for _, writer in (first, second):
        writer.close()


async def test_a_room_that_was_closed_stays_so(listening: socket.socket) -> None:
    worker = Worker(Room(1))
    await worker.open(listening)
    client = await connect(listening)
    async with asyncio.timeout(5):
        assert await client[0].read(1) == b"x"
    worker.room.close()
    client[1].close()
    await asyncio.sleep(0.05)
    assert not worker.room.is_listening
