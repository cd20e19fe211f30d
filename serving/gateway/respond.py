"""A chat's answer told as a response: one document, or the events of OpenAI's Responses API in their order.

The events of one text: `response.created`, `.in_progress`, `output_item.added`, `content_part.added`, `output_text.delta` for
each piece, `output_text.done`, `content_part.done`, `output_item.done`, `response.completed`. A call has
`function_call_arguments.delta` in place of the parts. Every event is decoded and written anew here; those of chats and
completions, which are most of the traffic, are not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from serving.gateway.assemble import Chunk, decode_chunk
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Exchange, Headers
from serving.gateway.responses import ResponsesRequest
from serving.gateway.settle import Meter
from serving.gateway.stream import DocumentSink, StreamSink

_ENDED = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons of an answer that is not complete, by the names that responses have for them."""


class Response:
    """The response as far as it has come."""

    def __init__(self, request: ResponsesRequest, model: str, created_s: int) -> None:
        self._request = request
        self._model = model
        self._created_s = created_s
        self._id = f"resp_{os.urandom(16).hex()}"
        self._output: list[dict[str, Any]] = []
        self._number = 0
        self._call: int | None = None
        self._finish: str | None = None

    def begin(self) -> bytes:
        """What comes before any output."""
        snapshot = self.document("in_progress", None)
        return self._event("response.created", response=snapshot) + self._event("response.in_progress", response=snapshot)

    def take(self, chunk: Chunk) -> bytes:
        """The events for a piece of the chat's answer."""
        events = b""
        for choice in chunk.choices:
            self._finish = choice.finish_reason or self._finish
            if choice.delta is None:
                continue
            if choice.delta.content:
                events += self._say(choice.delta.content)
            for call in choice.delta.tool_calls or ():
                if call.index != self._call or self._item["type"] != "function_call":
                    self._call = call.index
                    events += self._close()
                    events += self._open_call(call.id or "", (call.function and call.function.name) or "")
                if call.function is not None and call.function.arguments:
                    self._item["arguments"] += call.function.arguments
                    events += self._in_item("response.function_call_arguments.delta", delta=call.function.arguments)
        return events

    def end(self, meter: Meter) -> bytes:
        """What comes behind all output."""
        events = self._close()
        document = self.complete(meter)
        return events + self._event(f"response.{document['status']}", response=document)

    def complete(self, meter: Meter) -> dict[str, Any]:
        """The whole response."""
        if self._output:
            self._item["status"] = "completed"
        status = "incomplete" if self._finish in _ENDED else "completed"
        return self.document(status, meter)

    def error(self, error: ApiError) -> bytes:
        """It breaks off here."""
        return self._event("error", code=error.kind.code, message=error.message, param=error.param)

    def document(self, status: str, meter: Meter | None) -> dict[str, Any]:
        """The response with this status, and the counts where they are known."""
        request = self._request
        why = _ENDED.get(self._finish or "")
        text = msgspec.to_builtins(request.text) if request.text and request.text.format else {"format": {"type": "text"}}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": why} if why else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self._model,
            "output": [dict(item) for item in self._output],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt": None if request.prompt is None else msgspec.to_builtins(request.prompt),
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": text,
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None if meter is None else _usage(meter),
            "user": request.user,
            "metadata": request.metadata or {},
        }

    @property
    def _item(self) -> dict[str, Any]:
        return self._output[-1] if self._output else {"type": "", "status": ""}

    def _say(self, text: str) -> bytes:
        events = b""
        if self._item["type"] != "message" or self._item["status"] == "completed":
            events = self._close() + self._open_message()
        self._part["text"] += text
        return events + self._in_part("response.output_text.delta", delta=text, logprobs=[])

    @property
    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self._item["content"][0]
        return part

    def _open_message(self) -> bytes:
        item = {"id": f"msg_{os.urandom(12).hex()}", "type": "message", "role": "assistant", "status": "in_progress"}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._output.append({**item, "content": [part]})
        added = self._at("response.output_item.added", item={**item, "content": []})
        return added + self._in_part("response.content_part.added", part=part)

    def _open_call(self, call_id: str, name: str) -> bytes:
        item = {"id": f"fc_{os.urandom(12).hex()}", "type": "function_call", "call_id": call_id, "name": name, "arguments": ""}
        self._output.append({**item, "status": "in_progress"})
        return self._at("response.output_item.added", item=self._item)

    def _close(self) -> bytes:
        """The item that is open, if one is, is done."""
        if not self._output or self._item["status"] == "completed":
            return b""
        item = self._item
        item["status"] = "completed"
        if item["type"] == "message":
            events = self._in_part("response.output_text.done", text=self._part["text"], logprobs=[])
            events += self._in_part("response.content_part.done", part=self._part)
        else:
            done = "response.function_call_arguments.done"
            events = self._in_item(done, name=item["name"], arguments=item["arguments"])
        return events + self._at("response.output_item.done", item=item)

    def _at(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, output_index=len(self._output) - 1, **fields)

    def _in_item(self, kind: str, **fields: Any) -> bytes:
        return self._at(kind, item_id=self._item["id"], **fields)

    def _in_part(self, kind: str, **fields: Any) -> bytes:
        return self._in_item(kind, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = msgspec.json.encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)


class ResponseStreamSink(StreamSink):
    """A client that streams a response."""

    def __init__(self, exchange: Exchange, headers: Headers, response: Response) -> None:
        super().__init__(exchange, headers, wants_usage=False)
        self._response = response
        self._has_begun = False

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Keep the events that say the same for the next flush."""
        if not self._has_begun:
            self._has_begun = True
            self._waiting.append(self._response.begin())
        self._waiting.append(self._response.take(decode_chunk(bare)))

    async def end(self, meter: Meter) -> None:
        """Send `response.completed`, with which such a stream ends."""
        self._start()
        await self._exchange.finish(self._take() + self._response.end(meter))

    async def fail(self, error: ApiError) -> None:
        """Send the error as an event."""
        await self._exchange.finish(self._take() + self._response.error(error))


class ResponseDocumentSink(DocumentSink):
    """A client that wants one response."""

    def __init__(self, exchange: Exchange, headers: Headers, response: Response) -> None:
        super().__init__(exchange, headers, "chat.completions")
        self._response = response

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Put the event's piece to the response."""
        self._response.take(decode_chunk(bare))

    def body(self, meter: Meter) -> bytes:
        """The response."""
        return msgspec.json.encode(self._response.complete(meter))


def _usage(meter: Meter) -> Mapping[str, Any]:
    return {
        "input_tokens": meter.prompt_tokens,
        "input_tokens_details": {"cached_tokens": meter.cached_tokens},
        "output_tokens": meter.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": meter.total_tokens,
    }
