"""Where engines are: the addresses behind each class's headless Service, kept fresh.

In a cluster they are watched (`endpoint_slices.py`). On one machine the realiser keeps a file a Service in
FLOTILLA_ENDPOINTS_DIR, replaced whole, which is looked at when it changes. A source that cannot be read leaves the last list in
place: engines do not vanish because an API server is out of order. A source that suddenly says "none" is not believed for a while
either: whoever is really gone is found out by asking, and whoever is not goes on serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from serving.settings import HTTP, KV_EVENTS, KV_REPLAY, ServedModel

log = structlog.get_logger()

FILE_POLL_S = 0.2
KEEP_LAST_S = 60.0
"""So long the last engines are kept when their Service is said to have none."""


@dataclass(frozen=True)
class CacheEvents:
    """Where an engine publishes what its cache holds, and where it replays that; without the latter nothing can be had again."""

    publishes: str
    replays: str | None


@dataclass(frozen=True)
class Endpoint:
    """An engine as discovery sees it."""

    name: str
    address: str
    port: int
    is_ready: bool
    cache_events: CacheEvents | None = None
    """None for one that publishes nothing."""

    @property
    def authority(self) -> str:
        """Host and port of its OpenAI port, as a `Host` header has them."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def endpoint(name: str, address: str, ports: Mapping[str, int], default_port: int, *, is_ready: bool) -> Endpoint:
    """An endpoint from its Service's named ports; `http` wins over `default_port`."""
    events = None
    if KV_EVENTS in ports:
        host = f"tcp://[{address}]" if ":" in address else f"tcp://{address}"
        replays = f"{host}:{ports[KV_REPLAY]}" if KV_REPLAY in ports else None
        events = CacheEvents(f"{host}:{ports[KV_EVENTS]}", replays)
    return Endpoint(name, address, ports.get(HTTP, default_port), is_ready, events)


class Source(Protocol):
    """One way to learn a Service's endpoints."""

    poll_s: float

    async def read(self, model: ServedModel) -> tuple[Endpoint, ...] | None:
        """The endpoints now; None where nothing has changed or nothing can be said."""

    async def aclose(self) -> None:
        """Let go of what was opened."""


class _FileEndpoint(msgspec.Struct):
    name: str
    address: str
    ready: bool


class _FileDocument(msgspec.Struct):
    ports: dict[str, int]
    endpoints: list[_FileEndpoint]


class FileSource:
    """`<namespace>.<service>.json` in a folder; its `http` port wins over the settings'."""

    poll_s = FILE_POLL_S

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[int, int]] = {}
        self._decoder = msgspec.json.Decoder(_FileDocument)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def read(self, model: ServedModel) -> tuple[Endpoint, ...] | None:
        """The file's endpoints, when the file is another than at the last look."""
        service, _, namespace = model.engine_service.partition(".")
        path = self._folder / f"{namespace}.{service}.json"
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_ino)
            if self._seen.get(model.engine_service) == version:
                return None
            document = self._decoder.decode(path.read_bytes())
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("endpoints_unreadable", file=path.name, error=str(error))
            return None
        self._seen[model.engine_service] = version
        return tuple(
            endpoint(found.name, found.address, document.ports, model.engine_port, is_ready=found.ready)
            for found in document.endpoints
        )


async def watch(source: Source, model: ServedModel, on_change: Callable[[tuple[Endpoint, ...]], None]) -> None:
    """Tell `on_change` of every new list, until cancelled."""
    last: tuple[Endpoint, ...] | None = None
    empty_since_s: float | None = None
    now = asyncio.get_running_loop().time
    while True:
        endpoints = await source.read(model)
        if endpoints:
            empty_since_s = None
        elif endpoints is not None and empty_since_s is None:
            empty_since_s = now()
            if last:
                log.warning("engines_vanished", model=model.model_class, kept=[endpoint.name for endpoint in last])
        if (
            not endpoints and last and empty_since_s is not None
        ):  # a source may say "none" once, and then that nothing has changed
            endpoints = () if now() - empty_since_s >= KEEP_LAST_S else None
        if endpoints is not None and endpoints != last:
            last = endpoints
            on_change(endpoints)
            ready = [endpoint.name for endpoint in endpoints if endpoint.is_ready]
            log.info("engines", model=model.model_class, ready=ready, total=len(endpoints))
        await asyncio.sleep(source.poll_s)
