"""What may be asked: bodies are decoded into closed, bounded types, and the engine gets what those types say and nothing else.

Engines take far more than OpenAI's API (vLLM accepts `n` up to 16384, a chat template of the client's own, another's cache
salt, a priority), and ignore what they do not know. So this is an allow-list: an unknown field is refused by name, every
number has bounds, and the body that goes to the engine is written anew from the decoded values.

Nesting is measured by a linear scan before anything recurses. Whatever is refused here has cost no engine anything.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from serving.gateway import errors
from serving.gateway.errors import ApiError

Endpoint = Literal["chat.completions", "completions"]
ENDPOINTS: dict[str, Endpoint] = {"/v1/chat/completions": "chat.completions", "/v1/completions": "completions"}
COMPLETIONS_MAX_TOKENS = 16
"""`max_tokens` of a completion that names none: OpenAI's documented default, and vLLM's."""
MAX_SCHEMA_BYTES = 16 * 1024
MAX_SCHEMA_DEPTH = 16
"""A schema is compiled to a grammar by the engine: these keep one request from taking it down."""

MaxTokens = Annotated[int, Meta(ge=1, le=1_048_576)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
ShortText = Annotated[str, Meta(max_length=512)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class _Closed(msgspec.Struct, forbid_unknown_fields=True):
    """Refuses fields that it does not name."""


class TextPart(_Closed):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class Message(_Closed):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Meta(min_length=1, max_length=1024)]
    name: Annotated[str, Meta(max_length=64)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=64)] | None = None
    refusal: None = None
    """Answers carry it; clients send answers back."""

    @property
    def text(self) -> str:
        """The content as one string; parts are joined as vLLM joins them, by line ends."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)

    def plain(self) -> dict[str, str]:
        """The message as chat templates and engines take it."""
        message = {"role": self.role, "content": self.text}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class JsonSchema(_Closed):
    """A schema that the answer must follow."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
    schema: msgspec.Raw
    description: ShortText | None = None
    strict: bool | None = None


class ResponseFormat(_Closed):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Closed):
    """What a stream carries besides its tokens."""

    include_usage: bool | None = None


class _Common(_Closed, kw_only=True):
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
    user: ShortText | None = None

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
_OURS = frozenset({"model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "messages", "user"})
"""Fields that the engine gets from us, or not at all."""
_MAX_COMPLAINT_LENGTH = 400
"""An unknown field's name may be as long as the body; an answer does not send it back whole."""
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_FAULT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?", re.DOTALL)
_NAMED_FIELD = re.compile(r"Object (?P<kind>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)


def parse(endpoint: Endpoint, body: bytes, *, max_depth: int) -> Request:
    """The request in `body`.

    Raises:
        ApiError: it is not UTF-8, not JSON, nested deeper than `max_depth`, or not a request that we serve; names the field.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise ApiError(errors.INVALID_UTF8, f"The body is not valid UTF-8: byte {error.start} cannot be read.") from error
    if is_deeper_than(body, max_depth):
        raise ApiError(errors.JSON_TOO_DEEP, f"The body is nested more than {max_depth} levels deep.")
    try:
        request: Request = _DECODERS[endpoint].decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(errors.INVALID_JSON, f"The body is not valid JSON: {error}.") from error
    _check_together(request)
    return request


def is_deeper_than(body: bytes, max_depth: int) -> bool:
    """Arrays and objects in `body` nest more than `max_depth` deep. Linear in its length, whatever it holds; not valid JSON is
    measured as far as its brackets go. `[[1], "[["]` is two deep."""
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return False
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    return any(depth > max_depth for depth in accumulate(map(_STEPS.__getitem__, brackets)))


def engine_body(request: Request, *, model: str, max_tokens: int, cache_salt: str) -> bytes:
    """The body for the engine: always a stream with running usage, so that what was generated is known whatever happens."""
    fields: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": max_tokens,
        "cache_salt": cache_salt,
    }
    if isinstance(request, ChatRequest):
        fields["messages"] = [message.plain() for message in request.messages]
    for name in request.__struct_fields__:
        if name not in _OURS and (value := getattr(request, name)) is not None:
            fields[name] = value
    return msgspec.json.encode(fields)


def _check_together(request: Request) -> None:
    """Rules that concern more than one field.

    Raises:
        ApiError: one is broken.
    """
    if request.stream_options is not None and not request.stream:
        raise ApiError(errors.INVALID_VALUE, "`stream_options` is allowed only with `stream: true`.", param="stream_options")
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            raise ApiError(errors.INVALID_VALUE, "`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
    elif isinstance(request.prompt, list) and not (request.prompt_text or request.prompt_ids):
        reason = "`prompt` must be a string, a list of one string, or a list of token ids; send several prompts one by one."
        raise ApiError(errors.INVALID_VALUE, reason, param="prompt")
    _check_format(request.response_format)


def _check_format(response_format: ResponseFormat | None) -> None:
    if response_format is None:
        return
    wanted, given = response_format.type == "json_schema", response_format.json_schema
    if wanted != (given is not None):
        reason = "`response_format.json_schema` belongs to the type `json_schema`, which needs it."
        raise ApiError(errors.INVALID_VALUE, reason, param="response_format.json_schema")
    if given is None:
        return
    schema, param = bytes(given.schema), "response_format.json_schema.schema"
    if not schema.lstrip().startswith(b"{"):
        raise ApiError(errors.INVALID_VALUE, "A JSON schema must be an object.", param=param)
    if len(schema) > MAX_SCHEMA_BYTES or is_deeper_than(schema, MAX_SCHEMA_DEPTH):
        reason = f"A JSON schema may have {MAX_SCHEMA_BYTES} bytes and {MAX_SCHEMA_DEPTH} levels."
        raise ApiError(errors.INVALID_VALUE, reason, param=param)


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
