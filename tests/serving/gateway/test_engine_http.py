"""The engine's side of the wire: answers as h11 writes them, cut anywhere, and connections that are used again or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.engine_http import ConnectionPool, EngineConnection

REQUEST = (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n", b"hi")


class Taken:
    """What came of an answer."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.ends: list[tuple[int, str]] = []

    def received(self, status: int, body: bytes) -> None:
        self.bodies.append(body)

    def ended(self, status: int, reason: str) -> None:
        self.ends.append((status, reason))


class Wire(asyncio.Transport):
    """The engine's end of a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False

    def write(self, data: Any) -> None: ...

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted


def answer(pieces: list[bytes], *, is_chunked: bool = True, goes_on: bool = True) -> bytes:
    """An answer as h11 writes it."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"".join(REQUEST))
    while not isinstance(server.next_event(), h11.EndOfMessage):
        continue
    framing = ("transfer-encoding", "chunked") if is_chunked else ("content-length", str(sum(map(len, pieces))))
    sent = server.send(h11.Response(status_code=200, headers=[framing, ("connection", "keep-alive" if goes_on else "close")]))
    for piece in pieces:
        sent = (sent or b"") + (server.send(h11.Data(data=piece)) or b"")
    return (sent or b"") + (server.send(h11.EndOfMessage()) or b"")


def asked(pool: ConnectionPool) -> tuple[EngineConnection, Wire, Taken]:
    connection, wire, taken = EngineConnection(pool, ("engine", 1)), Wire(), Taken()
    connection.connection_made(wire)
    connection.ask(taken, REQUEST)
    return connection, wire, taken


def feed(connection: EngineConnection, data: bytes, cuts: Iterable[int]) -> None:
    for start, end in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]):
        connection.data_received(data[start:end])


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    is_chunked=st.booleans(),
    goes_on=st.booleans(),
    cuts=st.lists(st.integers(1, 300)),
)
@settings(max_examples=100, deadline=None)
def test_an_answer_cut_anywhere_arrives_whole_and_its_connection_is_kept(
    pieces: list[bytes], is_chunked: bool, goes_on: bool, cuts: list[int]
) -> None:
    async def check() -> None:
        pool = ConnectionPool(1)
        connection, wire, taken = asked(pool)
        feed(connection, answer(pieces, is_chunked=is_chunked, goes_on=goes_on), cuts)
        assert (b"".join(taken.bodies), taken.ends) == (b"".join(pieces), [(200, "")])
        connection.release()
        assert wire.is_aborted is not goes_on
        if goes_on:
            assert await pool.get(("engine", 1)) is connection
            again = Taken()
            connection.ask(again, REQUEST)
            feed(connection, answer([b"again"]), cuts)
            assert (again.bodies and b"".join(again.bodies), again.ends) == (b"again", [(200, "")])
        pool.close()

    asyncio.run(check())


async def test_an_answer_cut_at_every_byte_arrives_piece_by_piece() -> None:
    data = answer([b"one", b"two"])
    for cut in range(1, len(data)):
        connection, _, taken = asked(ConnectionPool(1))
        feed(connection, data, [cut])
        assert (b"".join(taken.bodies), taken.ends) == (b"onetwo", [(200, "")])
    connection, _, taken = asked(ConnectionPool(1))
    feed(connection, data, range(len(data)))
    assert len(taken.bodies) == 6, "nothing waits for the rest"


BROKEN: list[tuple[str, bytes, str]] = [
    ("not HTTP", b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
    ("a chunk of no size", answer([b"x"]).partition(b"\r\n\r\n")[0] + b"\r\n\r\nzz\r\n", "not HTTP"),
    ("nothing", b"", "closed"),
    ("half a head", b"HTTP/1.1 200", "closed"),
    ("half a chunk", answer([b"x"])[:-9], "closed"),
]


@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
async def test_what_breaks_is_told_once(data: bytes, reason: str) -> None:
    connection, _wire, taken = asked(ConnectionPool(1))
    if data:
        connection.data_received(data)
    connection.connection_lost(None)
    ((_, said),) = taken.ends
    assert reason in said


@pytest.mark.parametrize("excess", [b"x", answer([b"one too many"])])
@pytest.mark.parametrize("is_late", [True, False])
async def test_bytes_that_nobody_asked_for_end_the_connection(excess: bytes, is_late: bool) -> None:
    """They would be taken for the answer to the next request, which may be another tenant's."""
    pool = ConnectionPool(1)
    connection, wire, taken = asked(pool)
    connection.data_received(answer([b"one"]) + (b"" if is_late else excess))
    assert b"".join(taken.bodies) == b"one"
    connection.release()
    if is_late:
        connection.data_received(excess)
    assert wire.is_aborted
    pool.close()


async def test_an_early_hint_is_not_the_answer() -> None:
    connection, _, taken = asked(ConnectionPool(1))
    connection.data_received(b"HTTP/1.1 100 Continue\r\n\r\n" + answer([b"one"]))
    assert (taken.bodies, taken.ends) == ([b"one"], [(200, "")])


async def test_a_connection_released_before_its_message_ends_is_kept_when_it_does() -> None:
    pool = ConnectionPool(1)
    connection, wire, _taken = asked(pool)
    data = answer([b"data: [DONE]\n\n"])
    connection.data_received(data[:-5])
    connection.release()
    connection.data_received(data[-5:])
    assert await pool.get(("engine", 1)) is connection
    assert not wire.is_aborted
    pool.close()


async def test_connections_are_made_when_none_is_free_and_end_with_the_pool() -> None:
    ended = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.release()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    pool = ConnectionPool(1)
    first, second = await pool.get(address), await pool.get(address)
    assert first is not second
    pool.close()
    async with asyncio.timeout(5):
        await ended.acquire()
        await ended.acquire()
    server.close()
