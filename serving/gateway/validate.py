"""What may be asked: bodies are decoded into closed, bounded types, and the engine gets what those types say and nothing else.

Engines take far more than OpenAI's API (vLLM accepts `n` up to 16384, a chat template of the client's own, another's cache
salt, a priority), and ignore what they do not know. So this is an allow-list: an unknown field is refused by name, every
number has bounds, and the body that goes to the engine is written anew from the decoded values.

Nesting is measured by a linear scan before anything recurses. Whatever is refused here has cost no engine anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from policies.context.compaction import Strategy
from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.messages import Closed, Message, NamedTool, PromptRef, ShortText, Tool, ToolChoice
from serving.gateway.schemas import ResponseFormat, check_format, check_tools, is_deeper_than

Endpoint = Literal["chat.completions", "completions", "responses", "embeddings"]
ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat.completions",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
}
ENGINE_PATHS: dict[Endpoint, str] = {
    "chat.completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/chat/completions",
    "embeddings": "/v1/embeddings",
}
"""What engines are asked for; `responses.py` says why it is a chat where a response was asked for."""
ENGINE_DOCUMENTS = frozenset({"/v1/embeddings"})
"""Paths on which engines answer with a document; on all others with a stream."""
COMPLETIONS_MAX_TOKENS = 16
"""`max_tokens` of a completion that names none: OpenAI's documented default, and vLLM's."""
MaxTokens = Annotated[int, Meta(ge=1, le=1_048_576)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
LogitBias = Annotated[
    dict[Annotated[str, Meta(pattern="^[0-9]{1,10}$")], Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)
]
"""By token id."""
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], ShortText], Meta(max_length=16)]


class StreamOptions(Closed):
    """What a stream carries besides its tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """OpenAI pads its events against eavesdroppers who measure them; nothing is padded here, whatever this says."""


class _Common(Closed, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=128)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    n: Annotated[int, Meta(ge=1, le=8)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    response_format: ResponseFormat | None = None
    logit_bias: LogitBias | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: ShortText | None = None
    metadata: Metadata | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    service_tier: Literal["auto", "default"] | None = None
    """From `user` on: labels of the client's own, which are taken and change nothing; but see `auto_model.NEEDS_METADATA`."""

    @property
    def is_streamed(self) -> bool:
        """The client wants events."""
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """The client's stream ends with a usage event."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def num_choices(self) -> int:
        """Answers asked for."""
        return self.n or 1


class ChatRequest(_Common, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    context: Strategy | None = None
    """What is done with a conversation that does not fit (`compaction.py`); None: what the header or the tenant says."""
    prompt: PromptRef | None = None
    """Stands before `messages` (`registered.py`)."""
    conversation: ShortText | None = None
    """The id of a stored conversation that this goes on with (`conversations.py`)."""

    @property
    def output_limit(self) -> int | None:
        """The most tokens the client wants, or None for all that fit."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Common, kw_only=True):
    """POST /v1/completions."""

    prompt: Annotated[str, Meta(min_length=1)] | Annotated[list[TokenId | str], Meta(min_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    @property
    def output_limit(self) -> int | None:
        """The most tokens the client wants."""
        return self.max_tokens or COMPLETIONS_MAX_TOKENS

    @property
    def prompt_text(self) -> str | None:
        """The prompt, where it is one text."""
        if isinstance(self.prompt, str):
            return self.prompt
        return self.prompt[0] if len(self.prompt) == 1 and isinstance(self.prompt[0], str) else None

    @property
    def prompt_ids(self) -> list[int] | None:
        """The prompt, where it is token ids."""
        if isinstance(self.prompt, str) or any(isinstance(item, str) for item in self.prompt):
            return None
        return cast("list[int]", self.prompt)


Request = ChatRequest | CompletionRequest

_DECODERS: dict[Endpoint, msgspec.json.Decoder[Any]] = {
    "chat.completions": msgspec.json.Decoder(ChatRequest),
    "completions": msgspec.json.Decoder(CompletionRequest),
}
_LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "store"})
FOR_US = _LABELS | {
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "messages",
    "context",
    "conversation",
}
"""Fields that the engine gets from us, or not at all."""
FOR_US_IN_CHATS = FOR_US | {"prompt", "registered", "head"}
_MAX_COMPLAINT_LENGTH = 400
"""An unknown field's name may be as long as the body; an answer does not send it back whole."""
_FAULT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?", re.DOTALL)
_NAMED_FIELD = re.compile(r"Object (?P<kind>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)


def parse(endpoint: Endpoint, body: bytes, *, max_depth: int) -> Request:
    """The request in `body`, a chat or a completion.

    Raises:
        ApiError: it is not UTF-8, not JSON, nested deeper than `max_depth`, or not a request that we serve; names the field.
    """
    request: Request = decoded(_DECODERS[endpoint], body, max_depth=max_depth)
    check_together(request)
    return request


def decoded(decoder: msgspec.json.Decoder[Any], body: bytes, *, max_depth: int) -> Any:
    """What `decoder` makes of `body`.

    Raises:
        ApiError: it is not UTF-8, not JSON, nested deeper than `max_depth`, or not of the decoder's type; names the field.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise ApiError(errors.INVALID_UTF8, f"The body is not valid UTF-8: byte {error.start} cannot be read.") from error
    if is_deeper_than(body, max_depth):
        raise ApiError(errors.JSON_TOO_DEEP, f"The body is nested more than {max_depth} levels deep.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(errors.INVALID_JSON, f"The body is not valid JSON: {error}.") from error


def engine_body(request: Request, *, model: str, max_tokens: int, cache_salt: str, with_ids: bool = False) -> bytes:
    """The body for the engine: always a stream with running usage, so that what was generated is known whatever happens; and all
    token ids where they are wanted."""
    fields: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": max_tokens,
        "cache_salt": cache_salt,
    }
    if with_ids:
        fields["return_token_ids"] = True
    if isinstance(request, ChatRequest):
        fields["messages"] = [message.plain() for message in request.messages]
    for_us = FOR_US_IN_CHATS if isinstance(request, ChatRequest) else FOR_US
    for name in request.__struct_fields__:
        if name not in for_us and (value := getattr(request, name)) is not None:
            fields[name] = value
    return msgspec.json.encode(fields)


def check_together(request: Request) -> None:
    """Rules that concern more than one field.

    Raises:
        ApiError: one is broken.
    """
    if request.stream_options is not None and not request.stream:
        raise ApiError(errors.INVALID_VALUE, "`stream_options` is allowed only with `stream: true`.", param="stream_options")
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            raise ApiError(errors.INVALID_VALUE, "`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
        if request.store:
            raise ApiError(errors.UNSUPPORTED_PARAMETER, "`store: true` is not supported: answers are not kept.", param="store")
        check_messages(request.messages)
        _check_tools(request)
    elif isinstance(request.prompt, list) and not (request.prompt_text or request.prompt_ids):
        reason = "`prompt` must be a string, a list of one string, or a list of token ids; send several prompts one by one."
        raise ApiError(errors.INVALID_VALUE, reason, param="prompt")
    if request.response_format is not None:
        check_format(request.response_format)


def check_messages(messages: Sequence[Message]) -> None:
    """Rules for the messages of a conversation.

    Raises:
        ApiError: one is broken.
    """
    for number, message in enumerate(messages):
        if message.tool_calls is not None and message.role != "assistant":
            param = f"messages[{number}].tool_calls"
            raise ApiError(errors.INVALID_VALUE, f"`{param}`: only an assistant calls tools.", param=param)
        if message.content is None and message.tool_calls is None:
            param = f"messages[{number}].content"
            raise ApiError(errors.INVALID_VALUE, f"`{param}`: only a message with `tool_calls` goes without.", param=param)


def _check_tools(request: ChatRequest) -> None:
    choice, tools = request.tool_choice, request.tools
    if tools is None:
        for param in ("tool_choice", "parallel_tool_calls"):
            if getattr(request, param) not in (None, "none"):
                raise ApiError(errors.INVALID_VALUE, f"`{param}` is allowed only with `tools`.", param=param)
        return
    check_tools(tools)
    if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in tools}:
        reason = f"`tool_choice` names `{choice.function.name}`, which is not among `tools`."
        raise ApiError(errors.INVALID_VALUE, reason, param="tool_choice")
    is_forced = isinstance(choice, NamedTool) or choice == "required"
    if is_forced and request.response_format is not None and request.response_format.type != "text":
        reason = "An answer is either a call of a tool or of a `response_format`, not both."
        raise ApiError(errors.INVALID_VALUE, reason, param="response_format")


def _refusal(message: str) -> ApiError:
    """msgspec's complaint as an answer. ``Expected `int` <= 8 - at `$.n` `` is `invalid_value` of `n`."""
    fault = _FAULT.fullmatch(message[:_MAX_COMPLAINT_LENGTH])
    what, where = (fault["what"], fault["where"] or "") if fault else (message, "")
    named = _NAMED_FIELD.fullmatch(what)
    if named is not None:
        param = f"{where}.{named['name']}" if where else named["name"]
        if named["kind"] == "contains unknown":
            return ApiError(errors.UNSUPPORTED_PARAMETER, f"`{param}` is not supported.", param=param)
        return ApiError(errors.MISSING_PARAMETER, f"`{param}` is missing.", param=param)
    if ".content[" in where and where.endswith(".type"):
        return ApiError(errors.UNSUPPORTED_PARAMETER, f"`{where}` is not supported: content is text.", param=where)
    return ApiError(errors.INVALID_VALUE, f"{f'`{where}`: ' if where else ''}{what}.", param=where or None)
