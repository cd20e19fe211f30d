"""One client's connection, at the level of the protocol: HTTP/1.1 as uvicorn speaks it, without what a twin has no use for.

httptools parses requests; answers are written straight to the transport. One request is answered at a time, pipelined ones wait.
A client that goes away is noticed at once, whatever is being answered.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Protocol, cast

import httptools

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 429: "Too Many Requests"}
_REASONS |= {500: "Internal Server Error", 503: "Service Unavailable"}
_LAST_CHUNK = b"0\r\n\r\n"
MAX_BODY_BYTES = 64 * 1024 * 1024
KEEPALIVE_S = 5.0
"""uvicorn's default."""


class Request:
    """One request, whole."""

    __slots__ = ("body", "content_type", "is_kept_alive", "method", "path", "query", "request_id")

    def __init__(self, method: str) -> None:
        self.method = method
        self.path = self.query = ""
        self.body = b""
        self.content_type = "application/json"
        self.request_id = ""
        self.is_kept_alive = True


class App(Protocol):
    """Who answers."""

    connections: set[Connection]

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer the request now or later, on its connection."""


class Connection(asyncio.Protocol):
    """A client's connection. `gone` is called once if the client leaves while its answer is being made."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._url, self._headers, self._body = b"", Request(""), bytearray()
        self._is_chunked = self._is_split = False
        self._rest = b""
        self.gone: Callable[[], None] | None = None
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._app.connections.add(self)
        self.idle_since_s = asyncio.get_running_loop().time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._transport = None
        self._app.connections.discard(self)
        self._leave()

    def eof_received(self) -> None:
        """A client that has ended its side has left, as far as uvicorn is concerned."""
        self._leave()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            self._current = Request("")
            self._current.is_kept_alive = False
            self.respond(400, b"Invalid HTTP request received.", "text/plain; charset=utf-8")

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._url, self._headers, self._body = b"", Request(""), bytearray()

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        name = name.lower()
        if name == b"x-request-id":
            self._headers.request_id = value.decode("latin-1")
        elif name == b"content-type":
            self._headers.content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name == b"expect" and value.lower() == b"100-continue" and self._transport:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body += body
        if len(self._body) > MAX_BODY_BYTES and self._transport:
            self._transport.abort()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        request = self._headers
        request.method = self._parser.get_method().decode()
        path, _, query = self._url.partition(b"?")
        request.path, request.query = path.decode("latin-1"), query.decode("latin-1")
        request.body = bytes(self._body)
        request.is_kept_alive = self._parser.should_keep_alive()
        if self._current is None:
            self._current = request
            self._app.handle(request, self)
        else:
            self._waiting.append(request)

    @property
    def is_idle(self) -> bool:
        """No request is being answered."""
        return self._current is None

    def respond(self, status: int, body: bytes, content_type: str | None = "application/json", extra: str = "") -> None:
        """Answer with `body`; `extra` are more header lines."""
        kind = f"content-type: {content_type}\r\n" if content_type else ""
        head = f"{_head(status)}content-length: {len(body)}\r\n{kind}{extra}vary: Origin\r\n"
        self._write(head.encode() + b"\r\n" + body)
        self._finish()

    def begin_stream(self) -> None:
        """Send the head of a stream."""
        self._is_chunked = True
        self._write(f"{_head(200)}{_STREAM}\r\n".encode())

    def split(self) -> None:
        """From now on, until the stream ends, send each event in two pieces that arrive apart."""
        self._is_split = True

    def event(self, data: bytes) -> None:
        """Send one event of a stream."""
        transport = self._transport
        if transport is None:
            return
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        if not self._is_split:
            transport.write(chunk)
            return
        at = _cut(chunk)
        transport.write(self._rest + chunk[:at])
        self._rest = chunk[at:]

    def end(self) -> None:
        """End the stream in good order."""
        self._write(self._rest + _LAST_CHUNK)
        self._rest, self._is_split, self._is_chunked = b"", False, False
        self._finish()

    def document(self, body: bytes) -> None:
        """Send a whole answer."""
        self.respond(200, body)

    def reset(self) -> None:
        """Break the connection off."""
        if self._transport:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection once all is sent."""
        if self._transport:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)

    def _leave(self) -> None:
        gone, self.gone = self.gone, None
        if gone:
            gone()

    def _finish(self) -> None:
        """The answer is sent: go on with the next request, or close."""
        request, self._current, self.gone = self._current, None, None
        if request is None or not request.is_kept_alive:
            self.close()
        elif self._waiting:
            self._current = self._waiting.popleft()
            self._app.handle(self._current, self)
        else:
            self.idle_since_s = asyncio.get_running_loop().time()


_STREAM = "content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n"


def _head(status: int) -> str:
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\ndate: {_date(int(time.time()))}\r\nserver: uvicorn\r\n"


@lru_cache(1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _cut(chunk: bytes) -> int:
    """Where to cut: inside the first character of several bytes, or else in the middle."""
    return next((at for at, byte in enumerate(chunk) if 0x80 <= byte < 0xC0), len(chunk) // 2)
