"""How many tokens a prompt has, and how many may follow it: counted by the model's own template and tokenizer, never estimated.

The count is what limits are reserved by, what a refusal states, and what a bill opens with; the hashes of the tokens say which
engine has seen the like. Short prompts are counted on the event loop, since a thread's hand-over costs more than they do; longer
ones (`PromptCounter.inline_chars`) in threads, since a stream must not wait for another's prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from policies.routing.model_choice import BYTES_PER_TOKEN, ModelChoice
from policies.routing.prefix_index import Chain, chain_of
from serving.gateway import errors
from serving.gateway.embeddings import EmbeddingsRequest
from serving.gateway.errors import ApiError
from serving.gateway.messages import Message, Tool
from serving.gateway.prompts import PromptCounter, RefusedConversation
from serving.gateway.registered import PromptedChat
from serving.gateway.releases import LoadedRelease, ReleaseBook
from serving.gateway.validate import ChatRequest, Request
from serving.settings import ServedModel

_T = TypeVar("_T")
_MESSAGE_CHARS = 30
"""What a template adds to a message, roughly."""
_NUM_COUNTERS = 2
_NOT_READY_RETRY_S = 5.0
MAX_ANSWER_ROOM_TOKENS = 1024


@dataclass(frozen=True)
class Context:
    """A request's place in its model's window."""

    release_id: str
    prompt_tokens: int
    max_tokens: int
    """The most tokens of each answer: what the client asked for, or what the window leaves."""
    counter: PromptCounter
    """The release's tokenizer and template."""
    chain: Chain = ()
    """The prompt's blocks, for the choice of an engine."""


class ContextTooLong(ApiError):
    """`context_length_exceeded`, and what it takes to make the conversation shorter."""

    def __init__(
        self, request: Request, model: ServedModel, release: LoadedRelease, window_tokens: int, prompt_tokens: int
    ) -> None:
        wanted = request.output_limit
        param = "messages" if isinstance(request, ChatRequest) else "prompt"
        asked = f"{prompt_tokens} in the prompt" + ("" if wanted is None else f" and {wanted} for the answer")
        limit = f"This model's maximum context length is {window_tokens} tokens"
        super().__init__(
            errors.CONTEXT_LENGTH_EXCEEDED, f"{limit}. However, you asked for {asked}. Please ask for less.", param=param
        )
        self.model = model
        self.release = release
        self.window_tokens = window_tokens
        self.prompt_tokens = prompt_tokens
        self.choice: ModelChoice | None = None
        """How `auto` came to this class."""


class ContextCounter:
    """Places requests in their model's window."""

    def __init__(self, releases: ReleaseBook) -> None:
        self._releases = releases
        self._threads = ThreadPoolExecutor(_NUM_COUNTERS, thread_name_prefix="tokens")

    async def place(self, model: ServedModel, request: Request, cache_salt: str, *, leaves_room: bool = False) -> Context:
        """Count the prompt and fit the answer behind it: what the client asked for, or else one token, or with `leaves_room` as
        many as `answer_room` says. `cache_salt` keeps the tenant's blocks apart from others'.

        Raises:
            ContextTooLong: it does not fit.
            ApiError: `invalid_value` where the template refuses the messages, or `model_not_ready`.
        """
        release = self._release(model, request.model)
        window = min(model.context_window_tokens, release.context_window_tokens)
        prompt_tokens, chain = await self._count(release, request, cache_salt)
        wanted = request.output_limit
        if prompt_tokens + (wanted or (answer_room(window) if leaves_room else 1)) > window:
            raise ContextTooLong(request, model, release, window, prompt_tokens)
        return Context(
            release.release_id, prompt_tokens, window - prompt_tokens if wanted is None else wanted, release.counter, chain
        )

    async def prompt_tokens(self, model_class: str, messages: Sequence[Message]) -> int | None:
        """Tokens of these messages by themselves; None while the class is not ready, and where its template refuses them."""
        release = self._releases.get(model_class)
        if release is None:
            return None
        counter = release.counter
        try:
            return len(await self.in_thread(lambda: counter.chat_ids([message.plain() for message in messages])))
        except RefusedConversation:
            return None

    def release_id(self, model_class: str) -> str:
        """The class's release; empty while it is not ready."""
        release = self._releases.get(model_class)
        return "" if release is None else release.release_id

    def is_ready(self, model_class: str) -> bool:
        """A release of the class has been read, so its prompts can be counted."""
        return self._releases.get(model_class) is not None

    def estimate(self, smallest: ServedModel, request: Request) -> int:
        """About how many tokens the prompt has, to choose a class by: as the smallest class counts them, or a quarter of its
        bytes where it is too long to be counted on the event loop, the template refuses it, or that class is not ready.
        """
        release = self._releases.get(smallest.model_class)
        if isinstance(request, ChatRequest):
            if release is not None and _chars_to_encode(release, request) <= release.counter.inline_chars:
                with suppress(RefusedConversation):
                    return len(_chat_ids(release, request))
            texts = [message.text or "" for message in request.messages]
            others = _chat_chars(request) - sum(len(text) + _MESSAGE_CHARS for text in texts)
            return (sum(len(text.encode()) for text in texts) + others) // BYTES_PER_TOKEN
        text = request.prompt_text
        if text is None:
            return len(request.prompt_ids or ())
        if release is not None and len(text) <= release.counter.inline_chars:
            return len(release.counter.text_ids(text))
        return len(text.encode()) // BYTES_PER_TOKEN

    async def place_inputs(self, model: ServedModel, request: EmbeddingsRequest) -> Context:
        """Count what vectors are made of, each of which has to fit the window; nothing follows it.

        Raises:
            ApiError: `context_length_exceeded`, `invalid_value` or `model_not_ready`.
        """
        release = self._release(model, request.model)
        window = min(model.context_window_tokens, release.context_window_tokens)

        def counts() -> list[int]:
            return [len(release.counter.text_ids(one)) if isinstance(one, str) else len(one) for one in request.inputs]

        for one in request.inputs:
            if isinstance(one, list):
                _check_ids(release, one, "input")
        num_chars = sum(len(one) for one in request.inputs if isinstance(one, str))
        found = counts() if num_chars <= release.counter.inline_chars else await self.in_thread(counts)
        if max(found) > window:
            reason = f"This model's maximum context length is {window} tokens. However, an input has {max(found)}."
            raise ApiError(errors.CONTEXT_LENGTH_EXCEEDED, reason, param="input")
        return Context(release.release_id, sum(found), 0, release.counter)

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _count(self, release: LoadedRelease, request: Request, salt: str) -> tuple[int, Chain]:
        def chained(ids: list[int]) -> tuple[int, Chain]:
            return len(ids), chain_of(ids, adapter="", salt=salt)

        if isinstance(request, ChatRequest):
            try:
                num_chars = _chars_to_encode(release, request)
                return await self._maybe_in_thread(release, num_chars, lambda: chained(_chat_ids(release, request)))
            except RefusedConversation as error:
                reason = f"The model's chat template refuses these messages: {error!s:.200}"
                raise ApiError(errors.INVALID_VALUE, reason, param="messages") from error
        text, ids = request.prompt_text, request.prompt_ids
        if text is None:
            return chained(_check_ids(release, ids or []))
        return await self._maybe_in_thread(release, len(text), lambda: chained(release.counter.text_ids(text)))

    async def _maybe_in_thread(
        self, release: LoadedRelease, num_chars: int, count: Callable[[], tuple[int, Chain]]
    ) -> tuple[int, Chain]:
        return count() if num_chars <= release.counter.inline_chars else await self.in_thread(count)

    async def in_thread(self, count: Callable[[], _T]) -> _T:
        """What `count` gives, counted away from the streams."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, count)

    def _release(self, model: ServedModel, name: str) -> LoadedRelease:
        release = self._releases.get(model.model_class)
        if release is None:
            raise not_ready(name)
        return release


def not_ready(name: str) -> ApiError:
    """Nothing has been published under this name yet."""
    message = f"The model `{name}` has not been published yet."
    return ApiError(errors.MODEL_NOT_READY, message, retry_after_s=_NOT_READY_RETRY_S)


def answer_room(window_tokens: int) -> int:
    """Tokens that a conversation which is shortened leaves for an answer of no stated length."""
    return min(MAX_ANSWER_ROOM_TOKENS, window_tokens // 4)


def _chat_ids(release: LoadedRelease, request: ChatRequest) -> list[int]:
    tools = [tool.plain() for tool in request.tools] if request.tools else None
    messages = [message.plain() for message in request.messages]
    if isinstance(request, PromptedChat) and request.is_whole:
        return release.counter.prompted_ids(request.registered, len(request.head), messages, tools)
    return release.counter.chat_ids(messages, tools)


def _chars_to_encode(release: LoadedRelease, request: ChatRequest) -> int:
    """Characters of the conversation; those of a registered prompt whose ids are remembered take an eighth of the time."""
    num_chars = _chat_chars(request)
    if (
        isinstance(request, PromptedChat)
        and request.is_whole
        and request.tools is None
        and release.counter.heads.knows(request.registered)
    ):
        num_chars -= sum(map(_num_chars, request.head)) * 7 // 8
    return num_chars


def _chat_chars(request: ChatRequest) -> int:
    return sum(map(_num_chars, request.messages)) + sum(map(_num_tool_chars, request.tools or ()))


def _num_chars(message: Message) -> int:
    calls = sum(len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or ())
    return _MESSAGE_CHARS + len(message.text or "") + calls


def _num_tool_chars(tool: Tool) -> int:
    return _MESSAGE_CHARS + len(tool.function.description or "") + len(bytes(tool.function.parameters))


def _check_ids(release: LoadedRelease, ids: list[int], param: str = "prompt") -> list[int]:
    if max(ids) >= release.counter.num_token_ids:
        message = f"`{param}` has a token id over {release.counter.num_token_ids - 1}, the last that this model knows."
        raise ApiError(errors.INVALID_VALUE, message, param=param)
    return ids
