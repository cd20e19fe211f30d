"""The client's side of the streaming path: uvicorn's own HTTP protocol, which hands what generates straight to the pipeline.

A POST to a generating path becomes a `DirectExchange` instead of an ASGI cycle: a piece of the answer is one write to the socket,
with no message objects and no task switch. Every other request is FastAPI's, on the same connection and in the same order, since
the exchange takes the place that uvicorn keeps for its cycles (`RequestResponseCycle`, whose names it bears where they are used).

uvicorn trusts that a load balancer stands before it; this does not. A head has to be short and to come in time, a connection that
is being closed does not linger for ever, an ambiguous message (RFC 9112 section 6.3: two lengths, or none that can be relied on)
ends its connection, and a client that leaves is noticed though it has sent its next request already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.gateway import errors
from serving.gateway.accept import Room
from serving.gateway.errors import ApiError
from serving.gateway.exchange import (
    BODY_TIMEOUT_S,
    MAX_DISCARDED_BYTES,
    BodyBroken,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    Exchange,
    Headers,
)
from serving.gateway.validate import ENDPOINTS

HEAD_TIMEOUT_S = 5.0
"""A head that has begun must be whole within this long."""
LINGER_S = 2.0
"""A client whose body is refused has this long to read why before its connection closes under what it still sends."""
MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and headers; the pipeline refuses less than that by an answer of its own."""
MAX_PIPELINED = 8
"""Requests that may wait on one connection behind the one being served, until no more is read."""
FLUSH_S = 30.0
"""A connection that is being closed is cut when its client has not taken the last bytes by then."""
_CHECK_S = 2.5
_NEVER = float("inf")
_SINGLE_HEADERS = (b"authorization", b"host")

Run = Callable[[Exchange], Awaitable[None]]


class DirectExchange:
    """One request and its answer on a client's connection."""

    __slots__ = (
        "_awaits_continue",
        "_head",
        "_is_broken",
        "_is_chunked",
        "_is_http_10",
        "_max_bytes",
        "_num_bytes",
        "_pieces",
        "_protocol",
        "disconnected",
        "headers",
        "headers_bytes",
        "keep_alive",
        "message_event",
        "method",
        "more_body",
        "on_disconnect",
        "path",
        "received_s",
        "response_complete",
    )

    def __init__(self, protocol: ClientProtocol, path: str, *, keep_alive: bool, is_http_10: bool, awaits_continue: bool) -> None:
        self.method = "POST"
        self.path = path
        self.headers: Mapping[bytes, bytes] = dict(protocol.headers)
        self.headers_bytes = sum(len(name) + len(value) for name, value in protocol.headers)
        self.received_s = protocol.loop.time()
        self.on_disconnect: Callable[[], None] | None = None
        # By uvicorn's names: it asks and sets these of whatever is being served.
        self.disconnected = False
        self.response_complete = False
        self.keep_alive = keep_alive
        self.more_body = True
        self.message_event = asyncio.Event()
        self._protocol = protocol
        self._is_http_10 = is_http_10
        self._awaits_continue = awaits_continue
        self._pieces: list[bytes] = []
        self._num_bytes = 0
        self._max_bytes: int | None = None
        self._head = b""
        self._is_chunked = False
        self._is_broken = False

    @property
    def is_disconnected(self) -> bool:
        """The client has hung up."""
        return self.disconnected

    @property
    def is_full(self) -> bool:
        """The socket's buffer is over its high-water mark (64 KiB)."""
        return self._protocol.flow.write_paused

    async def run_asgi(self, run: Run) -> None:
        """Serve it; uvicorn calls this where an ASGI application would be called."""
        try:
            await run(self)
        finally:
            if not self.response_complete:  # nothing that could still be sent would make it whole
                self._protocol.transport.abort()

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body. A client that asked whether to send it (`Expect: 100-continue`) is told so now, if the length that it
        names is allowed."""
        self._max_bytes = max_bytes
        if self.more_body:
            if self._awaits_continue and int(self.headers.get(b"content-length", b"0")) > max_bytes:
                raise BodyTooLarge
            if self._num_bytes > max_bytes:
                self._pieces.clear()
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    await self._wait_for_body()
            except TimeoutError:
                raise BodyTooSlow from None
        if self._num_bytes > max_bytes:
            raise BodyTooLarge
        self.received_s = self._protocol.loop.time()
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return body

    def start(self, status: int, headers: Headers) -> None:
        """Compose the head. Without a length the body is chunked, or for HTTP/1.0 ends with the connection."""
        lines = [STATUS_LINE[status]]
        has_length = False
        for name, value in (*self._protocol.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
            has_length = has_length or name == b"content-length"
        self._is_chunked = not has_length and not self._is_http_10
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if (not has_length and self._is_http_10) or self.more_body:
            self.keep_alive = False
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._head = b"".join(lines)

    def write(self, data: bytes) -> None:
        """Send a piece, the head before the first."""
        if self.disconnected or not data:
            return
        if self._is_chunked:
            data = b"%b%x\r\n%b\r\n" % (self._head, len(data), data)
        elif self._head:
            data = self._head + data
        self._head = b""
        self._protocol.transport.write(data)

    async def drain(self) -> None:
        """Wait for the socket."""
        await self._protocol.flow.drain()
        if self.disconnected:
            raise ClientGone

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece and the end in one."""
        if self.disconnected:
            raise ClientGone
        if self._is_chunked and data:
            data = b"%b%x\r\n%b\r\n0\r\n\r\n" % (self._head, len(data), data)
        else:
            data = b"%b%b" % (self._head, b"0\r\n\r\n" if self._is_chunked else data)
        self._head = b""
        self._protocol.transport.write(data)
        self.response_complete = True
        self._protocol.finished(self, has_unread_body=self.more_body and not self._awaits_continue)

    # What comes from the connection.

    def feed(self, data: bytes) -> None:
        """A piece of the body. Before anyone has asked for it no more is read than a buffer's worth."""
        self._num_bytes += len(data)
        if self._max_bytes is None:
            self._pieces.append(data)
            if self._num_bytes > HIGH_WATER_LIMIT:
                self._protocol.flow.pause_reading()
        elif self._num_bytes <= self._max_bytes:
            self._pieces.append(data)
        elif self._pieces:
            self._pieces.clear()
        self.message_event.set()

    def broke(self) -> None:
        """The rest of the body cannot be understood, so it will never be whole."""
        self._is_broken = True
        self.message_event.set()

    def lost(self) -> None:
        """The connection is gone."""
        if not self.response_complete:
            self.disconnected = True
            self.message_event.set()
            if self.on_disconnect is not None:
                self.on_disconnect()

    async def _wait_for_body(self) -> None:
        while self.more_body and self._num_bytes <= MAX_DISCARDED_BYTES:
            if self.disconnected:
                raise ClientGone
            if self._is_broken:
                raise BodyBroken
            if self._awaits_continue:
                self._awaits_continue = False
                self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._protocol.flow.resume_reading()
            self.message_event.clear()
            await self.message_event.wait()
        if self.disconnected:
            raise ClientGone


class ClientProtocol(HttpToolsProtocol):
    """A client's connection. `run` serves what generates; uvicorn's application serves the rest."""

    def __init__(self, *given: Any, run: Run, room: Room, **named: Any) -> None:
        super().__init__(*given, **named)
        self._room = room
        self.cycle: Any = None
        """The latest request: an exchange, or a cycle of uvicorn's."""
        self._run = run
        self._active: Any = None
        """The request that is being served; others may wait behind it."""
        self._head_bytes: int | None = None
        """Of the head that is coming; None between heads."""
        self._is_refused = False
        """Nothing more is read: something could not be understood."""
        self._due_s = _NEVER
        self._closing_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; it has as long to begin as it has between requests."""
        super().connection_made(transport)
        self._room.entered()
        self._due_s = self.loop.time() + self.timeout_keep_alive
        self._timer = self.loop.call_later(_CHECK_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, whichever of its requests is being served."""
        self._room.left()
        if self._timer is not None:
            self._timer.cancel()
        active, self._active = self._active, None
        self.pipeline.clear()
        if active is not None and active is not self.cycle:
            active.disconnected = not active.response_complete
            active.message_event.set()
        super().connection_lost(exc)
        if isinstance(active, DirectExchange):
            active.lost()

    def data_received(self, data: bytes) -> None:
        """Read on, unless something before could not be understood."""
        if self._is_refused or self.parser is None:
            return
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(ApiError(errors.HEADERS_TOO_LARGE, f"Headers may have {MAX_HEAD_BYTES} bytes in all."))

    # What the parser finds.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._head_bytes = 0
        self._due_s = self.loop.time() + HEAD_TIMEOUT_S
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request: ours where its path generates, FastAPI's otherwise."""
        self._head_bytes = None
        self._due_s = _NEVER
        if self._is_refused:
            return
        is_http_10 = self.parser.get_http_version() != "1.1"
        if (fault := _head_fault([name for name, _ in self.headers], is_http_10)) is not None:
            self.send_400_response(fault)
            return
        path = self._generating_path()
        if path is None:
            super().on_headers_complete()
            return
        exchange = DirectExchange(
            self,
            path,
            keep_alive=not is_http_10 and self.parser.should_keep_alive(),
            is_http_10=is_http_10,
            awaits_continue=self.expect_100_continue and not is_http_10,
        )
        before, self.cycle = self.cycle, exchange
        if before is None or before.response_complete:
            self._start_asgi_task(exchange, self._run)
        else:
            self.pipeline.appendleft((cast(Any, exchange), cast(Any, self._run)))
            if len(self.pipeline) >= MAX_PIPELINED:
                self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        """A piece of the latest request's body; of one that has been answered already it is thrown away."""
        if self._is_refused or self.cycle is None:
            return
        if not isinstance(self.cycle, DirectExchange):
            super().on_body(body)
        elif not self.cycle.response_complete:
            self.cycle.feed(body)

    def on_message_complete(self) -> None:
        """The latest request is whole. If it has been answered and refused meanwhile, its connection has lingered for this."""
        if self._is_refused or self.cycle is None:
            return
        if self.cycle.response_complete and not self.cycle.keep_alive:
            self.transport.close()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What came cannot be understood; uvicorn calls this too."""
        self._refuse(ApiError(errors.INVALID_HTTP, msg))

    # How an answer ends.

    def finished(self, exchange: DirectExchange, *, has_unread_body: bool) -> None:
        """The answer is complete: close, or go on to the next request."""
        if self._is_refused or not exchange.keep_alive:
            if has_unread_body and not self._is_refused:
                self._due_s = self.loop.time() + LINGER_S
            else:
                self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Go on to what has been pipelined, if anything; uvicorn's cycles call this too."""
        self._active = None
        super().on_response_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def _generating_path(self) -> str | None:
        if self.parser.get_method() != b"POST":
            return None
        path = self.url.partition(b"?")[0].decode("latin-1")
        return path if path in ENDPOINTS else None

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error and close, or close behind the answer that is under way. Nothing more is read either way."""
        if self._is_refused:
            return
        self._is_refused = True
        self._due_s = _NEVER
        self.pipeline.clear()
        active = self._active
        if active is not None and not active.response_complete:
            active.keep_alive = False
            if self.cycle is not active or not active.more_body:
                return
            if isinstance(active, DirectExchange):
                active.broke()
            else:
                self.transport.abort()
            return
        body = error.body()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.kind.status] + head + body)
        self.transport.close()

    def _check(self) -> None:
        """Every few seconds: is this connection overdue?"""
        now_s = self.loop.time()
        if self.transport.is_closing():
            if self._closing_s is None:
                self._closing_s = now_s
            elif now_s - self._closing_s >= FLUSH_S:
                self.transport.abort()
        elif now_s >= self._due_s:
            if self._head_bytes:
                self._refuse(ApiError(errors.BODY_TOO_SLOW, "The request's head did not arrive in time."))
            else:
                self.transport.close()
        self._timer = self.loop.call_later(_CHECK_S, self._check)


def _head_fault(names: list[bytes], is_http_10: bool) -> str | None:
    """What is wrong with a head whose syntax is right; None where nothing is. `names` are lower-case."""
    if any(names.count(name) > 1 for name in _SINGLE_HEADERS):
        return "A request has one `Host`, and at most one `Authorization`."
    if is_http_10:
        return "HTTP/1.0 knows no transfer-encoding." if b"transfer-encoding" in names else None
    return None if b"host" in names else "A request has a `Host`."


def client_protocol(run: Run, room: Room) -> type[asyncio.Protocol]:
    """What uvicorn makes a connection's protocol of, as its `http` setting."""
    return cast("type[asyncio.Protocol]", partial(ClientProtocol, run=run, room=room))
