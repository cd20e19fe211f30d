"""A region's way to the emulated AWS: unnoticed while nothing is wrong, and cut as a drill says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.embedded import faults
from infra.embedded.aws_front import AwsFront
from infra.embedded.faults import Cut, Mode, RegionFaults
from infra.embedded.state import State

HERE, THERE = "us-east-2", "us-west-2"


def request(region: str, service: str = "dynamodb", body: bytes = b"{}") -> bytes:
    scope = f"Credential=local/20261124/{region}/{service}/aws4_request"
    head = f"POST / HTTP/1.1\r\nAuthorization: AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=00\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


class World:
    """An AWS that answers every chunk with `ok`, and a front to it that looks at its faults when told."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.received = b""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        upstream = self._server.sockets[0].getsockname()[:2]
        self.front = AwsFront("127.0.0.1", 0, upstream, faults.path_of(self.state, HERE))
        await self.front.start()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.received += data
            writer.write(b"ok")

    def plant(self, *cuts: Cut) -> None:
        faults.plant(self.state, HERE, RegionFaults(cuts=cuts))
        self.front.look()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.front.port)

    async def close(self) -> None:
        await self.front.stop()
        self._server.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(State(tmp_path))
    await world.start()
    yield world
    await world.close()


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes) -> str:
    """`ok`, `reset`, or `silence` after a while."""
    reader, writer = connection
    try:
        writer.write(data)
        async with asyncio.timeout(0.3):
            return (await reader.readexactly(2)).decode()
    except TimeoutError:
        return "silence"
    except (ConnectionError, asyncio.IncompleteReadError):
        return "reset"


@pytest.mark.parametrize(
    ("cut", "own", "own_s3", "others"),
    [
        (None, "ok", "ok", "ok"),
        (Cut(), "reset", "reset", "reset"),
        (Cut(region=THERE), "ok", "ok", "reset"),
        (Cut(region=HERE), "reset", "reset", "ok"),
        (Cut(region=HERE, service="s3"), "ok", "reset", "ok"),
        (Cut(region=THERE, mode=Mode.BLACK_HOLE), "ok", "ok", "silence"),
    ],
)
async def test_what_is_cut_is_known_by_the_region_and_service_that_a_request_is_signed_for(
    world: World, cut: Cut | None, own: str, own_s3: str, others: str
) -> None:
    world.plant(*([cut] if cut else []))
    answers = [
        await ask(await world.connect(), request(region, service))
        for region, service in ((HERE, "dynamodb"), (HERE, "s3"), (THERE, "dynamodb"))
    ]
    assert answers == [own, own_s3, others]


async def test_a_kept_connection_is_reset_when_its_region_is_cut_and_no_other_is(world: World) -> None:
    """Clients keep connections: a cut that met new ones only would leave a region half connected."""
    own, others = await world.connect(), await world.connect()
    assert [await ask(own, request(HERE)), await ask(others, request(THERE))] == ["ok", "ok"]
    world.plant(Cut(region=THERE))
    with pytest.raises(ConnectionResetError):
        await others[0].readexactly(1)
    assert await ask(own, request(HERE)) == "ok"


async def test_a_kept_connection_that_turns_to_a_cut_region_is_reset(world: World) -> None:
    world.plant(Cut(region=THERE))
    connection = await world.connect()
    assert [await ask(connection, request(HERE)), await ask(connection, request(THERE))] == ["ok", "reset"]


async def test_a_scope_that_two_chunks_share_is_found(world: World) -> None:
    world.plant(Cut(region=THERE))
    data = request(THERE)
    middle = data.index(THERE.encode()) + 3
    reader, writer = await world.connect()
    writer.write(data[:middle])
    await asyncio.sleep(0.05)
    assert await ask((reader, writer), data[middle:]) in ("ok", "reset")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(3)
    assert not world.received.endswith(data[middle:])


async def test_what_went_into_a_black_hole_arrives_once_it_is_healed(world: World) -> None:
    world.plant(Cut(mode=Mode.BLACK_HOLE))
    connection = await world.connect()
    assert await ask(connection, request(HERE)) == "silence"
    assert world.received == b""
    faults.heal(world.state, [HERE])
    world.front.look()
    assert await connection[0].readexactly(2) == b"ok"
    assert world.received == request(HERE)


async def test_faults_that_cannot_be_read_leave_the_link_as_it_is(world: World) -> None:
    world.plant(Cut())
    faults.path_of(world.state, HERE).write_text("{")
    world.front.look()
    assert await ask(await world.connect(), request(HERE)) == "reset"
