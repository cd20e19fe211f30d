"""A region's own way to the emulated AWS: one TCP relay a region, which a drill can cut.

One emulated AWS stands for the AWS of every region, so a region can only be cut from it, or from another's part of it, on the
way. Which region and service a request is for follows from its signature (`Credential=KEY/DATE/REGION/SERVICE/aws4_request`, in
a header or a query); bytes pass untouched. `faults` says what may be cut and how; the file is looked at every `LOOK_S`.

Environment: BIND_HOST, BIND_PORT, UPSTREAM (host:port), FAULTS_FILE.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from pathlib import Path

from infra.embedded import faults
from infra.embedded.faults import Cut, Mode
from infra.embedded.forwarder import CHUNK_BYTES, CONNECT_TIMEOUT_S, end, join, reset
from serving.errors import UserError

LOOK_S = 0.1
_SCOPE = re.compile(
    rb"Credential=[^/\s]{1,128}(?:/|%2F)\d{8}(?:/|%2F)([a-z0-9-]{1,32})(?:/|%2F)([a-z0-9-]{1,32})(?:/|%2F)aws4_request"
)
_TAIL_BYTES = 256
"""A scope is shorter: one that two chunks share is found all the same."""
_log = logging.getLogger("flotilla.aws_front")


def environment(address: str, port: int, upstream: str, faults_file: Path) -> dict[str, str]:
    """Environment variables for `python -m infra.embedded.aws_front`."""
    return {"BIND_HOST": address, "BIND_PORT": str(port), "UPSTREAM": upstream, "FAULTS_FILE": str(faults_file)}


class Links:
    """What is cut now."""

    def __init__(self) -> None:
        self.cuts: tuple[Cut, ...] = ()
        self._changed = asyncio.Event()

    def change(self, cuts: tuple[Cut, ...]) -> None:
        """Whoever waits looks again."""
        self.cuts = cuts
        self._changed.set()
        self._changed = asyncio.Event()

    def is_reset(self, region: str, service: str) -> bool:
        """Connections that carry such a request are reset."""
        return any(cut.mode is Mode.RESET and cut.covers(region, service) for cut in self.cuts)

    async def cross(self, region: str, service: str) -> None:
        """Returns once nothing keeps bytes of such a request: at once, or when a black hole is healed.

        Raises:
            ConnectionResetError: it is cut.
        """
        while any(cut.covers(region, service) for cut in self.cuts):
            if self.is_reset(region, service):
                raise ConnectionResetError(f"{service} of {region} is cut")
            await self._changed.wait()


class Link:
    """One connection: whose request it carries now."""

    def __init__(self, links: Links) -> None:
        self.region = self.service = ""
        self._links = links
        self._tail = b""

    async def outbound(self, data: bytes) -> None:
        """Passes bytes of a client's once they may go; see `Links.cross`."""
        seen = self._tail + data
        for scope in _SCOPE.finditer(seen):
            self.region, self.service = scope[1].decode(), scope[2].decode()
        self._tail = seen[-_TAIL_BYTES:]
        await self._links.cross(self.region, self.service)

    async def inbound(self, _: bytes) -> None:
        """The same for an answer's."""
        await self._links.cross(self.region, self.service)


class AwsFront:
    """Listens on one address and port, and passes connections to `upstream` where nothing is cut."""

    def __init__(self, host: str, port: int, upstream: tuple[str, int], faults_file: Path) -> None:
        self.port = port
        self._host = host
        self._upstream = upstream
        self._faults_file = faults_file
        self._links = Links()
        self._connections: dict[asyncio.Task[None], Link] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Reads the faults, then begins to listen.

        Raises:
            OSError: the port is taken.
        """
        self.look()
        self._server = await asyncio.start_server(self._serve, self._host, self.port, limit=CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def watch(self) -> None:
        """Obeys the file until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Reads the file; where that fails, things stay as they are."""
        try:
            cuts = faults.read(self._faults_file).cuts
        except UserError as error:
            _log.error("%s", error.message)
            return
        if cuts == self._links.cuts:
            return
        self._links.change(cuts)
        for task, link in self._connections.items():
            if self._links.is_reset(link.region, link.service):
                task.cancel()

    async def stop(self) -> None:
        """Stops listening and resets what is connected."""
        await end(self._server, self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, link = asyncio.current_task(), Link(self._links)
        assert task is not None
        self._connections[task] = link
        try:
            await self._links.cross("", "")
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                up_reader, up_writer = await asyncio.open_connection(*self._upstream, limit=CHUNK_BYTES)
            await join(reader, writer, up_reader, up_writer, link.outbound, link.inbound)
        except OSError:  # cut, or the emulated AWS does not run: the client sees a reset and tries again by its own rules
            reset(writer)
        finally:
            del self._connections[task]
            if not writer.transport.is_closing():
                reset(writer)


async def _main() -> None:
    env = os.environ
    host, _, port = env["UPSTREAM"].rpartition(":")
    front = AwsFront(env["BIND_HOST"], int(env["BIND_PORT"]), (host, int(port)), Path(env["FAULTS_FILE"]))
    await front.start()
    watching = asyncio.create_task(front.watch())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    watching.cancel()
    await front.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(asyncio.run(_main()))
