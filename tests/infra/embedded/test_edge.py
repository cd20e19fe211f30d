"""The edge of two local regions: a real Envoy before small HTTP servers that answer what gateways answer."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from infra.embedded import edge
from infra.embedded.edge import EdgeSettings
from policies.failover.rotation import Check

EAST, WEST = "us-east-2", "us-west-2"


def checks_for(region: str, other: str) -> tuple[Check, ...]:
    return (Check(region, "/region", False, 2), Check(other, f"/controls/{region}", True, 1))


class Region:
    """A region's gateways: whether they are well, and whom they say to be evacuated."""

    def __init__(self, name: str) -> None:
        self.name, self.is_well = name, True
        self.evacuated: set[str] = set()

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_get("/region", self._region)
        app.router.add_get("/controls/{region}", self._control)
        app.router.add_get("/who", self._who)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _region(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.is_well else 503)

    async def _control(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["region"] in self.evacuated else 404)

    async def _who(self, _: web.Request) -> web.Response:
        return web.Response(text=self.name)

    async def stop(self) -> None:
        await self._runner.cleanup()


class World:
    def __init__(self, folder: Path) -> None:
        self.east, self.west = Region(EAST), Region(WEST)
        self._folder = folder

    async def start(self) -> None:
        for region in (self.east, self.west):
            await region.start()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        settings = EdgeSettings(
            host="127.0.0.1",
            port=self._port,
            regions={region.name: f"127.0.0.1:{region.port}" for region in (self.east, self.west)},
            checks={EAST: checks_for(EAST, WEST), WEST: checks_for(WEST, EAST)},
            check_period_s=0.1,
        )
        env = {**os.environ, **edge.environment(settings), "PYTHONPATH": str(Path(__file__).parents[3])}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "infra.embedded.edge", cwd=self._folder, env=env
        )
        await self.until(lambda seen: set(seen) == {EAST, WEST}, "both answer")

    async def who(self, count: int = 6) -> Counter[str]:
        """Who answers `count` requests through the edge; a status where nobody does."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            seen: Counter[str] = Counter()
            for _ in range(count):
                try:
                    async with session.get(f"http://127.0.0.1:{self._port}/who") as answer:
                        seen[await answer.text() if answer.status == 200 else str(answer.status)] += 1
                except aiohttp.ClientError:
                    seen["refused"] += 1
            return seen

    async def until(self, condition: Callable[[Counter[str]], bool], what: str) -> None:
        for _ in range(100):
            if condition(seen := await self.who()):
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"{what}: {seen}")

    async def stop(self) -> None:
        self.process.terminate()
        assert await self.process.wait() == 0
        for region in (self.east, self.west):
            await region.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.start()
    yield world
    await world.stop()


def only(region: str) -> Callable[[Counter[str]], bool]:
    return lambda seen: set(seen) == {region}


def both(seen: Counter[str]) -> bool:
    return set(seen) == {EAST, WEST}


async def test_regions_leave_and_come_back_by_what_gateways_say(world: World) -> None:
    """A region that is not well, one that is gone, one that is evacuated though it is well; and silence evacuates nobody."""
    world.east.is_well = False
    await world.until(only(WEST), "east is not well")
    world.east.is_well = True
    await world.until(both, "east is well again")
    world.west.evacuated = {EAST}
    await world.until(only(WEST), "west says that east is evacuated")
    world.west.evacuated = set()
    await world.until(both, "east is brought back")
    await world.west.stop()
    await world.until(only(EAST), "west is gone, and its silence evacuates nobody")
    world.east.is_well = False
    await world.until(lambda seen: seen[EAST] > 0, "nobody is left, so all are asked")
    await world.west.start(world.west.port)


def test_who_is_evacuated_stands_in_envoys_endpoints() -> None:
    settings = EdgeSettings(host="127.0.0.1", port=1, regions={EAST: "127.0.0.1:8080", WEST: "127.0.0.1:8090"}, checks={})
    (document,) = json.loads(json.dumps(edge.endpoints(settings, [EAST])))["resources"]
    hosts = {host["endpoint"]["hostname"]: host["health_status"] for host in document["endpoints"][0]["lb_endpoints"]}
    assert hosts == {EAST: "UNHEALTHY", WEST: "UNKNOWN"}
