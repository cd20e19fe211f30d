"""How many connections a worker takes: it stops listening above a bound, and listens again when enough have gone.

A connection costs a descriptor, and a request on it another for its engine. A process that has none left does not refuse: its
accepts fail over and over, and what it serves already fails with it. Above the bound connections wait in the socket that all
workers share, where the next free worker takes them, and beyond its backlog the kernel lets clients try again.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable

import structlog

SPARE_FILES = 512
"""Of a process's descriptors: journal, cache, AWS, probes of engines, threads' sockets."""
FILES_PER_CONNECTION = 2
"""A client's connection and its engine's."""
RESUME_RATIO = 0.95
"""Listen again when this share of the bound is left: not at every connection that goes."""

Listen = Callable[[socket.socket], Awaitable[asyncio.Server]]

log = structlog.get_logger()


def max_connections(max_files: int) -> int:
    """What a process with so many descriptors may have open. 20,000 give 9,744."""
    return max(1, (max_files - SPARE_FILES) // FILES_PER_CONNECTION)


def max_open_files() -> int:
    """The limit of this process, as far as it has one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1_048_576


class Room:
    """Tells of connections that come and go, and opens and closes the listener accordingly. Belongs to the event loop.

    `listen` starts to accept on a copy of the listening socket; closing what it gives closes that copy only.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._num = 0
        self._listening: socket.socket | None = None
        self._listen: Listen | None = None
        self._servers: list[asyncio.Server] = []
        self._resuming: asyncio.Task[None] | None = None

    async def open(self, listening: socket.socket, listen: Listen, servers: list[asyncio.Server]) -> None:
        """Begin. `servers` holds the listener while there is one; its owner closes what is in it at the end, and then `close`."""
        self._listening, self._listen, self._servers = listening, listen, servers
        await self._resume()

    def close(self) -> None:
        """Listen no more, whoever goes."""
        self._listen = None

    @property
    def is_listening(self) -> bool:
        """Connections are taken."""
        return bool(self._servers)

    def entered(self) -> None:
        """A client has connected."""
        self._num += 1
        if self._num >= self._bound and self._servers:
            log.warning("accepting_paused", connections=self._num)
            for server in self._servers:
                server.close()
            self._servers.clear()

    def left(self) -> None:
        """A client's connection is gone."""
        self._num -= 1
        if not self._servers and self._resuming is None and self._listen is not None and self._num <= self._bound * RESUME_RATIO:
            self._resuming = asyncio.get_running_loop().create_task(self._resume())

    async def _resume(self) -> None:
        if self._listen is not None and self._listening is not None:
            self._servers.append(await self._listen(self._listening.dup()))
        self._resuming = None
