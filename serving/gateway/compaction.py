"""Conversations that do not fit their model's window are made to fit as the request or its tenant has declared.

What is dropped is decided by `policies.context.compaction`, by message counts; the model's own template and tokenizer then count
what is kept, and what is still too long is shortened further, so that no prompt beyond the window is ever sent. The client is
told in headers, and the usage event says it too.

`summarise` asks the smallest class that the tenant may use for a summary of what is dropped: a request like any other, within
the tenant's limits, with a bill of its own that names the event it was for. The summary goes in front of the first user's
message that is kept: it is made of what users wrote, so it must not speak with the system's voice. Where no summary comes, or it
finds no room, the conversation is shortened by `truncate-oldest`, and the reason says why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from policies.context.compaction import STRATEGIES, Compaction, Size, Strategy, decide_compaction, least_kept
from policies.routing.model_choice import SIZES
from serving.gateway import errors
from serving.gateway.aside import NoAnswer
from serving.gateway.auth import Principal
from serving.gateway.context import Context, ContextCounter, ContextTooLong, answer_room
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Headers
from serving.gateway.messages import Message
from serving.gateway.models import Models
from serving.gateway.prompts import PromptCounter, RefusedConversation
from serving.gateway.validate import ChatRequest
from serving.settings import ServedModel

STRATEGY_HEADER = b"x-flotilla-context"
"""Of a request: what to do with a conversation that is too long. Of an answer: what was done."""
REASON_HEADER, DROPPED_HEADER = b"x-flotilla-context-reason", b"x-flotilla-context-dropped"
MAX_SUMMARY_TOKENS = 512
_TO_SUMMARISE = (
    "You write summaries of conversations. Keep names, numbers, decisions, open questions and what the user wants; leave out"
    " pleasantries. Write plain text, a few sentences."
)
_SUMMARISE = "Summarise the conversation so far."
_NUM_AROUND = 2
"""Messages of ours in a request for a summary."""
_SUMMARY = "[Summary of the earlier conversation, which is not shown]\n{}\n[End of the summary]\n\n{}"

Ask = Callable[[ChatRequest], Awaitable[str]]
"""The text of the answer to a request of our own. Raises `NoAnswer`."""


@dataclass(frozen=True)
class Compacted:
    """How a conversation was shortened."""

    strategy: Strategy
    """By what it was shortened in the end."""
    reason: str
    """`over_window`, or `no_summary:` and why it became `truncate-oldest`."""
    dropped: tuple[int, ...]
    """Messages by number, from 0."""
    dropped_tokens: int
    """Of the prompt as it came, less that of what was kept."""
    prompt_tokens: int
    """As it came."""
    window_tokens: int

    @property
    def headers(self) -> Headers:
        """What the client is told."""
        why = f"{self.reason}; prompt_tokens={self.prompt_tokens} window_tokens={self.window_tokens}"
        dropped = f"messages={ranges(self.dropped)} tokens={self.dropped_tokens}"
        return (
            (STRATEGY_HEADER, self.strategy.encode()),
            (REASON_HEADER, why.encode()),
            (DROPPED_HEADER, dropped.encode()),
        )


@dataclass(frozen=True)
class Shortened:
    """What a conversation comes to."""

    request: ChatRequest
    dropped: tuple[int, ...]
    tokens: int
    """Of the prompt, counted exactly."""


class Compactor:
    """Shortens conversations."""

    def __init__(self, models: Models, context: ContextCounter) -> None:
        self._models = models
        self._context = context

    async def compact(
        self, too_long: ContextTooLong, request: ChatRequest, strategy: Strategy, principal: Principal, ask: Ask
    ) -> tuple[ChatRequest, Context, Compacted | None]:
        """The request as it fits, its place in the window, and what was dropped, if anything had to be.

        Raises:
            ApiError: `too_long`, where what may not be dropped does not fit by itself; or as `ContextCounter.place` says.
        """
        window_tokens, counter = too_long.window_tokens, too_long.release.counter
        wanted = request.output_limit
        reason = "over_window"
        if strategy == "summarise":
            try:
                room_tokens = window_tokens - (wanted or answer_room(window_tokens))
                return await self._summarise(too_long, request, room_tokens, principal, ask)
            except NoAnswer as failure:
                strategy, reason = "truncate-oldest", f"no_summary:{failure}"
        for answer_tokens in [wanted] if wanted is not None else [answer_room(window_tokens), 1]:
            max_prompt_tokens = window_tokens - answer_tokens
            if too_long.prompt_tokens <= max_prompt_tokens:  # nothing can go, and nothing has to for an answer of some length
                return request, await self._context.place(too_long.model, request, principal.cache_salt), None
            short = await self._shorten(counter, request, too_long.prompt_tokens, strategy, max_prompt_tokens)
            if short is not None:
                context = await self._context.place(too_long.model, short.request, principal.cache_salt)
                return short.request, context, _compacted(too_long, strategy, reason, short)
        raise too_long

    async def _summarise(
        self, too_long: ContextTooLong, request: ChatRequest, room_tokens: int, principal: Principal, ask: Ask
    ) -> tuple[ChatRequest, Context, Compacted]:
        """As `compact`.

        Raises:
            NoAnswer: there is no summary that could take the place of what is dropped.
        """
        counter = too_long.release.counter
        summary_tokens = min(MAX_SUMMARY_TOKENS, too_long.window_tokens // 8)
        left_tokens = room_tokens - summary_tokens - counter.num_tokens(_SUMMARY)
        short = await self._shorten(counter, request, too_long.prompt_tokens, "summarise", left_tokens)
        if short is None:
            raise NoAnswer("no_room")
        place = next((number for number, message in enumerate(short.request.messages) if message.role == "user"), None)
        available = self._models.available_to(principal.tenant)
        if place is None or not available:
            raise NoAnswer("no_question" if place is None else errors.MODEL_NOT_FOUND.code)
        model = min(available, key=lambda served: SIZES.index(served.model_class))
        said = [request.messages[number] for number in short.dropped]
        wanted = ChatRequest(
            model=model.model_class,
            messages=[Message("system", _TO_SUMMARISE), *said, Message("user", _SUMMARISE)],
            max_completion_tokens=summary_tokens,
            temperature=0,
            context="refuse",
        )
        summary = await ask(await self._with_what_fits(model, wanted, principal))
        messages = list(short.request.messages)
        question = messages[place]
        messages[place] = msgspec.structs.replace(question, content=_SUMMARY.format(summary, question.text or ""))
        summarised = msgspec.structs.replace(request, messages=messages)
        try:
            context = await self._context.place(too_long.model, summarised, principal.cache_salt, leaves_room=True)
        except ContextTooLong as longer:
            raise NoAnswer("too_long") from longer
        return summarised, context, _compacted(too_long, "summarise", "over_window", short)

    async def _with_what_fits(self, model: ServedModel, wanted: ChatRequest, principal: Principal) -> ChatRequest:
        """The request for a summary, of the newest that fits its own window.

        Raises:
            NoAnswer: nothing does, or it cannot be counted.
        """
        try:
            await self._context.place(model, wanted, principal.cache_salt)
            return wanted
        except ContextTooLong as longer:
            room_tokens = longer.window_tokens - (wanted.output_limit or 1)
            short = await self._shorten(longer.release.counter, wanted, longer.prompt_tokens, "truncate-oldest", room_tokens)
        except ApiError as error:
            raise NoAnswer(error.kind.code) from error
        if short is None or len(short.dropped) == len(wanted.messages) - _NUM_AROUND:
            raise NoAnswer("too_long")
        return short.request

    async def _shorten(
        self, counter: PromptCounter, request: ChatRequest, prompt_tokens: int, strategy: Strategy, max_prompt_tokens: int
    ) -> Shortened | None:
        try:
            return await self._context.in_thread(
                lambda: shorten(counter, request, strategy, prompt_tokens=prompt_tokens, max_prompt_tokens=max_prompt_tokens)
            )
        except RefusedConversation as error:
            reason = f"The model's chat template refuses what is left of these messages: {error!s:.200}"
            raise ApiError(errors.INVALID_VALUE, reason, param="messages") from error


def shorten(
    counter: PromptCounter, request: ChatRequest, strategy: Strategy, *, prompt_tokens: int, max_prompt_tokens: int
) -> Shortened | None:
    """`request`, whose prompt has `prompt_tokens`, as `strategy` makes it fit `max_prompt_tokens`, which are fewer; None where
    what may not be dropped has more by itself. Every count that decides is of a whole prompt; it takes two or three. Blocks.

    Raises:
        RefusedConversation: the template refuses what is left.
    """
    messages = request.messages
    tools = [tool.plain() for tool in request.tools] if request.tools else None

    def tokens_of(numbers: Sequence[int]) -> int:
        return len(counter.chat_ids([messages[number].plain() for number in numbers], tools))

    bare = [_size(message, 0) for message in messages]
    least = least_kept(bare, strategy)
    least_tokens = tokens_of(least)
    if least_tokens > max_prompt_tokens:
        return None
    own = {number: counter.num_tokens(_words(messages[number])) for number in set(range(len(messages))) - set(least)}
    around = -(-max(0, prompt_tokens - least_tokens - sum(own.values())) // max(1, len(own)))
    sizes = [_size(message, max(1, own[number] + around) if number in own else 0) for number, message in enumerate(messages)]
    limit_tokens = max_prompt_tokens
    while True:  # each time with a lower limit, down to what is kept at the least, which fits
        decision: Compaction = decide_compaction(
            sizes, strategy=strategy, max_prompt_tokens=limit_tokens, fixed_tokens=least_tokens
        )
        kept_tokens = tokens_of(decision.kept)
        if kept_tokens <= max_prompt_tokens:
            kept = [messages[number] for number in decision.kept]
            return Shortened(msgspec.structs.replace(request, messages=kept), decision.dropped, kept_tokens)
        limit_tokens = max(least_tokens, decision.kept_tokens - (kept_tokens - max_prompt_tokens))


def strategy_of(request: ChatRequest, headers: Mapping[bytes, bytes], default: Strategy) -> Strategy:
    """What the request says, in its body, else in its header; else the tenant's `default`.

    Raises:
        ApiError: `invalid_value`, the header names no strategy.
    """
    if request.context is not None:
        return request.context
    said = headers.get(STRATEGY_HEADER)
    if said is None:
        return default
    for strategy in STRATEGIES:
        if said == strategy.encode():
            return strategy
    param = STRATEGY_HEADER.decode()
    message = f"`{param}`: `{said.decode('latin-1'):.40}` is no strategy; there are {', '.join(STRATEGIES)}."
    raise ApiError(errors.INVALID_VALUE, message, param=param)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, those that follow each other as a range: `1-3,7` for 1, 2, 3, 7; empty for none."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def context_headers(compacted: Compacted | None) -> Headers:
    """What the client is told; nothing where nothing was dropped."""
    return () if compacted is None else compacted.headers


def _compacted(too_long: ContextTooLong, strategy: Strategy, reason: str, short: Shortened) -> Compacted:
    dropped_tokens = too_long.prompt_tokens - short.tokens
    return Compacted(strategy, reason, short.dropped, dropped_tokens, too_long.prompt_tokens, too_long.window_tokens)


def _size(message: Message, tokens: int) -> Size:
    calls = tuple(call.id for call in message.tool_calls or ())
    answers = message.tool_call_id if message.role == "tool" else None
    return Size(message.role, tokens, calls, answers or "")


def _words(message: Message) -> str:
    calls = "".join(call.function.name + call.function.arguments for call in message.tool_calls or ())
    return (message.text or "") + calls
