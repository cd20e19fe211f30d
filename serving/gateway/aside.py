"""A request that the gateway makes itself while it serves a client's, on the same path: the client's side of it is here.

It ends when the client hangs up or its time is over, in the way of a client that has hung up, so that the engine stops and what
had come is billed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType

import msgspec

from serving.gateway.exchange import ClientGone, Exchange, Headers

LIMIT_S = 20.0
"""For all of it. The client waits meanwhile for its first token."""


class NoAnswer(Exception):
    """It did not come to an answer; the text is the code of the error, or `timeout`."""


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Said


class _Document(msgspec.Struct):
    choices: list[_Choice]


class Aside:
    """An exchange in memory, for the time that it is entered."""

    on_disconnect: Callable[[], None] | None = None
    is_full = False

    def __init__(self, client: Exchange, limit_s: float = LIMIT_S) -> None:
        self.method, self.path = "POST", "/v1/chat/completions"
        self.headers: Mapping[bytes, bytes] = {}
        self.headers_bytes = 0
        self.received_s = asyncio.get_running_loop().time()
        self.is_disconnected = client.is_disconnected
        self.is_late = False
        self._client = client
        self._limit_s = limit_s
        self._body = b""
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Aside:
        self._client.on_disconnect = self._leave
        self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._late)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.on_disconnect = None
        if self._timer is not None:
            self._timer.cancel()

    @property
    def text(self) -> str:
        """The text of the answer.

        Raises:
            NoAnswer: there is none.
        """
        try:
            text = msgspec.json.decode(self._body, type=_Document).choices[0].message.content
        except (msgspec.MsgspecError, IndexError) as error:
            raise NoAnswer("no_text") from error
        if not text or not text.strip():
            raise NoAnswer("no_text")
        return text.strip()

    async def read_body(self, max_bytes: int) -> bytes:
        """There is none to read."""
        return b""

    def start(self, status: int, headers: Headers) -> None:
        """Nobody looks at the head."""

    def write(self, data: bytes) -> None:
        """Keep a piece."""
        self._body += data

    async def drain(self) -> None:
        """There is nothing to wait for."""
        if self.is_disconnected:
            raise ClientGone

    async def finish(self, data: bytes = b"") -> None:
        """Keep the end."""
        self._body += data

    def _late(self) -> None:
        self.is_late = True
        self._leave()

    def _leave(self) -> None:
        self.is_disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()
