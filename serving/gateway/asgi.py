"""The transport over uvicorn's ASGI: an `Exchange` made of scope, receive and send, and the fast path before FastAPI.

The fast path takes the two paths that generate, as raw ASGI: no routing, no dependency injection, no response objects a
chunk. Everything else goes on to the application.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from serving.gateway.exchange import BodyTooLarge, BodyTooSlow, ClientGone, Exchange, Headers
from serving.gateway.validate import ENDPOINTS

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_TIMEOUT_S = 30.0
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
"""Of a body that is too large so much is read and thrown away, so that the client hears why before its connection closes."""


class AsgiExchange:
    """One request over ASGI. Call `close` when it is over."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw: list[tuple[bytes, bytes]] = scope["headers"]
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Mapping[bytes, bytes] = dict(raw)
        self.headers_bytes = sum(len(name) + len(value) for name, value in raw)
        self.received_s = asyncio.get_running_loop().time()
        self.is_disconnected = False
        self.on_disconnect: Callable[[], None] | None = None
        self._receive = receive
        self._send = send
        self._is_finished = False
        self._listener: asyncio.Task[None] | None = None

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body, by a running total."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await self._read_body(max_bytes)
        except TimeoutError:
            raise BodyTooSlow from None
        loop = asyncio.get_running_loop()
        self.received_s = loop.time()
        self._listener = loop.create_task(self._listen())
        return body

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""
        self._check()
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def write(self, data: bytes) -> None:
        """Send a piece; uvicorn waits here while the client does not read."""
        self._check()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece and the end in one."""
        self._check()
        self._is_finished = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def close(self) -> None:
        """Stop listening for the client's leaving."""
        if self._listener is not None:
            self._listener.cancel()

    async def _read_body(self, max_bytes: int) -> bytes:
        pieces: list[bytes] = []
        total = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_disconnected = True
                raise ClientGone
            piece: bytes = message.get("body", b"")
            total += len(piece)
            if total <= max_bytes:
                pieces.append(piece)
            elif pieces:
                pieces.clear()
            is_over = not message.get("more_body", False)
            if total > max_bytes and (is_over or total > MAX_DISCARDED_BYTES):
                raise BodyTooLarge
            if is_over:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _listen(self) -> None:
        """After the body the only thing that comes is the client's leaving, or our own end."""
        while (await self._receive())["type"] != "http.disconnect":
            continue
        if not self._is_finished:
            self.is_disconnected = True
            if self.on_disconnect is not None:
                self.on_disconnect()

    def _check(self) -> None:
        if self.is_disconnected:
            raise ClientGone


class FastPath:
    """Takes POSTs to the generating paths, and leaves the rest to `app`."""

    def __init__(self, app: App, run: Callable[[Exchange], Awaitable[None]]) -> None:
        self.app = app
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ENDPOINTS:
            await self.exchange(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request through the pipeline."""
        exchange = AsgiExchange(scope, receive, send)
        try:
            await self._run(exchange)
        finally:
            exchange.close()
