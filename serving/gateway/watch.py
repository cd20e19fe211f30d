"""Ends a request's waits when its client leaves or a time limit passes.

While a request is at an engine it waits in many places: for a connection, for tokens, for the client to read. One watch
covers them all: it cancels whatever is being awaited and says why. Limits are checked by a timer that is set again only when it
fires, so a chunk costs one assignment and no timer. While an engine is silent, the same timer gives the client a sign of life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from types import TracebackType

from serving.gateway.exchange import Exchange
from serving.settings import Timeouts


class Cause(Enum):
    """Why a request was interrupted."""

    CLIENT_GONE = "the client has hung up"
    CLIENT_STALLED = "the client does not read"
    NO_FIRST_TOKEN = "no first token within the time limit"  # noqa: S105 (not a secret)
    ENGINE_SILENT = "the engine went silent"
    TOO_LONG = "the request took longer than is allowed"


class Interrupted(Exception):
    """The watch ended the request."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause


class Watch:
    """Use as `async with Watch(...) as watch`, and tell it what happens.

    Raises, at the end of the block:
        Interrupted: with its cause.
    """

    def __init__(self, exchange: Exchange, timeouts: Timeouts, beat: Callable[[], None]) -> None:
        self.is_writing = False
        """The client is being written to: silence is its doing, not the engine's."""
        self.on_silence: Callable[[], None] | None = None
        """What to do, once, instead of ending the request when its engine goes silent."""
        self._exchange = exchange
        self._timeouts = timeouts
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)
        self._cause: Cause | None = None
        self._deadline_s = exchange.received_s + timeouts.request_s
        self._heard_s = self._beat_s = self._loop.time()
        self._has_first = False
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Watch:
        await self._scope.__aenter__()
        self._exchange.on_disconnect = self._client_left
        if self._exchange.is_disconnected:
            self._client_left()
        self._check()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._exchange.on_disconnect = None
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            assert self._cause is not None
            raise Interrupted(self._cause) from None

    def asking(self) -> None:
        """An engine is about to be asked: its time to the first token begins."""
        self._heard_s = self._beat_s = self._loop.time()
        self._has_first = False

    def heard(self, now_s: float) -> None:
        """Something came from the engine, or the client took what it was sent."""
        self._heard_s = now_s
        self._has_first = True

    def _client_left(self) -> None:
        self._interrupt(Cause.CLIENT_GONE)

    def _interrupt(self, cause: Cause) -> None:
        if self._cause is None:
            self._cause = cause
            self._scope.reschedule(self._loop.time())

    def _check(self) -> None:
        now_s, limits = self._loop.time(), self._timeouts
        due_s = self._heard_s + (limits.gap_s if self._has_first else limits.first_token_s)
        if now_s >= self._deadline_s:
            self._interrupt(Cause.TOO_LONG)
        elif now_s < due_s:
            beat_s = max(self._heard_s, self._beat_s) + limits.heartbeat_s
            if now_s >= beat_s and not self.is_writing:
                self._beat()
                self._beat_s = now_s
            beat_s = max(beat_s, now_s + limits.heartbeat_s / 2)
            self._timer = self._loop.call_at(min(due_s, self._deadline_s, now_s + limits.gap_s, beat_s), self._check)
        elif self.is_writing:
            self._interrupt(Cause.CLIENT_STALLED)
        elif self._has_first and self.on_silence is not None:
            go_on, self.on_silence = self.on_silence, None
            go_on()
            self._timer = self._loop.call_later(limits.gap_s, self._check)
        else:
            self._interrupt(Cause.ENGINE_SILENT if self._has_first else Cause.NO_FIRST_TOKEN)
