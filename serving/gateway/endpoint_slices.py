"""Where engines are, as Kubernetes tells it: the EndpointSlices of each class's headless Service, listed once and then watched.

A slice has unready pods too, with their names, so an engine that is being drained is known before it is gone. A watch that ends
goes on from where it was; one that cannot (410) begins anew with a list. While the API server does not answer nothing is said,
and `discovery.watch` keeps the last list.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import structlog

from serving.gateway.discovery import Endpoint, endpoint
from serving.settings import ServedModel

log = structlog.get_logger()

ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes' own clients look; it has `token`, which is renewed, and `ca.crt`."""
WAIT_S = 5.0
"""A look that finds nothing new ends after this long."""
RETRY_S = 1.0
WATCH_S = 300
"""A watch is ended by the server after this long, and goes on."""
_WATCH = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": f"{WATCH_S}"}
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=3.0, sock_read=WATCH_S + 30.0)


class _Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    resource_version: str = ""


class _Conditions(msgspec.Struct):
    ready: bool | None = None


class _Reference(msgspec.Struct):
    name: str = ""


class _SliceEndpoint(msgspec.Struct, rename="camel"):
    addresses: list[str]
    conditions: _Conditions = msgspec.field(default_factory=_Conditions)
    target_ref: _Reference | None = None


class _Port(msgspec.Struct):
    name: str | None = None
    port: int | None = None


class Slice(msgspec.Struct, rename="camel"):
    """What is of interest of an EndpointSlice."""

    metadata: _Metadata
    endpoints: list[_SliceEndpoint] | None = None
    ports: list[_Port] | None = None


class _SliceList(msgspec.Struct):
    metadata: _Metadata
    items: list[Slice]


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Gone(Exception):
    """The watch cannot go on from where it was."""


@dataclass
class _View:
    """One Service's slices, and the watch over them."""

    slices: dict[str, Slice] = field(default_factory=dict)
    version: str = ""
    """From where the watch goes on; empty: a list comes first."""
    response: aiohttp.ClientResponse | None = None
    rest: bytes = b""
    """The beginning of an event whose end has not come."""

    def close(self) -> None:
        """End the watch."""
        if self.response is not None:
            self.response.close()
        self.response, self.rest = None, b""

    def apply(self, event: bytes) -> bool:
        """Take an event in; whether slices have changed.

        Raises:
            _Gone: it says that the watch cannot go on.
        """
        found = msgspec.json.decode(event, type=_Event)
        if found.type == "ERROR":
            raise _Gone
        changed = msgspec.json.decode(found.object, type=Slice)
        self.version = changed.metadata.resource_version
        if found.type == "BOOKMARK":
            return False
        if found.type == "DELETED":
            return self.slices.pop(changed.metadata.name, None) is not None
        self.slices[changed.metadata.name] = changed
        return True


class SliceSource:
    """EndpointSlices, read with the pod's own account, which may read nothing else."""

    poll_s = 0.0

    def __init__(self, server: str, account_dir: Path = ACCOUNT_DIR) -> None:
        """`server` is the API server's `https://host:port`."""
        self._server, self._account_dir = server, account_dir
        self._session: aiohttp.ClientSession | None = None
        self._views: dict[str, _View] = {}

    async def read(self, model: ServedModel) -> tuple[Endpoint, ...] | None:
        """The endpoints when they have changed; None after `WAIT_S` without a change, or when the API server does not answer."""
        view = self._views.setdefault(model.engine_service, _View())
        try:
            if not view.version:
                await self._list(view, model.engine_service)
            elif not await self._changed(view, model.engine_service):
                return None
        except _Gone:
            view.close()
            view.version = ""
            return None
        except (OSError, aiohttp.ClientError, msgspec.MsgspecError, TimeoutError) as error:
            log.warning("endpoints_unreadable", service=model.engine_service, error=f"{type(error).__name__}: {error!s:.200}")
            view.close()
            await asyncio.sleep(RETRY_S)
            return None
        return endpoints_of(view.slices, model.engine_port)

    async def aclose(self) -> None:
        """End all watches."""
        for view in self._views.values():
            view.close()
        if self._session is not None:
            await self._session.close()

    async def _list(self, view: _View, service: str) -> None:
        async with asyncio.timeout(WAIT_S), await self._get(service, {}) as response:
            found = msgspec.json.decode(await response.read(), type=_SliceList)
        view.slices = {one.metadata.name: one for one in found.items}
        view.version = found.metadata.resource_version

    async def _changed(self, view: _View, service: str) -> bool:
        """Wait for events, `WAIT_S` at most; whether they change anything."""
        if view.response is None:
            query = {
                "watch": "true",
                "resourceVersion": view.version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": f"{WATCH_S}",
            }
            view.response = await self._get(service, query)
        try:
            data = await asyncio.wait_for(view.response.content.readany(), WAIT_S)
        except TimeoutError:
            return False
        if not data:
            view.close()
            return False
        *events, view.rest = (view.rest + data).split(b"\n")
        has_changed = False
        for event in filter(None, events):
            has_changed |= view.apply(event)
        return has_changed

    async def _get(self, service: str, query: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Ask for the slices of a Service, `name.namespace`.

        Raises:
            _Gone: 410.
            OSError, aiohttp.ClientError: the API server does not answer, or refuses.
        """
        name, _, namespace = service.partition(".")
        if self._session is None:
            tls = (
                ssl.create_default_context(cafile=str(self._account_dir / "ca.crt"))
                if self._server.startswith("https")
                else False
            )
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0), timeout=_TIMEOUT)
        token = (self._account_dir / "token").read_text().strip()
        response = await self._session.get(
            f"{self._server}/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            params={"labelSelector": f"kubernetes.io/service-name={name}", **query},
            headers={"Authorization": f"Bearer {token}"},
        )
        if response.status == 410:
            response.close()
            raise _Gone
        if response.status != 200:
            response.close()
            response.raise_for_status()
        return response


def endpoints_of(slices: Mapping[str, Slice], default_port: int) -> tuple[Endpoint, ...]:
    """The engines of all slices, by name. A pod that moves between slices may be in both for a moment: ready counts."""
    found: dict[tuple[str, str], Endpoint] = {}
    for one in _listed(slices, default_port):
        known = found.get((one.name, one.address))
        if known is None or not known.is_ready:
            found[one.name, one.address] = one
    return tuple(found[key] for key in sorted(found))


def _listed(slices: Mapping[str, Slice], default_port: int) -> Iterator[Endpoint]:
    for part in slices.values():
        ports = {port.name or "": port.port for port in part.ports or () if port.port is not None}
        for one in part.endpoints or ():
            name = one.target_ref.name if one.target_ref else one.addresses[0]
            # The API: a condition that is not there is to be read as true.
            yield endpoint(name, one.addresses[0], ports, default_port, is_ready=one.conditions.ready is not False)
