"""The forwarder between a host port and ready pods: it must not be noticed."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from infra.embedded.forwarder import Forwarder

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Pods:
    """Servers behind a forwarder, and the forwarder."""

    def __init__(self) -> None:
        self.backends: list[tuple[str, int]] = []
        self.forwarder = Forwarder(0, lambda: self.backends)
        self._servers: list[asyncio.Server] = []

    async def add(self, handler: Handler) -> tuple[str, int]:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        self._servers.append(server)
        self.backends.append(server.sockets[0].getsockname()[:2])
        return self.backends[-1]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.forwarder.port)

    async def close(self) -> None:
        await self.forwarder.stop()
        for server in self._servers:
            server.close()


@pytest.fixture
async def pods() -> AsyncIterator[Pods]:
    pods = Pods()
    await pods.forwarder.start()
    yield pods
    await pods.close()


async def test_bytes_pass_untouched_both_ways_and_half_close_is_passed_on(pods: Pods) -> None:
    """The server answers with a digest only once it has seen the client's end of stream."""
    sent = random.Random(1).randbytes(8_000_000)
    back = random.Random(2).randbytes(8_000_000)

    async def digest_then_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read(-1)).digest() + back)
        await writer.drain()
        writer.close()

    await pods.add(digest_then_answer)
    reader, writer = await pods.connect()
    writer.write(sent)
    writer.write_eof()
    assert await reader.read(-1) == hashlib.sha256(sent).digest() + back
    writer.close()


async def test_a_slow_reader_holds_its_sender_back(pods: Pods) -> None:
    """Nothing between client and pod may buffer without bound."""
    written = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while True:
            writer.write(bytes(65_536))
            await writer.drain()
            written += 65_536

    await pods.add(pour)
    _, writer = await pods.connect()
    await asyncio.sleep(0.5)
    before = written
    await asyncio.sleep(0.3)
    assert written == before < 64 * 1024 * 1024
    writer.transport.abort()


@pytest.mark.parametrize("is_reset", [True, False])
async def test_a_client_that_goes_away_is_noticed_by_the_pod_at_once(pods: Pods, is_reset: bool) -> None:
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"first")
        try:
            end = await reader.read(-1)
            gone.set_result(f"end after {len(end)}")
        except ConnectionResetError:
            gone.set_result("reset")
        writer.close()

    await pods.add(stream)
    client = socket.create_connection(("127.0.0.1", pods.forwarder.port))
    client.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(client, 5) == b"first"
    if is_reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    async with asyncio.timeout(0.25):
        assert await gone == ("reset" if is_reset else "end after 0")


async def test_a_pod_that_dies_in_mid_stream_resets_the_client(pods: Pods) -> None:
    async def die(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"first")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    await pods.add(die)
    reader, writer = await pods.connect()
    assert await reader.readexactly(5) == b"first"
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 1)
    writer.close()


async def test_connections_go_to_ready_pods_in_turn_and_pass_one_that_refuses(pods: Pods) -> None:
    async def name(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(writer.get_extra_info("sockname")[1]).encode())
        writer.close()

    alive = [await pods.add(name), await pods.add(name)]
    with socket.socket() as refused:
        refused.bind(("127.0.0.1", 0))
        pods.backends.append(refused.getsockname())
        answers = []
        for _ in range(6):
            reader, writer = await pods.connect()
            answers.append(int(await reader.read(-1)))
            writer.close()
    assert set(answers) == {port for _, port in alive}


async def test_no_ready_pod_means_an_aborted_connection_not_a_hang(pods: Pods) -> None:
    reader, writer = await pods.connect()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 1)
    writer.close()
