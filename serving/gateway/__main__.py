"""The gateway's process: `python -m serving.gateway`.

Environment: FLOTILLA_SETTINGS_FILE (GatewaySettings), FLOTILLA_JOURNAL_DIR, FLOTILLA_POD_NAME, FLOTILLA_POD_IP;
FLOTILLA_ENDPOINTS_DIR where engines are found in files, AWS_ENDPOINT_URL for an emulated AWS.

Two servers share one event loop: the public API on port 8080, operations and the admin API on 8081. Operations answer from
the first second, the public port when everything is there.

SIGTERM: not ready any more; no new connections; what runs has `drain_s` to finish and is then cut, told so, and billed for
what had arrived; the journal is sealed; exit 0. (Before SIGTERM, Kubernetes' preStop has let the address be forgotten.)
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.gateway.client_http import client_protocol
from serving.gateway.ops import build_ops_app
from serving.gateway.service import Service
from serving.metering.segment_writer import JournalUnavailable
from serving.metering.segments import JournalLocked
from serving.process import Server, configure_logs, refuse
from serving.settings import GatewaySettings, SettingsError, load

HTTP_PORT, OPS_PORT = 8080, 8081
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


async def serve(settings: GatewaySettings, service: Service, host: str) -> None:
    """Run until SIGTERM or SIGINT, then drain.

    Raises:
        Refusal: a port is taken, or usage cannot be recorded.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    http_socket, ops_socket = _bind(host, HTTP_PORT), _bind(host, OPS_PORT)
    ops = _server(build_ops_app(settings, service), drain_s=1)
    ops_task = asyncio.create_task(ops.serve(sockets=[ops_socket]))
    try:
        if await _start(service, stop):
            _spare_the_collector()
            http = _server(service.app, settings.drain_s, client_protocol(service.run))
            http_task = asyncio.create_task(http.serve(sockets=[http_socket]))
            await asyncio.wait([asyncio.create_task(stop.wait()), http_task, ops_task], return_when=asyncio.FIRST_COMPLETED)
            log.info("draining", drain_s=settings.drain_s)
            service.is_draining = True
            http.should_exit = True
            await http_task
    finally:
        await service.stop()
        ops.should_exit = True
        await ops_task
        http_socket.close()
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


def _server(app: Any, drain_s: float, protocol: type[asyncio.Protocol] = HttpToolsProtocol) -> Server:
    config = uvicorn.Config(
        app,
        http=protocol,
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
    return Server(config)


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


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        raise Refusal(f"port {port} of {host} cannot be had: {error.strerror}") from error
    return bound


def main(env: Mapping[str, str] = os.environ) -> int:
    """Exit code of the process: 2 where its environment, settings, ports or journal do not fit."""
    configure_logs()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one prompt at a time: the library's own threads only cost a switch
    try:
        settings = load(GatewaySettings, Path(env["FLOTILLA_SETTINGS_FILE"]))
        _allow_open_files()
        endpoints_dir = env.get("FLOTILLA_ENDPOINTS_DIR")
        service = Service(
            settings,
            gateway=env["FLOTILLA_POD_NAME"],
            journal_dir=Path(env["FLOTILLA_JOURNAL_DIR"]),
            endpoints_dir=Path(endpoints_dir) if endpoints_dir else None,
        )
        uvloop.run(serve(settings, service, env["FLOTILLA_POD_IP"]))
    except KeyError as error:
        return refuse("gateway", f"{error.args[0]} is not set")
    except (SettingsError, Refusal) as error:
        return refuse("gateway", str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
