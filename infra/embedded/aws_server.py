"""The emulated AWS: MiniStack on one loopback address, with its state kept as it changes.

MiniStack keeps S3 objects on disk as they are written, but tables, secrets and keys only when it is stopped in good order.
This launcher saves them `SAVE_AFTER_S` after a change as well, more rarely once a save takes long. So a stop in good order
loses nothing; a kill loses the writes of about the last second to tables, secrets and keys, and no object. (Files are not
flushed to the device: a power cut is not covered. Usage survives even so: it is in the gateways' journals and in the
archive.)
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from infra.embedded.aws_replication import Replication, watch

EMULATED = ("services.dynamodb", "services.s3", "core.responses")
"""MiniStack's modules that copy between regions, and the one that knows whose call it is."""
SAVE_AFTER_S = 1.0
MAX_SAVE_SHARE = 0.05
"""Saving may take this share of the time: a save of 1 s is followed by 19 s of rest."""
_READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_READ_OPERATIONS = ("Get", "BatchGet", "Query", "Scan", "Describe", "List")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def environment(address: str, port: int, folder: Path, faults: Path | None = None) -> dict[str, str]:
    """Environment variables for `python -m infra.embedded.aws_server`; `faults` is a folder of fault files that it obeys."""
    return {
        "FAULTS_DIR": str(faults or folder / "faults"),
        "LOG_LEVEL": "WARNING",
        "BIND_HOST": address,
        "GATEWAY_PORT": str(port),
        "PERSIST_STATE": "1",
        "STATE_DIR": str(folder / "state"),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(folder / "s3"),
        # Neither is used here, and each would open a port on every interface.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
    }


class Saving:
    """Passes every request on, and saves the state after those that may have changed it."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], save: Callable[[], None]) -> None:
        self._app = app
        self._save = save
        self._is_dirty = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] == "http" and not _only_reads(scope):
                self._is_dirty.set()

    async def run(self) -> None:
        """Saves for as long as the server lives."""
        rest_s = SAVE_AFTER_S
        while True:
            await self._is_dirty.wait()
            await asyncio.sleep(rest_s)
            self._is_dirty.clear()
            began = time.monotonic()
            self._save()
            rest_s = max(SAVE_AFTER_S, (time.monotonic() - began) * (1 / MAX_SAVE_SHARE - 1))


def _only_reads(scope: Scope) -> bool:
    if scope["method"] in _READ_METHODS:
        return True
    target = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"x-amz-target"), "")
    return target.rpartition(".")[2].startswith(_READ_OPERATIONS)


async def _serve() -> None:
    # MiniStack reads its settings when it is imported, and has no typed interface.
    ministack: Any = importlib.import_module("ministack.app")
    persistence: Any = importlib.import_module("ministack.core.persistence")
    hypercorn: Any = importlib.import_module("hypercorn.asyncio")
    config: Any = importlib.import_module("hypercorn.config").Config()
    config.bind = [f"{os.environ['BIND_HOST']}:{os.environ['GATEWAY_PORT']}"]
    config.keep_alive_timeout = 75
    config.graceful_timeout = 2
    config.loglevel = "WARNING"
    replication = Replication(*(importlib.import_module(f"ministack.{name}") for name in EMULATED))
    app = Saving(ministack.app, lambda: persistence.save_all(ministack._build_persistence_save_dict()))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(app.run()), asyncio.create_task(watch(replication, Path(os.environ["FAULTS_DIR"])))]
    await hypercorn.serve(app, config, shutdown_trigger=stop.wait)  # saves a last time as it ends
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(_serve()))
