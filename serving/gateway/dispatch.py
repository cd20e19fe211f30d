"""Asking an engine: one POST, always streamed, and whatever can go wrong before its first event.

Until its first event an engine has done nothing that anyone has seen, so the request may be asked again elsewhere: that is
`EngineFailed`. Only when an event is there is the engine's answer an `Upstream`. Response headers are not enough: vLLM sends them
before it has looked at the prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from serving.gateway import errors, sse
from serving.gateway.discovery import Endpoint
from serving.gateway.engine_http import ConnectionPool, EngineConnection
from serving.gateway.errors import ApiError, ErrorKind
from serving.gateway.route import NONE_READY_RETRY_S, Seat
from serving.gateway.trace import Trace
from serving.gateway.validate import ENGINE_DOCUMENTS

_MAX_ERROR_BYTES = 16 * 1024
_MAX_MESSAGE_CHARS = 500
_ENDED_EARLY = "the engine ended its answer before its first event"


class EngineFailed(Exception):
    """The engine gave nothing: ask another, or tell the client `kind`. It may have died of the request (`has_broken_off`)."""

    def __init__(self, kind: ErrorKind, reason: str, *, has_broken_off: bool = False) -> None:
        super().__init__(reason)
        self.kind = kind
        self.has_broken_off = has_broken_off

    def answer(self) -> ApiError:
        """What the client is told when nobody else can be asked."""
        message = "The engine could not be reached or gave no usable answer. Nothing was generated; try again."
        return ApiError(self.kind, message, retry_after_s=NONE_READY_RETRY_S)


class EngineLost(Exception):
    """The engine broke off after its first event; `has_broken_off` where its connection did."""

    def __init__(self, reason: str, *, has_broken_off: bool = False) -> None:
        super().__init__(reason)
        self.has_broken_off = has_broken_off


class Reader(Protocol):
    """Takes an engine's events as they come. Called on the event loop, straight from the socket; must not raise."""

    def events(self, events: Sequence[bytes]) -> None:
        """One or more events, without their blank lines."""

    def ended(self, reason: str, has_broken_off: bool) -> None:
        """No more events come: the message is over, or (`has_broken_off`) the connection broke, or the engine was given up."""


class Source(Protocol):
    """Where the events of an answer come from."""

    def read(self, reader: Reader) -> None:
        """Give all events, those that are there already included, to `reader`."""

    def pause(self) -> None:
        """Take no more from the engine for now."""

    def resume(self) -> None:
        """Take more again."""

    def recycle(self) -> None:
        """The answer is complete: free what it holds."""


class Upstream(Source):
    """An engine's answer. It holds its seat and its connection until `abort` or `recycle`."""

    def __init__(self, seat: Seat, connection: EngineConnection, splitter: sse.EventSplitter) -> None:
        self._seat = seat
        self._connection = connection
        self._splitter = splitter
        self._reader: Reader | None = None
        self._first: list[bytes] = []
        self._error_body = b""
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[int] = self._loop.create_future()
        """The status, once there is an event or will never be one."""
        self._end: str | None = None
        self._is_over = False
        seat.on_stall = self.give_up

    async def begin(self) -> None:
        """Wait for the first event.

        Raises:
            EngineFailed: there is none.
            ApiError: `rejected_by_engine`: the engine finds fault with the request, as every engine would.
        """
        status = await self._begun
        if status not in (0, 200):
            said = sse.engine_error(b"data: " + self._error_body)
            if said is None and status == 404:  # the path itself is not there, which an unknown model's is
                raise ApiError(errors.UNSUPPORTED_ENDPOINT, "This model's engine does not offer this.", param="model")
            raise _refusal(status, "" if said is None else said.message)
        if not self._first:
            raise EngineFailed(errors.ENGINE_UNAVAILABLE, self._end or _ENDED_EARLY, has_broken_off=bool(self._end))
        if (said := sse.engine_error(self._first[0])) is not None:
            raise _refusal(said.code, said.message)

    def read(self, reader: Reader) -> None:
        """Give all events, those that are there already included, to `reader`."""
        self._reader = reader
        reader.events(self._first)
        if self._end is not None:
            reader.ended(self._end, bool(self._end))

    def pause(self) -> None:
        """Take no more from the engine for now."""
        self._connection.pause()

    def resume(self) -> None:
        """Go on."""
        self._connection.resume()

    def recycle(self) -> None:
        """The answer is complete: free the seat and the connection."""
        self._let_go()
        self._connection.release()

    def abort(self) -> None:
        """Close the connection, which tells the engine to stop. Changes nothing after `recycle`."""
        if not self._is_over:
            self._let_go()
            self._connection.abort()

    def received(self, status: int, body: bytes) -> None:
        """A piece of the answer, from the connection."""
        if self._is_over or self._end is not None:
            return
        self._seat.heard(self._loop.time())
        if status != 200:
            self._error_body += body[: _MAX_ERROR_BYTES - len(self._error_body)]
            return
        try:
            events = self._splitter.feed(body)
        except sse.BrokenStream as error:
            self.ended(status, str(error))
            return
        if not events:
            return
        if self._reader is not None:
            self._reader.events(events)
        else:
            self._first += events
            self._has_begun(status)

    def ended(self, status: int, reason: str) -> None:
        """The end of the answer, from the connection."""
        if self._is_over or self._end is not None:
            return
        if status == 200 and not reason:
            self._first += self._splitter.end()
        self._end = reason
        self._has_begun(status)
        if self._reader is not None:
            self._reader.ended(reason, bool(reason))

    def give_up(self, reason: str = "the engine makes no progress") -> None:
        """The engine says nothing more, though its connection is open: let whoever waits for it ask elsewhere."""
        if not self._begun.done():
            self._begun.set_exception(EngineFailed(errors.ENGINE_TIMEOUT, reason))
        elif self._reader is not None and self._end is None:
            self._end = reason
            self._reader.ended(reason, False)

    def _has_begun(self, status: int) -> None:
        if not self._begun.done():
            self._begun.set_result(status)

    def _let_go(self) -> None:
        self._is_over = True
        self._reader = None
        self._seat.release()


class _Probe:
    """Takes the answer to a health check."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def received(self, status: int, body: bytes) -> None:
        """Of no interest."""

    def ended(self, status: int, reason: str) -> None:
        """The status, or 0 for an answer that broke off."""
        if not self.status.done():
            self.status.set_result(0 if reason else status)


class Dispatcher:
    """Asks engines."""

    def __init__(self, connect_s: float) -> None:
        self._pool = ConnectionPool(connect_s)

    async def send(self, seat: Seat, path: str, body: bytes, request_id: str, trace: Trace) -> Upstream:
        """Ask the engine at `seat`, and wait for its first event. Of the client's headers only the trace travels.

        Raises:
            EngineFailed: nothing came; the seat is free again.
            ApiError: `rejected_by_engine`: the engine finds fault with the request, as every engine would.
        """
        endpoint = seat.engine.endpoint
        try:
            connection = await self._pool.get((endpoint.address, endpoint.port))
        except BaseException as error:
            seat.release()
            if isinstance(error, OSError):  # TimeoutError is one
                raise EngineFailed(errors.ENGINE_UNAVAILABLE, f"{type(error).__name__}: {error}") from error
            raise
        upstream = Upstream(seat, connection, sse.DocumentSplitter() if path in ENGINE_DOCUMENTS else sse.EventSplitter())
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {endpoint.authority}\r\ncontent-type: application/json\r\n"
            f"x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n"
        )
        connection.ask(upstream, (head.encode(), trace.lines, b"\r\n", body))
        try:
            await upstream.begin()
        except BaseException:
            upstream.abort()
            raise
        return upstream

    async def is_well(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """Whether the engine answers its health check with 200 in time.

        The connection is not kept: to its supervisor, an idle engine with one open is one that may hang, and is asked a canary.
        """
        probe = _Probe()
        connection: EngineConnection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._pool.get((endpoint.address, endpoint.port))
                connection.ask(probe, (f"GET /health HTTP/1.1\r\nhost: {endpoint.authority}\r\n\r\n".encode(),))
                return await probe.status == 200
        except OSError:
            return False
        finally:
            if connection is not None:
                connection.abort()

    async def aclose(self) -> None:
        """Close all connections."""
        self._pool.close()


def _refusal(code: int | str | None, message: str) -> Exception:
    """400 and 422 are about the request, and every engine would say so; anything else is about this engine."""
    if code in (400, 422):
        return ApiError(errors.REJECTED_BY_ENGINE, message[:_MAX_MESSAGE_CHARS] or "The engine refuses this request.")
    if code == 503:
        return EngineFailed(errors.ENGINE_UNAVAILABLE, f"the engine says {code}: {message:.200}")
    return EngineFailed(errors.ENGINE_ERROR, f"the engine says {code}: {message:.200}")
