"""An engine's event stream, read byte by byte as little as possible. No I/O.

A stream is hundreds of small events, and parsing each as JSON would cost more than all else that a gateway does. Almost all of an
event passes through untouched, so events are cut at their blank lines, running token counts are found by their bytes, and
only those bytes are decoded. That is safe: inside a JSON string every quote is escaped, so `,"usage":{` and the other marks
cannot be part of what a model wrote.
"""

from __future__ import annotations

import msgspec

DATA = b"data: "
DONE = b"data: [DONE]"
MAX_EVENT_BYTES = 4 * 1024 * 1024
"""No engine sends such an event; one that seems to has lost its framing."""
MAX_DOCUMENT_BYTES = 128 * 1024 * 1024
"""2,048 vectors of 4,096 numbers, written out, and room to spare."""
_END = b"\n\n"
_USAGE = b',"usage":{'
_CHOICE = b'"choices":[{"index":'
_NO_CHOICES = b'"choices":[]'
_CHOICES = b'"choices":'
_ROLE = b'"delta":{"role":'
_FINISH = b'"finish_reason":"'
_PIECE = b'data: {"id":'
_GOES_ON = b'"finish_reason":null'
_FIRST = b'"choices":[{"index":0,'
ERRORS = (b'data: {"error"', b'data: {"object":"error"')
"""How an event begins that tells of a failure."""
ABORTED = "abort"
"""The finish reason of a vLLM that stops with requests running. To a client that is no way to finish."""


class BrokenStream(Exception):
    """What the engine sends is not the event stream that was agreed on."""


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one event: of one choice while it runs, of all at the end."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    @property
    def reasoning_tokens(self) -> int:
        """Completion tokens spent on reasoning; -1 where the engine does not say."""
        details = self.completion_tokens_details
        return -1 if details is None or details.reasoning_tokens is None else details.reasoning_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache; engines say so at the end only."""
        details = self.prompt_tokens_details
        return 0 if details is None else details.cached_tokens or 0


class EngineError(msgspec.Struct, frozen=True):
    """What an engine says when it fails."""

    message: str = ""
    code: int | str | None = None


class _ErrorDocument(msgspec.Struct, frozen=True):
    error: EngineError = EngineError()


_usage_decoder = msgspec.json.Decoder(Usage)
_error_decoder = msgspec.json.Decoder(_ErrorDocument)


class EventSplitter:
    """Puts events together from pieces that may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events completed by `data`, without their blank lines; comments are left out.

        Raises:
            BrokenStream: an event has no end.
        """
        if self._rest:
            data = self._rest + data
        end = data.rfind(_END)
        if end < 0:
            if len(data) > MAX_EVENT_BYTES:
                raise BrokenStream(f"an event of more than {MAX_EVENT_BYTES} bytes")
            self._rest = data
            return []
        self._rest = data[end + len(_END) :]
        return [event for event in data[:end].split(_END) if event.startswith(b"data:")]

    def end(self) -> list[bytes]:
        """Events that only the end of the answer completes: none, since what has no blank line behind it is half an event."""
        return []


class DocumentSplitter(EventSplitter):
    """An answer that is one JSON document, as one event and the end of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._num_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Nothing yet.

        Raises:
            BrokenStream: the document has no end.
        """
        self._pieces.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_DOCUMENT_BYTES:
            raise BrokenStream(f"a document of more than {MAX_DOCUMENT_BYTES} bytes")
        return []

    def end(self) -> list[bytes]:
        """The document, which is whole now."""
        return [DATA + b"".join(self._pieces), DONE]


def cut_usage(event: bytes) -> tuple[bytes, Usage | None]:
    """The event without its token counts, and the counts; None where it has none.

    Raises:
        BrokenStream: the event is not whole, or the counts cannot be read.
    """
    if not event.endswith(b"}"):
        raise BrokenStream("an event that is not whole")
    start = event.find(_USAGE)
    if start < 0:
        return event, None
    opening = start + len(_USAGE) - 1
    closing = event.find(b"}", opening)
    while event.count(b"{", opening, closing) > event.count(b"}", opening, closing + 1) and closing >= 0:
        closing = event.find(b"}", closing + 1)
    try:
        usage = _usage_decoder.decode(event[opening : closing + 1])
    except msgspec.MsgspecError as error:
        raise BrokenStream(f"token counts that cannot be read: {error}") from error
    return event[:start] + event[closing + 1 :], usage


def plain_piece(event: bytes) -> tuple[bytes, Usage] | None:
    """The common event without its token counts, and the counts: a piece of the only answer that does not end it, the counts
    last. None for every other event, which has to be looked at with care."""
    start = event.rfind(_USAGE)
    if start < 0 or not event.endswith(b"}}") or not event.startswith(_PIECE) or _GOES_ON not in event or _FIRST not in event:
        return None
    try:
        return event[:start] + b"}", _usage_decoder.decode(event[start + len(_USAGE) - 1 : -1])
    except msgspec.MsgspecError:
        return None


def choice_index(event: bytes) -> int:
    """Which of several answers the event belongs to; 0 where it does not say."""
    start = event.find(_CHOICE)
    if start < 0:
        return 0
    start += len(_CHOICE)
    end = start
    while event[end : end + 1].isdigit():
        end += 1
    return int(event[start:end] or b"0")


def has_no_choices(event: bytes) -> bool:
    """The event carries no text: it is the final one, with the totals, or a document of vectors."""
    return _NO_CHOICES in event or _CHOICES not in event


def tells_role(event: bytes) -> bool:
    """The first event of a chat, which has no token."""
    return _ROLE in event


def finish_reason(event: bytes) -> str:
    """Why the engine ended an answer, such as `stop`; empty where the event ends none."""
    start = event.find(_FINISH)
    if start < 0:
        return ""
    start += len(_FINISH)
    return event[start : event.find(b'"', start)].decode()


def engine_error(event: bytes) -> EngineError | None:
    """The failure that the event tells of, or None where it tells of none."""
    if not event.startswith(ERRORS):
        return None
    try:
        return _error_decoder.decode(event[len("data: ") :]).error
    except msgspec.MsgspecError:
        return EngineError("the engine reports an error")


def ended_event(reason: str) -> bytes:
    """A chunk without choices that says which limit ended the answer."""
    body = b'{"id":"","object":"chat.completion.chunk","created":0,"model":"","choices":[],"flotilla":{"ended_by":"%b"}}'
    return b"data: " + body % reason.encode() + _END


def error_event(body: bytes) -> bytes:
    """An error document as an event."""
    return b"data: " + body + _END
