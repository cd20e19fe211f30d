"""What a request says of the form of its answer: tools, which of them to call, a response format. Read as vLLM reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from serving.twin.refusal import Refusal
from serving.twin.structured import Form
from serving.twin.vocabulary import Vocabulary

_NO_TOOLS = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely. (parameter=tools)"
_ALONE = "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)"
_NOT_THERE = "The tool specified in `tool_choice` does not match any of the specified `tools` (parameter=tool_choice)"


class FunctionBody(msgspec.Struct):
    """A function of a tool."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct):
    """A tool."""

    function: FunctionBody
    type: str = "function"

    def plain(self) -> dict[str, Any]:
        """As chat templates get it: `strict` only where it was said."""
        function = msgspec.to_builtins(self.function)
        if self.function.strict is None:
            del function["strict"]
        return {"type": self.type, "function": function}


def called(
    tools: Sequence[ToolBody] | None, choice: Any, *, has_parser: bool, may_answer: bool, words: Vocabulary
) -> Form | None:
    """The form of an answer that calls a tool; None where it is to be words.

    `auto` calls a tool unless it `may_answer`: the last message is a tool's, so that a client's loop comes to an end.

    Raises:
        Refusal: vLLM would refuse it, or a twin cannot follow it.
    """
    if tools == []:
        raise Refusal(400, _NO_TOOLS, "tools")
    if choice is None:
        choice = "auto" if tools else "none"
    if choice == "none":
        return None
    if not tools:
        raise Refusal(400, _ALONE, "tool_choice")
    parameters = {tool.function.name: tool.function.parameters for tool in tools}
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    if name is not None and name not in parameters:
        raise Refusal(400, _NOT_THERE, "tool_choice")
    if not has_parser:
        raise Refusal(400, _without_parser(choice, name))
    if choice == "auto" and may_answer:
        return None
    form = Form(words, tools={name: parameters[name]} if name is not None else parameters, is_named=name is not None)
    form.check()
    return form


def formatted(response_format: Any, words: Vocabulary) -> Form | None:
    """The form of an answer with a response format; None where any text will do.

    Raises:
        Refusal: a twin cannot follow it.
    """
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind in (None, "text"):
        return None
    form = Form(words, response_format["json_schema"]["schema"] if kind == "json_schema" else None)
    form.check()
    return form


def _without_parser(choice: Any, name: str | None) -> str:
    if choice == "auto":
        return '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    wanted = f'"{choice}"' if name is None else f'function "{name}"'
    return f"tool_choice={wanted} requires --tool-call-parser to be set"
