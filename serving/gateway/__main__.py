"""The gateway's process: `python -m serving.gateway [--workers N]`.

Environment: FLOTILLA_SETTINGS_FILE (GatewaySettings), FLOTILLA_JOURNAL_DIR, FLOTILLA_POD_NAME, FLOTILLA_POD_IP;
FLOTILLA_ENDPOINTS_DIR where engines are found in files, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT where Kubernetes
tells; AWS_ENDPOINT_URL for an emulated AWS.

Three servers share one event loop: the public API on port 8080, operations on 8081, the admin API on 8083. These two answer from
the first second, the public port when everything is there. With several workers (`workers.py`) all accept on the one public
socket and each is a gateway with a journal of its own, named after pod and worker in the pod's directory; worker 0 has the
operations and admin ports, and its metrics are everybody's (`worker_metrics.py`).

SIGTERM: not ready any more; no new connections; what runs has `drain_s` to finish and is then cut, told so, and billed for
what had arrived; the journal is sealed; exit 0. (Before SIGTERM, Kubernetes' preStop has let the address be forgotten.)
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.gateway.accept import Room, max_connections, max_open_files
from serving.gateway.client_http import client_protocol
from serving.gateway.discovery import FileSource, Source
from serving.gateway.endpoint_slices import SliceSource
from serving.gateway.ops import build_admin_app, build_ops_app
from serving.gateway.service import Service
from serving.gateway.workers import Workers
from serving.metering.segment_writer import JournalUnavailable
from serving.metering.segments import JournalLocked
from serving.process import Server, configure_logs, refuse
from serving.settings import MAX_WORKERS, GatewaySettings, SettingsError, load

HTTP_PORT, OPS_PORT, ADMIN_PORT = 8080, 8081, 8083
KEEP_ALIVE_S = 640
"""Longer than the load balancer keeps an idle connection (620 s), so that it never sends into one that we are closing."""
BACKLOG = 4096
GC_AFTER_ALLOCATIONS = 20_000
"""Net allocations until the youngest generation is collected (Python: 700, which is several times a request)."""
MIN_OPEN_FILES = 4096
"""Two a request, its client's connection and its engine's: where fewer are allowed a burst would end in accepts that fail."""

log = structlog.get_logger()


class Refusal(Exception):
    """The process cannot do its work as it was started; the message is for whoever started it."""


@dataclass(frozen=True)
class Place:
    """Which worker this process is, and where it listens."""

    number: int
    http: socket.socket
    """Shared by all workers."""
    ops: socket.socket | Path
    """Worker 0's port, or a socket of a worker's own for worker 0 to read its metrics from."""
    admin: socket.socket | None
    """Worker 0's."""
    others: Mapping[int, Path]
    """The sockets that worker 0 reads."""


class PublicServer(Server):
    """The public port: listens while there is room."""

    def __init__(self, config: uvicorn.Config, room: Room, listening: socket.socket, service: Service) -> None:
        super().__init__(config)
        self._room = room
        self._service = service
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, on copies of the one socket."""
        await super().startup(sockets=[])
        await self._room.open(self._listening, self._listen, self.servers)
        self._service.is_listening = True

    def stop_listening(self) -> None:
        """End as soon as nothing is served; the socket is given up."""
        self.should_exit = True
        self._room.close()
        self._listening.close()

    async def _listen(self, listening: socket.socket) -> asyncio.Server:
        kind: Any = self.config.http_protocol_class
        protocol = partial(kind, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return await asyncio.get_running_loop().create_server(protocol, sock=listening, backlog=BACKLOG)


async def serve(settings: GatewaySettings, service: Service, place: Place) -> None:
    """Run until SIGTERM or SIGINT, then drain.

    Raises:
        Refusal: usage cannot be recorded.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    is_shared = not isinstance(place.ops, Path)
    ops = Server(_config(build_ops_app(settings, service, place.others), 1, uds=None if is_shared else str(place.ops)))
    ops_task = asyncio.create_task(ops.serve(sockets=None if isinstance(place.ops, Path) else [place.ops]))
    admin = Server(_config(build_admin_app(settings, service), 1))
    admin_task = None if place.admin is None else asyncio.create_task(admin.serve(sockets=[place.admin]))
    try:
        if await _start(service, stop):
            _spare_the_collector()
            room = Room(max_connections(max_open_files()))
            config = _config(service.app, settings.drain_s, http=client_protocol(service.run, room))
            http = PublicServer(config, room, place.http, service)
            http_task = asyncio.create_task(http.serve())
            await asyncio.wait([asyncio.create_task(stop.wait()), http_task, ops_task], return_when=asyncio.FIRST_COMPLETED)
            log.info("draining", drain_s=settings.drain_s)
            service.is_draining = True
            http.stop_listening()
            await http_task
    finally:
        await service.stop()
        ops.should_exit = admin.should_exit = True
        await ops_task
        if admin_task is not None:
            await admin_task
    log.info("stopped")


async def _start(service: Service, stop: asyncio.Event) -> bool:
    """Start the service, unless the process is told to stop before that."""
    starting, stopping = asyncio.create_task(service.start()), asyncio.create_task(stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False
    try:
        starting.result()
    except (JournalLocked, JournalUnavailable) as error:
        raise Refusal(str(error)) from error
    return True


def _spare_the_collector() -> None:
    """Leave what start-up made out of garbage collection: walking it takes tens of milliseconds, in the middle of somebody's
    first token, and finds nothing. A request leaves next to nothing for it either, so it comes seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_AFTER_ALLOCATIONS)


def _config(
    app: Any, drain_s: float, *, http: type[asyncio.Protocol] = HttpToolsProtocol, uds: str | None = None
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        uds=uds,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(drain_s),
    )


def _allow_open_files() -> None:
    """Allow as many open files as may be.

    Raises:
        Refusal: these are too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < MIN_OPEN_FILES:
        raise Refusal(f"only {hard} files may be open at once; must be at least {MIN_OPEN_FILES}. Raise the limit (ulimit -Hn)")


def _source(env: Mapping[str, str]) -> Source:
    if folder := env.get("FLOTILLA_ENDPOINTS_DIR"):
        return FileSource(Path(folder))
    host, port = env["KUBERNETES_SERVICE_HOST"], env["KUBERNETES_SERVICE_PORT"]
    return SliceSource(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        raise Refusal(f"port {port} of {host} cannot be had: {error.strerror}") from error
    return bound


def _work(settings: GatewaySettings, env: Mapping[str, str], place: Place) -> int:
    """One worker's life; its exit code."""
    service = Service(
        settings,
        gateway=f"{env['FLOTILLA_POD_NAME']}-{place.number}",
        journal_dir=Path(env["FLOTILLA_JOURNAL_DIR"]),
        source=_source(env),
    )
    try:
        uvloop.run(serve(settings, service, place))
    except Refusal as error:
        return refuse("gateway", str(error))
    return 0


def main(arguments: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """Exit code of the process: 2 where its environment, settings, ports or journal do not fit."""
    parser = argparse.ArgumentParser(prog="python -m serving.gateway")
    parser.add_argument("--workers", type=int, metavar="N", choices=range(1, MAX_WORKERS + 1), help="instead of the settings'")
    given = parser.parse_args(arguments)
    configure_logs()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one prompt at a time: the library's own threads only cost a switch
    try:
        settings = load(GatewaySettings, Path(env["FLOTILLA_SETTINGS_FILE"]))
        host = env["FLOTILLA_POD_IP"]
        for needed in ("FLOTILLA_POD_NAME", "FLOTILLA_JOURNAL_DIR"):
            env[needed]
        _source(env)  # tells what it misses before anything is bound
        _allow_open_files()
        http, ops, admin = (_bind(host, port) for port in (HTTP_PORT, OPS_PORT, ADMIN_PORT))
    except KeyError as error:
        return refuse("gateway", f"{error.args[0]} is not set")
    except (SettingsError, Refusal) as error:
        return refuse("gateway", str(error))
    num = given.workers or settings.workers
    if num == 1:
        return _work(settings, env, Place(0, http, ops, admin, {}))
    with tempfile.TemporaryDirectory(prefix="flotilla-gateway-") as folder:
        own = {number: Path(folder) / f"worker-{number}" for number in range(1, num)}
        places = [Place(0, http, ops, admin, own), *(Place(number, http, path, None, {}) for number, path in own.items())]
        return Workers(num, lambda number: _work(settings, env, places[number]), on_stop=http.close).run()


if __name__ == "__main__":
    sys.exit(main())
