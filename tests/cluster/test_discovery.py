"""A gateway finds its engines with its own account, on a real API server: a list, and a watch that tells of changes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from regions import Region

from infra.naming import GATEWAY, NAMESPACE
from serving.gateway.discovery import Endpoint
from serving.gateway.endpoint_slices import SliceSource
from serving.settings import Price, ServedModel

pytestmark = pytest.mark.cluster
SERVICE = "engine-small"
PRICE = Price(
    version="1",
    effective_from_ms=0,
    input_micro_usd_per_mtok=1,
    cached_input_micro_usd_per_mtok=1,
    output_micro_usd_per_mtok=1,
)


def _model(namespace: str) -> ServedModel:
    return ServedModel(model_class="small", context_window_tokens=8192, engine_service=f"{SERVICE}.{namespace}", prices=(PRICE,))


def _slice(name: str, **ready: bool) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": SERVICE}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}, {"name": "kv-events", "port": 5557, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [f"10.16.0.{number}"],
                "conditions": {"ready": is_ready},
                "targetRef": {"kind": "Pod", "name": pod, "namespace": NAMESPACE},
            }
            for number, (pod, is_ready) in enumerate(ready.items(), 1)
        ],
    }


@pytest.fixture
def source(region: Region, tmp_path: Path) -> SliceSource:
    """What a gateway's pod finds in its volume: a token of its account, and the cluster's certificate."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{GATEWAY}/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    (tmp_path / "token").write_text(region.kube.call("POST", path, asked)["status"]["token"])
    shutil.copy(region.plane.authority.pair.certificate, tmp_path / "ca.crt")
    return SliceSource(region.kube.api.configuration.host, tmp_path)


async def _until(source: SliceSource, is_it: Callable[[dict[str, bool]], bool]) -> tuple[Endpoint, ...]:
    async with asyncio.timeout(30):
        while True:
            found = await source.read(_model(NAMESPACE))
            if found is not None and is_it({one.name: one.is_ready for one in found}):
                return found


async def test_a_gateway_sees_engines_come_change_and_go(region: Region, source: SliceSource) -> None:
    kube = region.kube
    try:
        await _until(source, lambda found: not found)
        kube.apply(_slice("planted", first=True, second=False))
        found = await _until(source, lambda found: found == {"first": True, "second": False})
        assert found[0].authority == "10.16.0.1:8000"
        assert found[0].cache_events is not None
        kube.apply(_slice("planted", first=False, second=True))
        await _until(source, lambda found: found == {"first": False, "second": True})
        kube.delete("EndpointSlice", "planted", NAMESPACE, "discovery.k8s.io/v1")
        await _until(source, lambda found: not found)
    finally:
        await source.aclose()


async def test_a_gateway_sees_no_other_namespaces_endpoints(source: SliceSource) -> None:
    try:
        assert await source.read(_model("kube-system")) is None
    finally:
        await source.aclose()
