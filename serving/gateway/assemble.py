"""One document out of an engine's events, for clients that do not stream. No I/O.

The gateway always streams from the engine (docs/decisions/0004-always-stream.md), so the plain answer is put together
here: contents and tool calls joined, log-probabilities appended, each choice's end noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from serving.gateway.sse import BrokenStream
from serving.gateway.validate import Endpoint

_DATA = b"data: "


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    """A piece of a tool's call: id and name come with the first, arguments with any."""

    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    """A piece of one answer; chat has `delta`, completions have `text`."""

    index: int
    delta: _Delta | None = None
    text: str | None = None
    logprobs: dict[str, list[msgspec.Raw] | None] | None = None
    """Lists by name: `content` for chat; `tokens`, `token_logprobs` and so on for completions."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Chunk(msgspec.Struct):
    """One event of an answer."""

    id: str
    created: int
    model: str
    choices: list[_Choice]
    system_fingerprint: str | None = None


_decoder = msgspec.json.Decoder(Chunk)


def decode_chunk(event: bytes) -> Chunk:
    """The event of an engine's stream.

    Raises:
        BrokenStream: it is not what an engine sends here.
    """
    try:
        return _decoder.decode(event[len(_DATA) :])
    except msgspec.MsgspecError as error:
        raise BrokenStream(f"an event that cannot be read: {error}") from error


class _Answer:
    """One choice as far as it has come."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, list[msgspec.Raw]] | None = None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, piece: _Choice) -> None:
        """Append the next piece."""
        self.texts.append((piece.delta.content if piece.delta is not None else piece.text) or "")
        for call in (piece.delta.tool_calls if piece.delta is not None else None) or ():
            whole = self.calls.setdefault(call.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            whole["id"] = call.id or whole["id"]
            if call.function is not None:
                whole["function"]["name"] += call.function.name or ""
                whole["function"]["arguments"] += call.function.arguments or ""
        for name, values in (piece.logprobs or {}).items():
            self.logprobs = self.logprobs or {}
            self.logprobs.setdefault(name, []).extend(values or ())
        if piece.finish_reason is not None:
            self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason


class Assembly:
    """Collects the events of one request."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._is_chat = endpoint == "chat.completions"
        self._head: dict[str, Any] = {}
        self._fingerprint: str | None = None
        self._answers: dict[int, _Answer] = {}

    def add(self, event: bytes) -> None:
        """Take one event in.

        Raises:
            BrokenStream: it is not what an engine sends here.
        """
        chunk = decode_chunk(event)
        self._head = {"created": chunk.created, "id": chunk.id, "model": chunk.model}
        self._fingerprint = chunk.system_fingerprint or self._fingerprint
        for piece in chunk.choices:
            self._answers.setdefault(piece.index, _Answer()).add(piece)

    def document(self, usage: Mapping[str, object]) -> bytes:
        """The whole answer, compact JSON."""
        document = {
            **self._head,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "choices": [self._choice(index, answer) for index, answer in sorted(self._answers.items())],
            "usage": usage,
            "system_fingerprint": self._fingerprint,
        }
        return msgspec.json.encode(document)

    def message(self, index: int) -> dict[str, Any]:
        """One chat's answer as the message that it is; without a word where nothing came."""
        message: dict[str, Any] = self._choice(index, self._answers.get(index) or _Answer())["message"]
        return message

    def _choice(self, index: int, answer: _Answer) -> dict[str, Any]:
        text = "".join(answer.texts)
        content: dict[str, Any] = {"text": text}
        if self._is_chat:
            content = {"message": {"role": "assistant", "content": text}}
        if answer.calls:  # with them, no text is null to OpenAI's clients
            calls = [call for _, call in sorted(answer.calls.items())]
            content = {"message": {"role": "assistant", "content": text or None, "tool_calls": calls}}
        return {
            "index": index,
            **content,
            "logprobs": answer.logprobs,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
