"""An engine's events on their way to the client: relayed as they come, counted as they pass.

The client of a stream gets each event in the same moment and with the same bytes, less the running token counts, which are
ours. It is slowed down by waiting for its socket before reading on, so nothing piles up here. The client of a plain
answer gets one document at the end. Both ends come only after the bill is durable: `relay` returns before the end is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, Protocol

from serving.gateway import sse
from serving.gateway.assemble import Assembly
from serving.gateway.dispatch import EngineLost, Upstream
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Exchange, Headers
from serving.gateway.settle import Meter
from serving.gateway.validate import Endpoint
from serving.gateway.watch import Watch

_ABORTED = "abort"
"""The finish reason of a vLLM that stops with requests running. To a client that is no way to finish."""
_End = Literal["done"] | EngineLost

_STREAM_HEADERS: Headers = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"))


class Sink(Protocol):
    """The client's side of a relay."""

    is_started: bool
    """Something of the answer has been sent: it can no longer become an error with a status of its own."""

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Take an event, whole and without its counts.

        Raises:
            BrokenStream: it cannot be used.
        """

    async def flush(self, meter: Meter) -> None:
        """Send what has been added."""

    async def end(self, meter: Meter) -> None:
        """Say that the answer is complete. The bill is durable."""

    async def fail(self, error: ApiError) -> None:
        """Say what went wrong after the answer had begun, and end it."""


class StreamSink:
    """A client that streams."""

    def __init__(self, exchange: Exchange, headers: Headers, *, wants_usage: bool) -> None:
        self.is_started = False
        self._exchange = exchange
        self._headers = headers
        self._wants_usage = wants_usage
        self._waiting: list[bytes] = []

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Keep the event for the next flush; the totals only where they were asked for."""
        if not is_final_usage:
            self._waiting += (bare, b"\n\n")
        elif self._wants_usage:
            self._waiting += (event, b"\n\n")

    async def flush(self, meter: Meter) -> None:
        """Send all in one piece, the answer's head before the first."""
        if not self._waiting:
            return
        data = b"".join(self._waiting)
        self._waiting.clear()
        if not self.is_started:
            self.is_started = True
            await self._exchange.start(200, (*_STREAM_HEADERS, *self._headers))
        await self._exchange.write(data)
        if meter.first_sent_s is None and meter.output_tokens:
            meter.first_sent_s = asyncio.get_running_loop().time()

    async def end(self, meter: Meter) -> None:
        """Send `[DONE]`."""
        if not self.is_started:
            await self._exchange.start(200, (*_STREAM_HEADERS, *self._headers))
        await self._exchange.finish(sse.DONE + b"\n\n")

    async def fail(self, error: ApiError) -> None:
        """Send the error as an event; there is no `[DONE]` behind it."""
        await self._exchange.finish(sse.error_event(error.body()))


class DocumentSink:
    """A client that wants one document. Nothing is sent before the end, so a failure is an error with its own status."""

    def __init__(self, exchange: Exchange, headers: Headers, endpoint: Endpoint) -> None:
        self.is_started = False
        self._exchange = exchange
        self._headers = headers
        self._assembly = Assembly(endpoint)

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Put the event's piece to the answer."""
        self._assembly.add(bare)

    async def flush(self, meter: Meter) -> None:
        """Nothing is sent before the end."""

    async def end(self, meter: Meter) -> None:
        """Send the document."""
        body = self._assembly.document(meter.usage())
        self.is_started = True
        head = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *self._headers)
        await self._exchange.start(200, head)
        await self._exchange.finish(body)

    async def fail(self, error: ApiError) -> None:
        """Never called: `is_started` says that the error can be the answer."""
        raise error


async def relay(upstream: Upstream, sink: Sink, meter: Meter, watch: Watch) -> None:
    """Pass everything on until the engine says that it is done, or has sent its totals and ends without saying so.

    Raises:
        EngineLost: it breaks off before that, tells of a failure, or sends what cannot be read.
        ClientGone: nobody is there to take it.
    """
    now = asyncio.get_running_loop().time
    events, end = upstream.first, None
    while end is None:
        now_s = now()
        watch.heard(now_s)
        end = _count_and_add(events, sink, meter, now_s)
        meter.note(now_s)
        watch.is_writing = True
        await sink.flush(meter)
        watch.is_writing = False
        watch.heard(now())
        if end is None:
            events, end = await _next(upstream)
    if isinstance(end, EngineLost) and not meter.is_final:
        raise end


async def _next(upstream: Upstream) -> tuple[list[bytes], EngineLost | None]:
    """The next events, or why there are none."""
    try:
        events = await upstream.next()
    except EngineLost as lost:
        return [], lost
    return events, None if events else EngineLost("the engine ended its answer without saying that it is complete")


def _count_and_add(events: Sequence[bytes], sink: Sink, meter: Meter, now_s: float) -> _End | None:
    """Take each event's counts and give the rest to the sink; says so when one of them is the end. What came before a failure is
    good."""
    try:
        for event in events:
            if event == sse.DONE:
                return "done"
            if (said := sse.engine_error(event)) is not None:
                return EngineLost(f"the engine says {said.code}: {said.message:.200}")
            bare, usage = sse.cut_usage(event)
            is_final_usage = sse.has_no_choices(event)
            if usage is not None and is_final_usage:
                meter.final(usage, now_s)
            elif usage is not None:
                meter.running(usage, sse.choice_index(event), now_s)
            reason = sse.finish_reason(event)
            if reason == _ABORTED:
                return EngineLost("the engine aborted the request")
            meter.finish_reason = reason or meter.finish_reason
            sink.add(event, bare, is_final_usage=is_final_usage)
    except sse.BrokenStream as error:
        return EngineLost(str(error))
    return None
