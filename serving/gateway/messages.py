"""What a conversation is made of: messages, calls of tools in them, and the tools that a model may call, as bounded types.

The same rules as in `validate.py`, which checks what concerns more than one field: nothing passes that is not named here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

ShortText = Annotated[str, Meta(max_length=512)]
FunctionName = Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,64}$")]
CallId = Annotated[str, Meta(min_length=1, max_length=128)]


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    """Refuses fields that it does not name."""


class TextPart(Closed):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class FunctionCall(Closed):
    """Which function a model called, and with what."""

    name: FunctionName
    arguments: str
    """JSON, as the model wrote it: it may not be valid."""


class ToolCall(Closed):
    """One call in an assistant's message."""

    id: CallId
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(Closed):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Meta(min_length=1, max_length=1024)] | None = None
    """Only an assistant's message that calls tools may go without."""
    name: Annotated[str, Meta(max_length=64)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(min_length=1, max_length=128)] | None = None
    tool_call_id: CallId | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    """Answers carry these four as null; clients send answers back."""

    @property
    def text(self) -> str | None:
        """The content as one string; parts are joined as vLLM joins them, by line ends."""
        return "\n".join(part.text for part in self.content) if isinstance(self.content, list) else self.content

    def plain(self) -> dict[str, Any]:
        """The message as chat templates and engines take it."""
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.tool_calls is not None:
            message["tool_calls"] = msgspec.to_builtins(self.tool_calls)
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message


class PromptRef(Closed):
    """A registered prompt that stands before the messages, as OpenAI's `responses.create(prompt=…)` names one."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    version: Annotated[str, Meta(pattern="^[0-9]{1,6}$")] | None = None
    """The latest where none is named."""
    variables: Annotated[dict[str, msgspec.Raw], Meta(max_length=0)] | None = None
    """Prompts have none: the text is the same in each request, or it could not be kept warm."""

    @property
    def number(self) -> int | None:
        """The version as a number."""
        return None if self.version is None else int(self.version)


class Function(Closed):
    """A function that the model may call."""

    name: FunctionName
    description: Annotated[str, Meta(max_length=16_384)] | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    """A JSON schema of its arguments, or null."""
    strict: bool | None = None
    """The arguments follow the schema, not only JSON's grammar."""


class Tool(Closed):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """The tool as chat templates get it from vLLM (0.32): `strict` only where it was said, absent fields as None."""
        function: dict[str, Any] = {"name": self.function.name, "description": self.function.description}
        function["parameters"] = msgspec.json.decode(self.function.parameters)
        if self.function.strict is not None:
            function["strict"] = self.function.strict
        return {"type": self.type, "function": function}


class NamedFunction(Closed):
    """A function by its name."""

    name: FunctionName


class NamedTool(Closed):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool
