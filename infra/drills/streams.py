"""Clients of drills: streams over raw sockets, each of which remembers all that it was sent.

A client library would cost more than the gateways. What a client saw is half of the ground truth; the twins keep the other.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any, cast

_REQUEST_ID = re.compile(rb"x-request-id: (\S+)")
_LENGTH = re.compile(rb"content-length: (\d+)")
_TOTALS = re.compile(rb'"completion_tokens":(\d+)')
_CODE = re.compile(rb'"code":\s*"(\w+)"')
_END = b"0\r\n\r\n"
_CONTENT, _EMPTY = b'"content":"', b'"content":""'


@dataclass
class Seen:
    """One answer, as its client saw it."""

    request_id: str = ""
    status: int = 0
    """0 where no head arrived."""
    num_tokens: int = 0
    """Events with text: a twin sends one token in each."""
    is_done: bool = False
    """`[DONE]` arrived."""
    usage_tokens: int | None = None
    """Output tokens of the final usage; None where it did not arrive."""
    error: str = ""
    is_replayed: bool = False
    body: bytes = b""


def chat(host: str, key: str, *, idempotency_key: str = "", **fields: Any) -> bytes:
    """A request on the wire; streamed and with its usage unless `fields` say otherwise."""
    document = {"model": "small", "stream": True, "stream_options": {"include_usage": True}, **fields}
    body = json.dumps(document, separators=(",", ":")).encode()
    extra = f"idempotency-key: {idempotency_key}\r\n" if idempotency_key else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n{extra}"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A kept connection; one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_open = True
        self._data = bytearray()
        self._over: asyncio.Future[None] | None = None
        self._cut_after: int | None = None
        self._changed: asyncio.Event = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._changed.set()
        if self._over is None or self._over.done():
            return
        if (self._cut_after is not None and _num_tokens(self._data) >= self._cut_after) or self._is_whole():
            self._over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._changed.set()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    async def ask(
        self, wire: bytes, *, cut_after: int | None = None, cut_when_silent_s: float | None = None, limit_s: float = 60.0
    ) -> Seen:
        """Send and wait for the end; or hang up after `cut_after` tokens, or when nothing has come for `cut_when_silent_s` since
        the first token.

        Raises:
            ConnectionError: the connection was gone before a byte of the answer, so the request may never have arrived.
        """
        assert self.transport is not None
        self._data.clear()
        self._over = asyncio.get_running_loop().create_future()
        self._cut_after = cut_after
        self.transport.write(wire)
        try:
            async with asyncio.timeout(limit_s):
                if cut_when_silent_s is None:
                    await self._over
                else:
                    await self._silence(self._over, cut_when_silent_s)
        except TimeoutError:  # what of it still comes must not be taken for the next answer
            self.is_open = False
            self.transport.abort()
            raise
        if not self._is_whole():
            self.transport.abort()
            self.is_open = False
        if not self._data:
            raise ConnectionError("gone before an answer")
        return read(bytes(self._data))

    async def _silence(self, over: asyncio.Future[None], silent_s: float) -> None:
        while not over.done():
            self._changed.clear()
            try:
                async with asyncio.timeout(silent_s if _num_tokens(self._data) else None):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _is_whole(self) -> bool:
        head, mark, rest = self._data.partition(b"\r\n\r\n")
        if not mark:
            return False
        if (length := _LENGTH.search(head)) is not None:
            return len(rest) >= int(length[1])
        return rest.endswith(_END)


def _num_tokens(data: bytes | bytearray) -> int:
    return data.count(_CONTENT) - data.count(_EMPTY)


def read(data: bytes) -> Seen:
    """What these bytes of an answer say."""
    head, mark, body = data.partition(b"\r\n\r\n")
    if not mark:
        return Seen()
    request_id, totals, code = _REQUEST_ID.search(head), _TOTALS.findall(body), _CODE.search(body)
    return Seen(
        request_id=request_id[1].decode() if request_id else "",
        status=int(head[9:12]),
        num_tokens=_num_tokens(body),
        is_done=b"data: [DONE]" in body,
        usage_tokens=int(totals[-1]) if totals else None,
        error=code[1].decode() if code else "",
        is_replayed=b"idempotent-replayed: true" in head,
        body=body,
    )


class Clients:
    """Connections to several gateways, or to one edge, kept between requests."""

    def __init__(self, port: int = 8080) -> None:
        self._port = port
        self._free: dict[str, list[Connection]] = {}

    async def ask(self, address: str, wire: bytes, **how: Any) -> Seen:
        """One request to whoever listens at `address`.

        Raises:
            TimeoutError: it had not ended within `limit_s`.
            OSError: nobody was there, or it was gone before a byte of the answer.
        """
        free = self._free.setdefault(address, [])
        while free:
            connection = free.pop()
            if connection.is_open:
                break
        else:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, address, self._port)
        try:
            return await connection.ask(wire, **how)
        finally:
            if connection.is_open:
                free.append(connection)

    def close(self) -> None:
        for free in self._free.values():
            for connection in free:
                if connection.transport is not None:
                    connection.transport.abort()
        self._free.clear()
