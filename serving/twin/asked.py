"""What a request asks for: bodies of chat and plain completions, read as vLLM reads them, and refused in its words.

Unknown fields are ignored, as vLLM ignores them. What a twin cannot do (some of what a JSON schema may say, a bias on tokens) is
refused rather than ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from serving.gateway.prompts import RefusedConversation
from serving.twin.refusal import Refusal
from serving.twin.structured import Form
from serving.twin.tools import ToolBody, called, formatted
from serving.twin.vocabulary import Vocabulary

COMPLETIONS_MAX_TOKENS = 16
MAX_LOGPROBS = 20
"""vLLM's default."""


def core_died(status: int) -> Refusal:
    """What vLLM says once its engine core has died."""
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    return Refusal(status, message, kind="InternalServerError")


class StreamOptions(msgspec.Struct):
    """What a stream carries besides its tokens."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    n: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    logprobs: bool | int | None = None
    response_format: Any = None
    logit_bias: dict[str, float] | None = None


class TextPart(msgspec.Struct):
    """A part of a message."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates take it."""
        content = self.content
        text = "\n".join(part.text for part in content) if isinstance(content, list) else content
        others = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id, "name": self.name}
        return {"role": self.role, "content": text, **{name: value for name, value in others.items() if value is not None}}


class ChatBody(_Body, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    continue_final_message: bool = False
    tools: list[ToolBody] | None = None
    tool_choice: str | dict[str, Any] | None = None
    top_logprobs: int = 0


class CompletionBody(_Body, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]] | None = None
    echo: bool = False


@dataclass(frozen=True)
class Asked:
    """A request in terms of tokens."""

    is_chat: bool
    model: str
    prompts: Sequence[Sequence[int]]
    num_choices: int
    max_tokens: int
    min_tokens: int
    is_greedy: bool
    seed: int | None
    stop: tuple[str, ...]
    may_end: bool
    salt: str | None
    is_streamed: bool
    wants_usage: bool
    wants_running_usage: bool
    wants_token_ids: bool
    echo: tuple[str, ...]
    """The prompts' texts, where they are to come first."""
    form: Form | None
    """What the answers have to be, where not any words."""
    num_logprobs: int | None
    """With log probabilities, those of so many tokens besides the one written; None without."""
    has_parser: bool
    """A parser of tool calls reads the answers: then events without text are left out, as vLLM leaves them out."""


_chat = msgspec.json.Decoder(ChatBody)
_completion = msgspec.json.Decoder(CompletionBody)


def decode(path: str, body: bytes) -> ChatBody | CompletionBody:
    """The body of a request to `path`.

    Raises:
        Refusal: it is not JSON, or a field has the wrong type.
    """
    try:
        return _chat.decode(body) if path == "/v1/chat/completions" else _completion.decode(body)
    except msgspec.MsgspecError as error:
        raise invalid_body(error) from error


def invalid_body(error: msgspec.MsgspecError) -> Refusal:
    """A body of the wrong form. vLLM's message is pydantic's; only its frame is the same here."""
    what, _, where = str(error).partition(" - at `$")
    missing = what.partition("missing required field `")[2].rstrip("`")
    param = "body" + where.rstrip("`") + (f".{missing}" if missing else "")
    return Refusal(400, f"1 validation error:\n  {error}", param, "Bad Request")


def read(body: ChatBody | CompletionBody, vocabulary: Vocabulary, max_model_len: int, *, has_parser: bool) -> Asked:
    """`body` with its prompts as tokens; the model's name is not looked at. `has_parser`: tools can be called.

    Raises:
        Refusal: vLLM would refuse it, or a twin cannot do it.
    """
    is_greedy = body.temperature == 0
    num_choices = 1 if body.n is None else body.n
    if num_choices < 1:
        raise Refusal(400, f"n must be at least 1, got {num_choices}.")
    if is_greedy and num_choices > 1:
        raise Refusal(400, f"n must be 1 when using greedy sampling, got {num_choices}.")
    if body.temperature is not None and body.temperature < 0:
        raise _parameter("temperature must be non-negative, got %s.", "temperature", body.temperature)
    if body.stream_options and not body.stream:
        raise Refusal(400, "Stream options can only be defined when `stream=True`. (parameter=stream_options)", "stream_options")
    if body.cache_salt == "":
        message = "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)"
        raise Refusal(400, message, "cache_salt")
    if body.logit_bias:
        raise Refusal(400, "A twin has no probabilities to put a bias on.", "logit_bias")
    num_logprobs = _num_logprobs(body)
    form = formatted(body.response_format, vocabulary)
    if isinstance(body, ChatBody):
        may_answer = bool(body.messages) and body.messages[-1].role == "tool"
        call = called(body.tools, body.tool_choice, has_parser=has_parser, may_answer=may_answer, words=vocabulary)
        form = call or form
    prompts = _prompts(body, vocabulary)
    longest = max(map(len, prompts))
    if longest >= max_model_len:
        raise _too_long(max_model_len, longest, is_text=isinstance(body, ChatBody) or isinstance(body.prompt, str))
    max_tokens = _max_tokens(body, max_model_len, longest)
    options = body.stream_options
    return Asked(
        is_chat=isinstance(body, ChatBody),
        model=body.model or "",
        prompts=prompts,
        num_choices=num_choices,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        is_greedy=is_greedy,
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        may_end=not body.ignore_eos,
        salt=body.cache_salt,
        is_streamed=bool(body.stream),
        wants_usage=bool(options and options.include_usage),
        wants_running_usage=bool(options and options.include_usage and options.continuous_usage_stats),
        wants_token_ids=bool(body.return_token_ids),
        echo=_echo(body, vocabulary, prompts),
        form=form,
        num_logprobs=num_logprobs,
        has_parser=has_parser and isinstance(body, ChatBody),
    )


def _num_logprobs(body: ChatBody | CompletionBody) -> int | None:
    if isinstance(body, ChatBody):
        wanted = body.top_logprobs if body.logprobs else None
    else:
        wanted = None if body.logprobs is None or body.logprobs is False else int(body.logprobs)
    if wanted is not None and wanted > MAX_LOGPROBS:
        message = f"Requested sample logprobs of {wanted}, which is greater than max allowed: {MAX_LOGPROBS}"
        raise Refusal(400, f"{message} (parameter=logprobs, value={wanted})", "logprobs")
    return wanted


def _max_tokens(body: ChatBody | CompletionBody, max_model_len: int, longest: int) -> int:
    wanted = body.max_tokens
    if isinstance(body, ChatBody):
        wanted = body.max_completion_tokens if body.max_completion_tokens is not None else wanted
    elif wanted is None:
        wanted = COMPLETIONS_MAX_TOKENS
    if wanted is None:
        return max_model_len - longest
    if wanted < 1:
        raise _parameter("max_tokens must be at least 1, got %s.", "max_tokens", wanted)
    if wanted > max_model_len:
        message = f"max_tokens={wanted} cannot be greater than max_model_len={max_model_len}. Please request fewer output tokens."
        raise Refusal(400, f"{message} (parameter=max_tokens, value={wanted})", "max_tokens")
    return min(wanted, max_model_len - longest)


def _prompts(body: ChatBody | CompletionBody, vocabulary: Vocabulary) -> list[Sequence[int]]:
    if isinstance(body, ChatBody):
        return [vocabulary.encode(_render(body, vocabulary), add_special_tokens=False)]
    prompt = body.prompt
    if not prompt:
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise Refusal(400, message, "prompt")
    if isinstance(prompt, str):
        return [vocabulary.encode(prompt, add_special_tokens=True)]
    if isinstance(prompt[0], int):
        prompt = [prompt]  # type: ignore[list-item]
    return [_prompt(one, vocabulary) for one in prompt]


def _prompt(one: Any, vocabulary: Vocabulary) -> Sequence[int]:
    if isinstance(one, str):
        return vocabulary.encode(one, add_special_tokens=True)
    if not isinstance(one, list) or not all(isinstance(token_id, int) for token_id in one):
        raise Refusal(400, "1 validation error:\n  prompt mixes kinds", "body.prompt", "Bad Request")
    if one and (largest := max(one)) >= vocabulary.size:
        raise Refusal(400, f"Token id {largest} is out of vocabulary")
    return one


def _render(body: ChatBody, vocabulary: Vocabulary) -> str:
    messages = [message.plain() for message in body.messages]
    tools = [tool.plain() for tool in body.tools] if body.tools else None
    try:
        if body.continue_final_message:
            return vocabulary.template.render(messages[:-1], tools) + (messages[-1]["content"] or "")
        return vocabulary.template.render(messages, tools)
    except RefusedConversation as error:
        raise Refusal(400, str(error)) from error


def _echo(body: ChatBody | CompletionBody, vocabulary: Vocabulary, prompts: Sequence[Sequence[int]]) -> tuple[str, ...]:
    if isinstance(body, ChatBody) or not body.echo:
        return ()
    return tuple(vocabulary.decode(prompt) for prompt in prompts)


def _parameter(message: str, name: str, value: float) -> Refusal:
    return Refusal(400, f"{message % value} (parameter={name}, value={value})", name)


def _too_long(window: int, prompt_tokens: int, *, is_text: bool) -> Refusal:
    if prompt_tokens == window:  # vLLM first cuts the answer to the room that is left, and then finds none
        return _parameter("max_tokens must be at least 1, got %s.", "max_tokens", 0)
    # vLLM stops reading a text one token behind the window.
    counted, least = (window + 1, "at least ") if is_text else (prompt_tokens, "")
    message = (
        f"This model's maximum context length is {window} tokens. However, your prompt contains {least}{counted} input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        f"(parameter=input_tokens, value={counted})"
    )
    return Refusal(400, message, "input_tokens")
