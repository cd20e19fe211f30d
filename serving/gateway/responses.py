"""`POST /v1/responses`: what it asks for, as the chat that engines are asked for instead. No I/O.

vLLM serves this API too, but its stream carries no running counts: whoever hangs up halfway would be billed by a guess or not
at all (docs/decisions/0004-always-stream.md). A chat says the same and is counted exactly, by the engine and by us, and engines
that serve chats alone serve this as well. `respond.py` tells the chat's answer as a response.

Nothing is kept between requests but conversations that were stored on purpose (`conversations.py`); else the conversation comes
with each request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.gateway import errors, validate
from serving.gateway.errors import ApiError
from serving.gateway.messages import (
    CallId,
    Closed,
    Function,
    FunctionCall,
    FunctionName,
    Message,
    NamedFunction,
    NamedTool,
    PromptRef,
    ShortText,
    Tool,
    ToolCall,
)
from serving.gateway.schemas import JsonSchema, ResponseFormat
from serving.gateway.validate import ChatRequest, MaxTokens, Metadata


class Part(Closed):
    """A part of a message's content; text is the only kind."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[msgspec.Raw] | None = None
    logprobs: list[msgspec.Raw] | None = None
    """Answers carry these two; they are not read."""


Content = str | Annotated[list[Part], Meta(min_length=1, max_length=1024)]


class Item(Closed):
    """A message, the call of a function, or what the call gave."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    call_id: CallId | None = None
    output: Content | None = None
    id: ShortText | None = None
    status: ShortText | None = None
    """Answers carry these two; they are not read."""


class FunctionTool(Closed):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Meta(max_length=16_384)] | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    strict: bool | None = None


class NamedFunctionTool(Closed):
    """The one function that is to be called."""

    type: Literal["function"]
    name: FunctionName


class TextFormat(Closed):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")] | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    description: ShortText | None = None
    strict: bool | None = None


class Text(Closed):
    """How the answer is written."""

    format: TextFormat | None = None


class StreamOptions(Closed):
    """Taken, and changes nothing."""

    include_obfuscation: bool | None = None


class ConversationOf(Closed):
    """A stored conversation by its id."""

    id: ShortText


class _Asked(Closed, kw_only=True):
    """What a response and the count of its input have in common."""

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    input: Annotated[str, Meta(min_length=1)] | Annotated[list[Item], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` is our `truncate-oldest`, `disabled` our `refuse`."""
    prompt: PromptRef | None = None
    """Its messages stand before `instructions`."""


class CountRequest(_Asked, kw_only=True):
    """POST /v1/responses/input_tokens."""


class ResponsesRequest(_Asked, kw_only=True):
    """POST /v1/responses."""

    conversation: ShortText | ConversationOf | None = None
    """A stored conversation that this goes on with: `input` and the answer are stored behind it."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    store: bool | None = None
    user: ShortText | None = None
    metadata: Metadata | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    service_tier: Literal["auto", "default"] | None = None


_response = msgspec.json.Decoder(ResponsesRequest)
_count = msgspec.json.Decoder(CountRequest)


def parse(body: bytes, *, max_depth: int) -> tuple[ResponsesRequest, ChatRequest]:
    """The request in `body`, and the chat that it comes to.

    Raises:
        ApiError: it is not one that we serve; names the field.
    """
    request: ResponsesRequest = validate.decoded(_response, body, max_depth=max_depth)
    if request.store:
        raise ApiError(errors.UNSUPPORTED_PARAMETER, "`store: true` is not supported: responses are not kept.", param="store")
    if request.stream_options is not None and not request.stream:
        raise ApiError(errors.INVALID_VALUE, "`stream_options` is allowed only with `stream: true`.", param="stream_options")
    chat = _chat(request)
    named = request.conversation
    chat.conversation = named.id if isinstance(named, ConversationOf) else named
    chat.stream, chat.max_completion_tokens = request.stream, request.max_output_tokens
    chat.temperature, chat.top_p, chat.metadata = request.temperature, request.top_p, request.metadata
    return request, chat


def parse_count(body: bytes, *, max_depth: int) -> ChatRequest:
    """The chat whose prompt is to be counted.

    Raises:
        ApiError: it is not one that we serve; names the field.
    """
    return _chat(validate.decoded(_count, body, max_depth=max_depth))


def _chat(asked: _Asked) -> ChatRequest:
    messages = [Message("system", asked.instructions)] if asked.instructions is not None else []
    messages += [Message("user", asked.input)] if isinstance(asked.input, str) else messages_of(asked.input, "input")
    choice = asked.tool_choice
    chat = ChatRequest(
        model=asked.model,
        messages=messages,
        tools=[_tool(tool) for tool in asked.tools] if asked.tools else None,
        tool_choice=NamedTool("function", NamedFunction(choice.name)) if isinstance(choice, NamedFunctionTool) else choice,
        parallel_tool_calls=asked.parallel_tool_calls if asked.tools else None,
        response_format=_format(asked.text),
        prompt=asked.prompt,
    )
    if asked.truncation is not None:
        chat.context = "truncate-oldest" if asked.truncation == "auto" else "refuse"
    if not asked.tools and choice == "auto":  # OpenAI's default, which some clients send
        chat.tool_choice = None
    validate.check_together(chat)
    return chat


def messages_of(items: Sequence[Item], field: str) -> list[Message]:
    """The items of `field` as a chat's messages. Calls that follow each other, or an assistant's text, become one, as chats have
    them.

    Raises:
        ApiError: an item is not whole; names it.
    """
    messages: list[Message] = []
    for number, item in enumerate(items):
        place = f"{field}[{number}]"
        if item.type == "message":
            role, content = _given(item.role, place, "role"), _given(item.content, place, "content")
            messages.append(Message(role, _text(content)))
        elif item.type == "function_call_output":
            output, call_id = _given(item.output, place, "output"), _given(item.call_id, place, "call_id")
            messages.append(Message("tool", _text(output), tool_call_id=call_id))
        else:
            function = FunctionCall(_given(item.name, place, "name"), _given(item.arguments, place, "arguments"))
            if not messages or messages[-1].role != "assistant":
                messages.append(Message("assistant", None))
            call = ToolCall(_given(item.call_id, place, "call_id"), function)
            messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), call]
    return messages


def _given(value: Any, place: str, field: str) -> Any:
    if value is None:
        param = f"{place}.{field}"
        raise ApiError(errors.MISSING_PARAMETER, f"`{param}` is missing.", param=param)
    return value


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _tool(tool: FunctionTool) -> Tool:
    return Tool("function", Function(tool.name, tool.description, tool.parameters, tool.strict))


def _format(text: Text | None) -> ResponseFormat | None:
    given = text.format if text is not None else None
    if given is None or given.type != "json_schema":
        return None if given is None else ResponseFormat(given.type)
    if given.name is None or bytes(given.schema) == b"null":
        param = "text.format." + ("name" if given.name is None else "schema")
        raise ApiError(errors.MISSING_PARAMETER, f"`{param}` is missing.", param=param)
    return ResponseFormat("json_schema", JsonSchema(given.name, given.schema, given.description, given.strict))
