"""Asking an engine: one POST, always streamed, and whatever can go wrong before its first event.

Until its first event an engine has done nothing that anyone has seen, so the request may be asked again elsewhere: that is
`EngineFailed`. Only when an event is there is the engine's answer an `Upstream`. Response headers are not enough: vLLM sends them
before it has looked at the prompt.
"""

from __future__ import annotations

import asyncio

import aiohttp

from serving.gateway import errors, sse
from serving.gateway.errors import ApiError, ErrorKind
from serving.gateway.route import NONE_READY_RETRY_S, Seat

KEEPALIVE_S = 2.0
"""Idle connections are closed well before the engine's server does (5 s), so that none is used as it is being closed."""
_RECYCLE_S = 1.0
_MAX_ERROR_BYTES = 16 * 1024
_MAX_MESSAGE_CHARS = 500
_NO_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent")
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError)


class EngineFailed(Exception):
    """The engine gave nothing: ask another, or tell the client `kind`."""

    def __init__(self, kind: ErrorKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind

    def answer(self) -> ApiError:
        """What the client is told when nobody else can be asked."""
        message = "The engine could not be reached or gave no usable answer. Nothing was generated; try again."
        return ApiError(self.kind, message, retry_after_s=NONE_READY_RETRY_S)


class EngineLost(Exception):
    """The engine broke off after its first event."""


class Upstream:
    """An engine's answer, from its first event on. It holds its seat until `abort` or `recycle`."""

    def __init__(self, seat: Seat, response: aiohttp.ClientResponse) -> None:
        self.first: list[bytes] = []
        self._seat = seat
        self._response = response
        self._splitter = sse.EventSplitter()
        self._is_over = False

    async def next(self) -> list[bytes]:
        """The next events; none where the engine has ended its answer.

        Raises:
            EngineLost: the connection broke or the framing is lost.
        """
        try:
            while data := await self._response.content.readany():
                if events := self._splitter.feed(data):
                    return events
        except (*_FAILURES, sse.BrokenStream) as error:
            raise EngineLost(f"{type(error).__name__}: {error}") from error
        return []

    def recycle(self) -> None:
        """The answer is complete: free the seat, and the connection as soon as the engine has ended its message."""
        self._is_over = True
        self._seat.release()
        if not self._response.content.is_eof():
            asyncio.get_running_loop().call_later(_RECYCLE_S, self._response.close)

    def abort(self) -> None:
        """Close the connection, which tells the engine to stop. Changes nothing after `recycle`."""
        if not self._is_over:
            self._is_over = True
            self._response.close()
            self._seat.release()


class Dispatcher:
    """Asks engines."""

    def __init__(self, connect_s: float) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            auto_decompress=False,
            skip_auto_headers=_NO_AUTO_HEADERS,
        )

    async def send(self, seat: Seat, path: str, body: bytes, request_id: str) -> Upstream:
        """Ask the engine at `seat`, and wait for its first event. The client's headers do not travel.

        Raises:
            EngineFailed: nothing came; the seat is free again.
            ApiError: `rejected_by_engine`: the engine finds fault with the request, as every engine would.
        """
        try:
            response = await self._session.post(
                seat.engine.endpoint.url + path,
                data=body,
                headers={"content-type": "application/json", "x-request-id": request_id},
                allow_redirects=False,
            )
        except BaseException as error:
            seat.release()
            if isinstance(error, _FAILURES):
                raise EngineFailed(errors.ENGINE_UNAVAILABLE, f"{type(error).__name__}: {error}") from error
            raise
        upstream = Upstream(seat, response)
        try:
            if response.status != 200:
                await _raise_refusal(response)
            upstream.first = await upstream.next()
            if not upstream.first:
                raise EngineFailed(errors.ENGINE_UNAVAILABLE, "the engine ended its answer before its first event")
            if (said := sse.engine_error(upstream.first[0])) is not None:
                raise _refusal(said.code, said.message)
        except EngineLost as error:
            upstream.abort()
            raise EngineFailed(errors.ENGINE_UNAVAILABLE, str(error)) from error
        except BaseException:
            upstream.abort()
            raise
        return upstream

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


async def _raise_refusal(response: aiohttp.ClientResponse) -> None:
    try:
        body = await response.content.read(_MAX_ERROR_BYTES)
    except _FAILURES as error:
        raise EngineFailed(errors.ENGINE_ERROR, f"status {response.status}") from error
    said = sse.engine_error(b"data: " + body)
    raise _refusal(response.status, "" if said is None else said.message)


def _refusal(code: int | str | None, message: str) -> Exception:
    """400 and 422 are about the request, and every engine would say so; anything else is about this engine."""
    if code in (400, 422):
        return ApiError(errors.REJECTED_BY_ENGINE, message[:_MAX_MESSAGE_CHARS] or "The engine refuses this request.")
    if code == 503:
        return EngineFailed(errors.ENGINE_UNAVAILABLE, f"the engine says {code}: {message:.200}")
    return EngineFailed(errors.ENGINE_ERROR, f"the engine says {code}: {message:.200}")
