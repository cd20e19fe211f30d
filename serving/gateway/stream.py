"""An engine's events on their way to the client: relayed as they come, counted as they pass.

The client of a stream gets each event in the same moment and with the same bytes, less the running token counts, which are
ours: that happens where the engine's socket is read, without a task switch. A client that does not keep up is waited for, and its
engine is not read meanwhile, so no more than the socket's buffer piles up here. So is one whose usage is not on the disk yet. The
client of a plain answer gets one document at the end. Both ends come only after the bill is durable: `relay` returns before the
end is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from serving.gateway import sse
from serving.gateway.assemble import Assembly
from serving.gateway.dispatch import EngineLost, Source
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Exchange, Headers
from serving.gateway.settle import Meter
from serving.gateway.validate import Endpoint
from serving.gateway.watch import Watch

_NOT_COMPLETE = "the engine ended its answer without saying that it is complete"
_HEARTBEAT = b": the engine is working\n\n"
"""A comment, by the rules of event streams: clients skip it."""

ENDED_BY_HEADER = b"x-flotilla-ended-by"
"""The budget that ended a plain answer."""
_STREAM_HEADERS: Headers = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"))


class Sink(Protocol):
    """The client's side of a relay."""

    is_live: bool
    """The client gets pieces before the bill of all is durable."""

    @property
    def is_started(self) -> bool:
        """Something of the answer has been sent: it can no longer become an error with a status of its own."""

    @property
    def is_full(self) -> bool:
        """The client does not take what it has been sent: `drain` before more."""

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Take an event, whole and without its counts.

        Raises:
            BrokenStream: it cannot be used.
        """

    def flush(self, meter: Meter, now_s: float) -> None:
        """Send what has been added."""

    def beat(self) -> None:
        """The engine is silent: show the client that the connection lives."""

    async def drain(self) -> None:
        """Return when the client takes more.

        Raises:
            ClientGone: it never will.
        """

    async def end(self, meter: Meter) -> None:
        """Say that the answer is complete. The bill is durable."""

    async def fail(self, error: ApiError) -> None:
        """Say what went wrong after the answer had begun, and end it."""


class StreamSink:
    """A client that streams."""

    is_live = True

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

    @property
    def is_full(self) -> bool:
        """The exchange is."""
        return self._exchange.is_full

    def flush(self, meter: Meter, now_s: float) -> None:
        """Send all in one piece, the answer's head before the first."""
        if not self._waiting:
            return
        self._start()
        self._exchange.write(self._take())
        if meter.first_sent_s is None and meter.output_tokens:
            meter.first_sent_s = now_s

    def beat(self) -> None:
        """Send a comment. From the first one on, failures are events too."""
        self._start()
        self._exchange.write(_HEARTBEAT)

    async def drain(self) -> None:
        """Wait for the exchange."""
        await self._exchange.drain()

    async def end(self, meter: Meter) -> None:
        """Send what was held back, which budget ended the answer if one did, and `[DONE]`."""
        self._start()
        why = sse.ended_event(meter.ended_by) if meter.ended_by else b""
        await self._exchange.finish(self._take() + why + sse.DONE + b"\n\n")

    async def fail(self, error: ApiError) -> None:
        """Send the error as an event, after what was held back; there is no `[DONE]` behind it."""
        await self._exchange.finish(self._take() + sse.error_event(error.body()))

    def _take(self) -> bytes:
        data = b"".join(self._waiting)
        self._waiting.clear()
        return data

    def _start(self) -> None:
        if not self.is_started:
            self.is_started = True
            self._exchange.start(200, (*_STREAM_HEADERS, *self._headers))


class DocumentSink:
    """A client that wants one document. Nothing is sent before the end, so a failure is an error with its own status."""

    is_full = False
    is_live = False

    def __init__(self, exchange: Exchange, headers: Headers, endpoint: Endpoint) -> None:
        self.is_started = False
        self._exchange = exchange
        self._headers = headers
        self._assembly = Assembly(endpoint)

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Put the event's piece to the answer."""
        self._assembly.add(bare)

    def flush(self, meter: Meter, now_s: float) -> None:
        """Nothing is sent before the end."""

    def beat(self) -> None:
        """Nothing can be sent that is not the answer."""

    async def drain(self) -> None:
        """There is nothing to wait for."""

    def body(self, meter: Meter) -> bytes:
        """The document."""
        return self._assembly.document(meter.usage())

    async def end(self, meter: Meter) -> None:
        """Send the document."""
        body = self.body(meter)
        self.is_started = True
        head = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *self._headers)
        if meter.ended_by:
            head += ((ENDED_BY_HEADER, meter.ended_by.encode()),)
        self._exchange.start(200, head)
        await self._exchange.finish(body)

    async def fail(self, error: ApiError) -> None:
        """Never called: `is_started` says that the error can be the answer."""
        raise error


class PassingSink(DocumentSink):
    """A client that wants the engine's own document, as it is."""

    def __init__(self, exchange: Exchange, headers: Headers, endpoint: Endpoint) -> None:
        super().__init__(exchange, headers, endpoint)
        self._document = b""

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Keep the document."""
        self._document = event.removeprefix(sse.DATA)

    def body(self, meter: Meter) -> bytes:
        """The document."""
        return self._document


async def relay(source: Source, sink: Sink, meter: Meter, watch: Watch) -> None:
    """Pass everything on until the engine says that it is done, or has sent its totals and ends without saying so.

    Raises:
        EngineLost: it breaks off before that, tells of a failure, or sends what cannot be read.
        ClientGone: nobody is there to take it.
        JournalUnavailable: what has come cannot be recorded, so the client does not get it.
    """
    relaying = _Relay(source, sink, meter, watch)
    source.read(relaying)
    while not relaying.is_over:
        await relaying.changed()
        if relaying.is_held:
            await meter.catch_up()
            relaying.release()
        if sink.is_full:
            watch.is_writing = True
            await sink.drain()
            watch.is_writing = False
            watch.heard(asyncio.get_running_loop().time())
        if not relaying.is_held:
            source.resume()  # though the client may have taken all before this came to wait for it
    if relaying.failure is not None and not meter.is_final:
        raise relaying.failure


class _Relay:
    """Takes events where the engine's socket is read. `changed` wakes the request's task only for what it has to wait for: a
    client that does not keep up, and the end."""

    def __init__(self, source: Source, sink: Sink, meter: Meter, watch: Watch) -> None:
        self.is_over = False
        """Nothing more is taken."""
        self.failure: Exception | None = None
        self.is_held = False
        """The client waits until the journal has caught up: `release` then."""
        self._source = source
        self._sink = sink
        self._meter = meter
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None

    async def changed(self) -> None:
        """Return when it is over, held back, or the client is full."""
        if not (self.is_over or self.is_held or self._sink.is_full):
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None

    def events(self, events: Sequence[bytes]) -> None:
        """Count and pass on. What came before a failure is good."""
        if self.is_over:
            return
        now_s = self._loop.time()
        self._watch.heard(now_s)
        self._meter.num_pieces += len(events)
        try:
            self._count_and_add(events, now_s)
            self._meter.note(now_s)
            self._pass_on(now_s)
        except Exception as error:  # a defect, or what the transport refuses: the request's task tells the client
            self._finish(error)
        if self._sink.is_full:
            self._source.pause()
            self._wake()

    def release(self) -> None:
        """The journal has caught up."""
        self.is_held = False
        now_s = self._loop.time()
        self._watch.heard(now_s)  # the engine was not read meanwhile
        self._pass_on(now_s)

    def ended(self, reason: str, has_broken_off: bool) -> None:
        """The engine says no more."""
        if not self.is_over:
            self._finish(EngineLost(reason or _NOT_COMPLETE, has_broken_off=has_broken_off))

    def _pass_on(self, now_s: float) -> None:
        """To the client, unless that would be too far ahead of the journal; the end of an answer goes out behind its CLOSE."""
        if self.is_held:
            return
        if not (self._sink.is_live and self._meter.is_ahead):
            self._sink.flush(self._meter, now_s)
        elif not self.is_over:
            self.is_held = True
            self._source.pause()
            self._wake()

    def _count_and_add(self, events: Sequence[bytes], now_s: float) -> None:
        meter, sink = self._meter, self._sink
        for event in events:
            plain = sse.plain_piece(event)
            if plain is not None:
                meter.running(plain[1], 0, now_s)
                sink.add(event, plain[0], is_final_usage=False)
                continue
            if event == sse.DONE:
                return self._finish(None, events, event)
            if (said := sse.engine_error(event)) is not None:
                return self._finish(EngineLost(f"the engine says {said.code}: {said.message:.200}"), events, event)
            try:
                bare, usage = sse.cut_usage(event)
                is_final_usage = sse.has_no_choices(event)
                if usage is not None and is_final_usage:
                    meter.final(usage, now_s)
                elif usage is not None:
                    meter.running(usage, sse.choice_index(event), now_s)
                reason = sse.finish_reason(event)
                if reason == sse.ABORTED:
                    return self._finish(EngineLost("the engine aborted the request"), events, event)
                if is_final_usage or sse.tells_role(event):
                    meter.num_pieces -= 1
                meter.finish_reason = reason or meter.finish_reason
                sink.add(event, bare, is_final_usage=is_final_usage)
            except sse.BrokenStream as error:
                return self._finish(EngineLost(str(error)), events, event)
        return None

    def _finish(self, failure: Exception | None, events: Sequence[bytes] = (), last: bytes = b"") -> None:
        """It is over; of `events`, the `last` one and those behind it are no pieces of the answer."""
        self.is_over, self.failure = True, failure
        self._meter.num_pieces -= len(events) - events.index(last) if events else 0
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
