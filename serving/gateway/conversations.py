"""Chats that go on with a stored conversation: its messages come before those that are sent, and the turn is stored at its end.

A turn is what was sent and the answer to it. It is stored after its bill is durable and before the client is told that its answer
is complete: what was acknowledged is there, whatever dies next. An answer that broke off, or whose client left, stores nothing.
What the window has no room for is left out of what engines get (`compaction.py`), never of what is stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec
import structlog

from serving.gateway import errors
from serving.gateway.assemble import Assembly
from serving.gateway.conversation_store import (
    ID,
    Conversation,
    ConversationBusy,
    ConversationChanged,
    ConversationMissing,
    ConversationStore,
    ConversationsUnavailable,
)
from serving.gateway.errors import ApiError
from serving.gateway.messages import Message
from serving.gateway.settle import Meter
from serving.gateway.stream import Sink
from serving.gateway.validate import ChatRequest

MAX_MESSAGES = 4096
MAX_BYTES = 4 * 1024 * 1024
"""Of a conversation, the request included."""
BUSY_RETRY_S = 1.0
UNAVAILABLE_RETRY_S = 2.0
_NUM_THREADS = 8
_T = TypeVar("_T")

log = structlog.get_logger()


class StoredTurn:
    """A turn of a stored conversation while it is answered."""

    def __init__(self, held: Conversation, request: ChatRequest) -> None:
        self.held = held
        self.new = list(request.messages)
        self.is_stored = False
        self.answer = Assembly("chat.completions")

    def listening(self, sink: Sink) -> Sink:
        """`sink`, and the answer is heard."""
        return _Listening(sink, self.answer)


class Conversations:
    """The stored conversations of all tenants, off the event loop. Errors are the API's."""

    def __init__(self, store: ConversationStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "conversations")

    @asynccontextmanager
    async def turn(self, tenant: str, request: ChatRequest) -> AsyncIterator[tuple[StoredTurn, ChatRequest]]:
        """A turn of the conversation that `request` names, and the request with all that was said before.

        Raises:
            ApiError: `conversation_not_found`, `conversation_busy`, `conversation_full` or `conversation_unavailable`, or
                `invalid_value` for several answers.
        """
        if request.num_choices > 1:
            raise ApiError(errors.INVALID_VALUE, "`n`: a stored conversation goes on with one answer.", param="n")
        conversation_id = _known(request.conversation)
        held: Conversation = await self._ask(self._store.begin, tenant, conversation_id, now_ms=_now_ms())
        turn = StoredTurn(held, request)
        try:
            messages = [*held.messages, *request.messages]
            if len(messages) > MAX_MESSAGES or len(msgspec.json.encode(messages)) > MAX_BYTES:
                limits = f"{MAX_MESSAGES} messages and {MAX_BYTES // 1024 // 1024} MiB"
                raise ApiError(
                    errors.CONVERSATION_FULL, f"A conversation may have {limits}. Begin a new one.", param="conversation"
                )
            yield turn, msgspec.structs.replace(request, messages=messages)
        finally:
            if not turn.is_stored:
                with suppress(ApiError):  # then the hold runs out by itself
                    await asyncio.shield(self._ask(self._store.release, held))

    async def store(self, turn: StoredTurn) -> None:
        """Make the turn durable.

        Raises:
            ApiError: `conversation_changed` or `conversation_unavailable`: it is not stored.
        """
        answer = _answer(turn.answer)
        await self._ask(self._store.append, turn.held, [*turn.new, answer], now_s=_now_ms() // 1000)
        turn.is_stored = True

    async def create(self, tenant: str, messages: Sequence[Message], metadata: Mapping[str, str], ttl_s: int) -> Conversation:
        """A new one.

        Raises:
            ApiError: as it says.
        """
        return await self._ask(self._store.create, tenant, messages, metadata, ttl_s=ttl_s, now_s=_now_ms() // 1000)

    async def get(self, tenant: str, conversation_id: str) -> Conversation:
        """The tenant's conversation of this id.

        Raises:
            ApiError: as it says.
        """
        return await self._ask(self._store.get, tenant, _known(conversation_id), now_s=_now_ms() // 1000)

    async def delete(self, tenant: str, conversation_id: str) -> None:
        """Forget it.

        Raises:
            ApiError: as it says.
        """
        await self._ask(self._store.delete, tenant, _known(conversation_id), now_s=_now_ms() // 1000)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False)

    async def _ask(self, act: Callable[..., _T], *given: object, **named: object) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: act(*given, **named))
        except ConversationMissing as error:
            raise missing() from error
        except ConversationBusy as error:
            message = "A turn of this conversation is being answered. Ask again after it."
            raise ApiError(errors.CONVERSATION_BUSY, message, param="conversation", retry_after_s=BUSY_RETRY_S) from error
        except ConversationChanged as error:
            message = "Another turn of this conversation was stored meanwhile, or it was deleted, so this one is not stored."
            raise ApiError(errors.CONVERSATION_CHANGED, message, param="conversation") from error
        except ConversationsUnavailable as error:
            log.warning("conversations_unavailable", error=str(error))
            message = "Stored conversations cannot be read or written at the moment."
            raise ApiError(errors.CONVERSATION_UNAVAILABLE, message, retry_after_s=UNAVAILABLE_RETRY_S) from error


def missing() -> ApiError:
    """No such conversation, or not this tenant's: the two look alike."""
    message = "This conversation does not exist, has expired, or is not yours."
    return ApiError(errors.CONVERSATION_NOT_FOUND, message, param="conversation")


def _known(conversation_id: str | None) -> str:
    if conversation_id is None or not ID.fullmatch(conversation_id):
        raise missing()
    return conversation_id


def _answer(assembly: Assembly) -> Message:
    """The answer as the conversation goes on with it."""
    said: Any = assembly.message(0)
    return msgspec.convert(said, Message)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class _Listening:
    """A sink that puts the answer together on the side."""

    def __init__(self, sink: Sink, answer: Assembly) -> None:
        self.is_live = sink.is_live
        self._sink = sink
        self._answer = answer

    @property
    def is_started(self) -> bool:
        """The sink's."""
        return self._sink.is_started

    @property
    def is_full(self) -> bool:
        """The sink's."""
        return self._sink.is_full

    def add(self, event: bytes, bare: bytes, *, is_final_usage: bool) -> None:
        """Hear and pass on."""
        self._answer.add(bare)
        self._sink.add(event, bare, is_final_usage=is_final_usage)

    def flush(self, meter: Meter, now_s: float) -> None:
        """The sink's."""
        self._sink.flush(meter, now_s)

    def beat(self) -> None:
        """The sink's."""
        self._sink.beat()

    async def drain(self) -> None:
        """The sink's."""
        await self._sink.drain()

    async def end(self, meter: Meter) -> None:
        """The sink's."""
        await self._sink.end(meter)

    async def fail(self, error: ApiError) -> None:
        """The sink's."""
        await self._sink.fail(error)
