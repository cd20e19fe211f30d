"""A client of streams that costs little: bytes are kept as they come, and read when all is over."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

_END = b"\r\n\r\n"


@dataclass
class Reply:
    """What came of one request. Times on the clock of `time.monotonic`, which all processes of a machine share."""

    asked_s: float
    pieces: list[bytes] = field(default_factory=list)
    first_s: float = 0.0
    """When the first byte came."""
    ended_s: float = 0.0
    problem: str = ""
    """Why there is no whole answer, where the connection says so."""

    @property
    def status(self) -> int:
        """0 where there is none."""
        head = b"".join(self.pieces[:1])
        return int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0

    @property
    def body(self) -> bytes:
        """Without its framing."""
        head, _, rest = b"".join(self.pieces).partition(_END)
        if b"transfer-encoding: chunked" not in head.lower():
            return rest
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size or b"0", 16)
            if not length:
                break
            body, rest = body + rest[:length], rest[length + 2 :]
        return body

    @property
    def events(self) -> list[bytes]:
        """Of a stream, comments left out."""
        return [event for event in self.body.split(b"\n\n") if event.startswith(b"data: ")]

    @property
    def is_complete(self) -> bool:
        """The whole answer came, or so it was said."""
        if self.status != 200 or self.problem:
            return False
        events = self.events
        return events[-1] == b"data: [DONE]" if events else b'"choices"' in self.body

    @property
    def code(self) -> str:
        """Of the error that ended it; empty where none did."""
        last = self.events[-1][6:] if self.events else self.body
        try:
            return str(json.loads(last)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def text(self) -> str:
        """Of the answer, as far as it came."""
        if not self.events:
            choices = json.loads(self.body).get("choices") if self.status == 200 and self.body else None
            return str(choices[0]["message"]["content"]) if choices else ""
        text = ""
        for event in self.events:
            if event != b"data: [DONE]" and (choices := json.loads(event[6:]).get("choices")):
                text += choices[0]["delta"].get("content") or ""
        return text


class Client(asyncio.Protocol):
    """One request on a connection of its own."""

    def __init__(self, wire: bytes) -> None:
        self.reply = Reply(time.monotonic())
        self.over: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.transport: Any = None
        self._wire = wire

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._wire)

    def data_received(self, data: bytes) -> None:
        self.reply.first_s = self.reply.first_s or time.monotonic()
        self.reply.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.reply.ended_s = time.monotonic()
        self.reply.problem = str(exc) if exc is not None else ""
        if not self.over.done():
            self.over.set_result(self.reply)

    def leave(self) -> float:
        """Hang up; when that was."""
        self.transport.abort()
        return time.monotonic()


def wire(key: str, *, resume: bool = False, **fields: Any) -> bytes:
    """A chat as bytes; the connection ends with its answer."""
    body = json.dumps({"model": "small", "temperature": 0, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
    head += "content-type: application/json\r\n" + ("x-flotilla-resume: true\r\n" if resume else "")
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


async def connect(host: str, request: bytes, port: int = 8080) -> Client:
    """A request on its way."""
    _, client = await asyncio.get_running_loop().create_connection(lambda: Client(request), host, port)
    return client


async def ask(host: str, request: bytes, within_s: float = 90.0, port: int = 8080) -> Reply:
    """The reply to a request; one that does not end in time has that as its problem."""
    try:
        client = await connect(host, request, port)
    except OSError as error:
        return Reply(time.monotonic(), problem=str(error))
    try:
        async with asyncio.timeout(within_s):
            return await client.over
    except TimeoutError:
        client.leave()
        client.reply.problem = f"not within {within_s} s"
        return client.reply
