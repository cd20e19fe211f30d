"""EndpointSlices as a gateway watches them, from a server that plays a recorded list and recorded watches."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import certifi
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from gateway_support import make_settings

from serving.gateway import endpoint_slices
from serving.gateway.discovery import Endpoint
from serving.gateway.endpoint_slices import SliceSource

MODEL = make_settings().models[0]
PORTS = [
    {"name": "http", "port": 8000, "protocol": "TCP"},
    {"name": "kv-events", "port": 5557, "protocol": "TCP"},
    {"name": "kv-replay", "port": 5558, "protocol": "TCP"},
]


def pod(name: str, address: str, ready: bool | None = True) -> dict[str, Any]:
    conditions = {} if ready is None else {"ready": ready, "serving": ready, "terminating": False}
    return {"addresses": [address], "conditions": conditions, "targetRef": {"kind": "Pod", "name": name}, "nodeName": "n"}


def piece(name: str, version: str, *endpoints: dict[str, Any], ports: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A slice as Kubernetes 1.37 writes it, fields that nobody here reads included."""
    labels = {"kubernetes.io/service-name": "engine-small", "endpointslice.kubernetes.io/managed-by": "controller"}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "serving", "resourceVersion": version, "labels": labels, "managedFields": []},
        "addressType": "IPv4",
        "endpoints": list(endpoints) or None,
        "ports": PORTS if ports is None else ports,
    }


class ApiServer:
    """Answers lists in turn, and each watch with its lines; then the watch stays open or ends."""

    def __init__(self) -> None:
        self.lists: list[Any] = []
        self.watches: list[tuple[list[bytes], bool]] = []
        """The pieces that a watch writes, and whether it then ends."""
        self.asked: list[dict[str, str]] = []
        self.tokens: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        self.tokens.append(request.headers["Authorization"])
        assert request.path == "/apis/discovery.k8s.io/v1/namespaces/serving/endpointslices"
        if "watch" not in request.query:
            found = self.lists.pop(0)
            return web.Response(status=found) if isinstance(found, int) else web.json_response(found)
        pieces, is_over = self.watches.pop(0) if self.watches else ([], False)
        response = web.StreamResponse()
        await response.prepare(request)
        for written in pieces:
            await response.write(written)
            await asyncio.sleep(0.01)
        if not is_over:
            await asyncio.sleep(30)
        return response


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    monkeypatch.setattr(endpoint_slices, "WAIT_S", 0.5)
    monkeypatch.setattr(endpoint_slices, "RETRY_S", 0.01)
    return ApiServer()


@pytest.fixture
async def source(api: ApiServer, tmp_path: Path) -> AsyncIterator[SliceSource]:
    app = web.Application()
    app.router.add_get("/{path:.*}", api.answer)
    server = TestServer(app, shutdown_timeout=0.01)
    await server.start_server()
    shutil.copy(certifi.where(), tmp_path / "ca.crt")
    (tmp_path / "token").write_text("first\n")
    found = SliceSource(str(server.make_url("")).rstrip("/"), tmp_path)
    yield found
    await found.aclose()
    await server.close()


def listed(*pieces: dict[str, Any], version: str = "10") -> dict[str, Any]:
    return {"kind": "EndpointSliceList", "metadata": {"resourceVersion": version}, "items": list(pieces)}


def event(kind: str, found: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": found}).encode() + b"\n"


async def until(source: SliceSource, is_it: Callable[[tuple[Endpoint, ...]], bool]) -> tuple[Endpoint, ...]:
    for _ in range(40):
        found = await source.read(MODEL)
        if found is not None and is_it(found):
            return found
    raise AssertionError("it did not come about")


def readiness(found: tuple[Endpoint, ...]) -> dict[str, bool]:
    return {one.name: one.is_ready for one in found}


async def test_a_list_has_pods_with_their_readiness_and_all_their_ports(api: ApiServer, source: SliceSource) -> None:
    api.lists = [
        listed(piece("s1", "7", pod("a", "10.0.0.1"), pod("b", "10.0.0.2", False)), piece("s2", "8", pod("c", "10.0.0.3", None)))
    ]
    found = await source.read(MODEL)
    assert found is not None
    assert readiness(found) == {"a": True, "b": False, "c": True}, "a condition that is not there is true"
    assert (found[0].authority, found[0].cache_events) == (
        "10.0.0.1:8000",
        endpoint_slices.endpoint("a", "10.0.0.1", {"kv-events": 5557, "kv-replay": 5558}, 8000, is_ready=True).cache_events,
    )
    assert api.asked[0] == {"labelSelector": "kubernetes.io/service-name=engine-small"}
    assert api.tokens == ["Bearer first"]


async def test_a_watch_tells_of_pods_that_come_change_and_go(api: ApiServer, source: SliceSource) -> None:
    """Events split anywhere, bookmarks between them."""
    whole = event("MODIFIED", piece("s1", "12", pod("a", "10.0.0.1", False), pod("b", "10.0.0.2")))
    api.lists = [listed(piece("s1", "9", pod("a", "10.0.0.1")))]
    bookmark = event("BOOKMARK", {"kind": "EndpointSlice", "metadata": {"resourceVersion": "14"}})
    pieces = [event("ADDED", piece("s2", "11", pod("c", "10.0.0.3"))), whole[:50], whole[50:], bookmark]
    pieces.append(event("DELETED", piece("s2", "15", pod("c", "10.0.0.3"))))
    api.watches = [(pieces, True)]
    await until(source, lambda found: readiness(found) == {"a": True})
    await until(source, lambda found: readiness(found) == {"a": True, "c": True})
    await until(source, lambda found: readiness(found) == {"a": False, "b": True, "c": True})
    await until(source, lambda found: readiness(found) == {"a": False, "b": True})
    assert api.asked[1]["resourceVersion"] == "10"
    for _ in range(3):
        await source.read(MODEL)
    assert api.asked[2]["resourceVersion"] == "15", "it goes on from where it was"


async def test_a_quiet_watch_says_nothing(api: ApiServer, source: SliceSource) -> None:
    api.lists = [listed(piece("s1", "9", pod("a", "10.0.0.1")))]
    assert await source.read(MODEL)
    assert await source.read(MODEL) is None
    assert await source.read(MODEL) is None
    assert len(api.asked) == 2, "one list, one watch"


@pytest.mark.parametrize("how", ["event", "status"])
async def test_a_watch_that_cannot_go_on_begins_with_a_list(api: ApiServer, source: SliceSource, how: str) -> None:
    expired = event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    api.lists = [listed(piece("s1", "9", pod("a", "10.0.0.1"))), *([410] if how == "status" else [])]
    api.lists.append(listed(piece("s1", "90", pod("z", "10.0.0.9")), version="91"))
    api.watches = [([expired], True)]
    await until(source, lambda found: readiness(found) == {"a": True})
    await until(source, lambda found: readiness(found) == {"z": True})


async def test_an_api_server_that_does_not_answer_says_nothing_about_engines(api: ApiServer, source: SliceSource) -> None:
    api.lists = [500, 403, listed(piece("s1", "9", pod("a", "10.0.0.1")))]
    assert await source.read(MODEL) is None
    assert await source.read(MODEL) is None
    assert readiness(await source.read(MODEL) or ()) == {"a": True}


async def test_a_token_is_read_anew_for_each_watch(api: ApiServer, source: SliceSource, tmp_path: Path) -> None:
    api.lists = [listed(piece("s1", "9", pod("a", "10.0.0.1")))]
    await source.read(MODEL)
    (tmp_path / "token").write_text("second\n")
    await source.read(MODEL)
    assert api.tokens == ["Bearer first", "Bearer second"]


async def test_a_pod_in_two_slices_is_one_engine_and_ready_where_either_says_so(api: ApiServer, source: SliceSource) -> None:
    api.lists = [listed(piece("s1", "9", pod("a", "10.0.0.1", False)), piece("s2", "9", pod("a", "10.0.0.1")), piece("s3", "9"))]
    assert readiness(await source.read(MODEL) or ()) == {"a": True}
