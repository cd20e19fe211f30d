"""A chat that names a registered prompt, with the prompt's messages before its own.

A version is read once and remembered for a few seconds, which bounds how long a deleted prompt, or an old `latest`, still
answers; while the table does not answer, what is known goes on. A prompt that the tenant does not have and one that another
tenant has are refused alike.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError

from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Headers
from serving.gateway.messages import Message, PromptRef
from serving.gateway.prompt_table import Prompt, PromptMissing, PromptTable
from serving.gateway.validate import ChatRequest

log = structlog.get_logger()

HEADER = b"x-flotilla-prompt"
"""Of the answer: which version of which prompt stood before it, such as `pmpt_0a1b…@3`."""
FRESH_S = 5.0
TRUST_WITHOUT_TABLE_S = 24 * 3600.0
MAX_CHARS = 64 * 1024 * 1024
"""Of all prompts that are remembered."""
UNAVAILABLE_RETRY_S = 1.0
_NUM_READERS = 4

_T = TypeVar("_T")


class PromptedChat(ChatRequest, kw_only=True):
    """A chat that begins with a registered prompt's messages."""

    registered: str
    """Names the version, and its tenant: `acme/pmpt_0a1b…@3`. Equal names are equal messages."""
    head: tuple[Message, ...]
    """Its messages, as they stand at the front unless they were dropped to make the conversation shorter."""

    @property
    def is_whole(self) -> bool:
        """They still stand there."""
        return self.messages[: len(self.head)] == list(self.head)


@dataclass
class _Entry:
    prompt: Prompt
    read_at_s: float
    num_chars: int


class PromptBook:
    """Reads prompts and remembers them. Times are the event loop's."""

    def __init__(self, table: PromptTable) -> None:
        self.table = table
        self.on_registered: Callable[[], None] = lambda: None
        """Called when a version was registered here."""
        self._entries: OrderedDict[tuple[str, str, int | None], _Entry] = OrderedDict()
        self._num_chars = 0
        self._reads: dict[tuple[str, str, int | None], asyncio.Task[Prompt]] = {}
        self._threads = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="prompts")

    async def expand(self, tenant: str, request: ChatRequest) -> tuple[ChatRequest, str]:
        """The chat with its prompt's messages before its own, and which version that was, for the answer's header.

        Raises:
            ApiError: `prompt_not_found`, or `prompts_unavailable`.
        """
        ref = request.prompt
        if ref is None:
            return request, ""
        prompt = await self.get(tenant, ref)
        told = f"{prompt.id}@{prompt.version}"
        fields = msgspec.structs.asdict(request) | {"messages": [*prompt.messages, *request.messages]}
        expanded = PromptedChat(**fields, registered=f"{tenant}/{told}", head=prompt.messages)
        return expanded, told

    async def get(self, tenant: str, ref: PromptRef) -> Prompt:
        """The version that is named, or the latest.

        Raises:
            ApiError: `prompt_not_found`, or `prompts_unavailable`.
        """
        key = (tenant, ref.id, ref.number)
        entry, now_s = self._entries.get(key), asyncio.get_running_loop().time()
        if entry is not None and now_s - entry.read_at_s <= FRESH_S:
            self._entries.move_to_end(key)
            return entry.prompt
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.create_task(self._read(key, now_s))
            task.add_done_callback(lambda _: self._reads.pop(key, None))
        try:
            return await asyncio.shield(task)
        except PromptMissing as error:
            self._forget(key)
            raise not_found(ref.id) from error
        except (BotoCoreError, ClientError) as error:
            log.warning("prompts_unreadable", error=type(error).__name__)
            if entry is not None and now_s - entry.read_at_s <= TRUST_WITHOUT_TABLE_S:
                return entry.prompt
            raise unavailable() from error

    def forget(self, tenant: str, prompt_id: str) -> None:
        """It was changed here: what is known of it is not used again by this gateway."""
        for key in [key for key in self._entries if key[:2] == (tenant, prompt_id)]:
            self._forget(key)

    async def in_thread(self, call: Callable[[], _T]) -> _T:
        """What the table answers to `call`, away from the streams."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _read(self, key: tuple[str, str, int | None], now_s: float) -> Prompt:
        known = self._entries.get(key)
        prompt = await self.in_thread(lambda: self.table.find(*key))
        self._forget(key)
        if known is not None and known.prompt == prompt:
            prompt = known.prompt  # the same strings: what was made of them is found by them
        entry = _Entry(prompt, now_s, sum(len(message.text or "") for message in prompt.messages))
        self._entries[key] = entry
        self._num_chars += entry.num_chars
        while self._num_chars > MAX_CHARS:
            self._forget(next(iter(self._entries)))
        return prompt

    def _forget(self, key: tuple[str, str, int | None]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._num_chars -= entry.num_chars


def not_found(prompt_id: str) -> ApiError:
    """The tenant has no such prompt, whoever else may have it."""
    message = f"The prompt `{prompt_id:.64}` does not exist in this version, or you do not have access to it."
    return ApiError(errors.PROMPT_NOT_FOUND, message, param="prompt")


def unavailable() -> ApiError:
    """The table does not answer."""
    message = "Registered prompts cannot be read at the moment."
    return ApiError(errors.PROMPTS_UNAVAILABLE, message, retry_after_s=UNAVAILABLE_RETRY_S)


def prompt_headers(told: str) -> Headers:
    """What the client is told of the prompt; nothing where it named none."""
    return ((HEADER, told.encode()),) if told else ()
