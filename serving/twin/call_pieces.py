"""The call of a tool as vLLM's parsers tell it: whole in a document, piece by piece in a stream."""

from __future__ import annotations

import secrets
from typing import Any

from serving.twin.structured import Call


def whole_call(call: Call, text: str) -> dict[str, Any]:
    """The call in `text` as a document has it."""
    return {"id": _id(), "type": "function", "function": {"name": call.name, "arguments": text[call.begins : call.ends]}}


class CallPieces:
    """What of a text is a call, told as the text comes: first which function, then its arguments."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._num_taken = 0

    def take(self, piece: str) -> dict[str, Any]:
        """The delta for the next piece of the text; empty where it is neither name nor arguments."""
        call, begin = self._call, self._num_taken
        self._num_taken = end = begin + len(piece)
        told: dict[str, Any] = {"index": 0, "function": {}}
        if begin < call.named <= end:
            told = {"id": _id(), "type": "function", "index": 0, "function": {"name": call.name}}
        arguments = piece[max(0, call.begins - begin) : max(0, call.ends - begin)]
        if arguments:
            told["function"]["arguments"] = arguments
        return {"content": None, "tool_calls": [told]} if told["function"] else {}


def _id() -> str:
    return f"chatcmpl-tool-{secrets.token_hex(8)}"
