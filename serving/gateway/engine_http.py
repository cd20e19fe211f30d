"""The engine's side of the streaming path: HTTP/1.1 connections that are kept and used again, one request at a time on each.

No streams, no response objects and no task switch a chunk: what comes in goes to whoever asked in the same moment. Framing is
httptools' business; what the bytes mean is `dispatch`'s. An engine is slowed down by not reading from it (`pause`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol, cast

import httptools

KEEPALIVE_S = 2.0
"""Idle connections are closed well before the engine's server does (5 s), so that none is used as it is being closed."""
RECYCLE_S = 1.0
"""An engine that has said all that matters has this long to end its message, or its connection is not used again."""

Address = tuple[str, int]


class Taker(Protocol):
    """Whoever asked. Both are called on the event loop, straight from the socket."""

    def received(self, status: int, body: bytes) -> None:
        """The next piece of the answer's body, without its framing."""

    def ended(self, status: int, reason: str) -> None:
        """Nothing more comes: `reason` is empty where the message is complete, else says what broke. Called once."""


class EngineConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self, pool: ConnectionPool, address: Address) -> None:
        self.idle_since_s = 0.0
        self._pool = pool
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._taker: Taker | None = None
        self._status = 0
        self._pieces: list[bytes] = []
        self._is_complete = True
        self._may_keep = False
        self._is_paused = False
        self._recycling: asyncio.TimerHandle | None = None

    def ask(self, taker: Taker, request: Iterable[bytes]) -> None:
        """Send a request, head and body, and give the answer to `taker`."""
        assert self._taker is None and self._is_complete and self._transport is not None
        self._taker = taker
        self._status = 0
        self._is_complete = False
        self._transport.write(b"".join(request))

    def pause(self) -> None:
        """Read no more from the engine; TCP lets it know."""
        if not self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    def release(self) -> None:
        """The taker has all it wants: keep the connection for the next request as soon as the engine's message has ended."""
        self._taker = None
        self.resume()
        if self._is_complete:
            self._keep()
        else:
            self._recycling = asyncio.get_running_loop().call_later(RECYCLE_S, self.abort)

    def abort(self) -> None:
        """Close at once, which tells the engine to stop."""
        self._taker = None
        if self._transport is not None:
            self._transport.abort()

    # What comes from the socket and from the parser.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A piece of an answer; bytes that nobody asked for end the connection."""
        if self._parser is None or self._is_complete:
            self.abort()
            return
        reason = self._parse(self._parser, data)
        taker = self._taker
        if self._pieces:
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            if taker is not None:
                taker.received(self._status, body)
        if reason is not None:
            self._end(reason)
        if reason:
            self.abort()

    def eof_received(self) -> None:
        """The engine closes; `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine is gone, or we have left it."""
        if self._recycling is not None:
            self._recycling.cancel()
        self._pool.forget(self._address, self)
        self._end(f"the connection broke: {exc}" if exc is not None else "the engine closed the connection")
        self._parser = None  # it and this hold each other

    def on_message_begin(self) -> None:
        """An answer, or one too many."""
        self._may_keep = not self._is_complete

    def on_body(self, body: bytes) -> None:
        """Part of the answer's body."""
        if not self._is_complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The end of the answer; a 1xx is only said on the way to one."""
        self._is_complete = self._is_complete or self._status >= 200

    def on_headers_complete(self) -> None:
        """The head of the answer."""
        assert self._parser is not None
        if not self._is_complete:
            self._status = self._parser.get_status_code()
            self._may_keep = self._parser.should_keep_alive()

    def _parse(self, parser: httptools.HttpResponseParser, data: bytes) -> str | None:
        """Why the answer has ended, empty where it is complete; None where it goes on."""
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            return f"what the engine sends is not HTTP: {error}"
        return "" if self._is_complete else None

    def _end(self, reason: str) -> None:
        taker, self._taker = self._taker, None
        if taker is not None:
            taker.ended(self._status, reason)
        elif self._recycling is not None and not reason:
            self._recycling.cancel()
            self._recycling = None
            self._keep()

    def _keep(self) -> None:
        if self._may_keep and self._transport is not None and not self._transport.is_closing():
            self._pool.keep(self._address, self)
        else:
            self.abort()


class ConnectionPool:
    """Connections by the engine's address. No limit of its own: seats are counted where engines are chosen."""

    def __init__(self, connect_s: float) -> None:
        self._connect_s = connect_s
        self._idle: dict[Address, list[EngineConnection]] = {}
        self._all: set[EngineConnection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def get(self, address: Address) -> EngineConnection:
        """A connection that is free, the one used last if there is any, else a new one.

        Raises:
            OSError, TimeoutError: the engine cannot be reached.
        """
        idle = self._idle.get(address)
        if idle:
            return idle.pop()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_s):
            _, connection = await loop.create_connection(lambda: EngineConnection(self, address), *address)
        self._all.add(connection)
        return connection

    def keep(self, address: Address, connection: EngineConnection) -> None:
        """`connection` is free."""
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        self._idle.setdefault(address, []).append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(KEEPALIVE_S, self._close_idle)

    def forget(self, address: Address, connection: EngineConnection) -> None:
        """`connection` is closed."""
        self._all.discard(connection)
        idle = self._idle.get(address)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def close(self) -> None:
        """Close all."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._all):
            connection.abort()

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = None
        for address, idle in list(self._idle.items()):
            kept = [connection for connection in idle if loop.time() - connection.idle_since_s < KEEPALIVE_S]
            for connection in idle:
                if connection not in kept:
                    connection.abort()
            if kept:
                self._idle[address] = kept
                self._sweep = self._sweep or loop.call_later(KEEPALIVE_S / 2, self._close_idle)
            else:
                del self._idle[address]
