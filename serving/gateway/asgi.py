"""An `Exchange` over ASGI, for the routes that FastAPI declares: the same pipeline behind another transport.

Clients meet it where `client_http.py` leaves a request to FastAPI, such as one that names its path in an unusual way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from serving.gateway.exchange import BODY_TIMEOUT_S, MAX_DISCARDED_BYTES, BodyTooLarge, BodyTooSlow, ClientGone, Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


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
        self._waiting: list[Message] = []
        self._is_finished = False
        self._listener: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()
        """Messages go out in their order, whoever sends them."""
        self._flusher: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Sending is waiting, so whatever has been written waits for `drain`."""
        return bool(self._waiting)

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

    def start(self, status: int, headers: Headers) -> None:
        """The head, for the next `drain` or `finish`."""
        self._waiting.append({"type": "http.response.start", "status": status, "headers": list(headers)})

    def write(self, data: bytes) -> None:
        """A piece. It goes out by itself: a sign of life is written while nobody is about to `drain`."""
        self._waiting.append({"type": "http.response.body", "body": data, "more_body": True})
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def drain(self) -> None:
        """Send what waits; uvicorn holds us up here while the client does not read."""
        async with self._sending:
            while self._waiting:
                if self.is_disconnected:
                    raise ClientGone
                await self._send(self._waiting.pop(0))

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece and the end in one."""
        await self.drain()
        if self.is_disconnected:
            raise ClientGone
        self._is_finished = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def close(self) -> None:
        """Stop listening for the client's leaving, and send no more."""
        for task in (self._listener, self._flusher):
            if task is not None:
                task.cancel()

    async def _flush(self) -> None:
        with suppress(ClientGone):
            await self.drain()

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
