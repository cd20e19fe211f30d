"""What a request used, from before the engine is asked to after its last token: one usage event, durable at both ends.

OPEN is on disk before an engine is asked; PROGRESS follows the running counts, and no client gets more than one interval of
tokens beyond what is on the disk (`Meter.is_ahead`), so that is the most a killed gateway gives away; CLOSE is on disk before the
client is told that its answer is complete. Counts are the engine's own, as received: the totals at the end where it sent them,
else the last running ones. Nothing is ever guessed, and zero is zero. Each piece of an answer carries a token or more, so an
engine that counts fewer tokens than pieces passed, or more than were allowed, is not believed: then the pieces are billed.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol

from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.sse import Usage
from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen, UsageProgress
from serving.metering.journal import JournalUnavailable
from serving.settings import JournalSettings

METERING_RETRY_S = 5.0
CATCH_UP_LIMIT_S = 5.0
"""Longest that a stream is held back for the journal, as long as its disk may take before it counts as unhealthy."""


class UsageJournal(Protocol):
    """What is needed of `serving.metering.journal.Journal`."""

    async def open_event(self, record: UsageOpen) -> None:
        """Durable on return, or `JournalUnavailable`."""

    def progress(self, record: UsageProgress) -> int:
        """Never waits. Gives the ticket for `is_durable`."""

    def is_durable(self, ticket: int) -> bool:
        """What got the ticket is on the disk."""

    async def progress_event(self, record: UsageProgress) -> None:
        """Durable on return, or `JournalUnavailable`."""

    async def close_event(self, record: UsageClose) -> None:
        """Durable on return, or `JournalUnavailable`."""


class Meter:
    """The counts of one request. Times are the event loop's, in seconds."""

    def __init__(self, journal: UsageJournal, settings: JournalSettings, opened: UsageOpen, max_output_tokens: int) -> None:
        self.opened = opened
        self.num_pieces = 0
        """Events that passed, less those without a token."""
        self.is_disputed = False
        """The engine's counts could not be, or were missing."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.source = CountSource.NONE
        self.finish_reason = ""
        self.reasoning_tokens = -1
        self.engines: tuple[str, ...] = ()
        """Those asked, in order."""
        self.routing_reason = ""
        self.first_asked_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s = 0.0
        self.outcome: Outcome | None = None
        """How it ended; None while it runs, and where it was never opened."""
        self.bound_by = ""
        """The budget that made the answer shorter than was asked for; empty where none did."""
        self.first_sent_s: float | None = None
        """When the first byte of content went to the client."""
        self._journal = journal
        self._settings = settings
        self._max_output_tokens = max_output_tokens
        self._by_choice: dict[int, int] = {}
        self._noted_tokens = 0
        self._noted_s = float("-inf")
        self._ticket = 0
        """The journal's, for what was noted last."""
        self._durable_tokens = 0

    async def open(self) -> None:
        """Make the event durable: from here on it is closed, whatever happens.

        Raises:
            ApiError: `metering_unavailable`; the engine must not be asked.
        """
        try:
            await self._journal.open_event(self.opened)
        except JournalUnavailable as error:
            raise unavailable() from error

    def asked(self, engine: str, reason: str, now_s: float) -> None:
        """`engine` is asked next, and why it."""
        self.engines += (engine,)
        self.routing_reason = reason
        if self.first_asked_s is None:
            self.first_asked_s = now_s

    def running(self, usage: Usage, choice: int, now_s: float) -> None:
        """Counts that came with a piece of one answer; they are that answer's totals so far."""
        self.source = CountSource.ENGINE_RUNNING
        self.prompt_tokens = usage.prompt_tokens
        self._by_choice[choice] = usage.completion_tokens
        self._count(sum(self._by_choice.values()), now_s)

    def final(self, usage: Usage, now_s: float) -> None:
        """Counts that came at the end; they are the totals of all answers."""
        self.source = CountSource.ENGINE_FINAL
        self.prompt_tokens, self.cached_tokens = usage.prompt_tokens, min(usage.cached_tokens, usage.prompt_tokens)
        self.reasoning_tokens = usage.reasoning_tokens
        self._count(usage.completion_tokens, now_s)

    def note(self, now_s: float) -> None:
        """Put the counts into the journal when half an interval of tokens or all of its time has passed since the last time: the
        other half is what the record's way to the disk may take before the stream has to wait for it."""
        new_tokens = self.output_tokens - self._noted_tokens
        is_due = 2 * new_tokens >= self._settings.progress_tokens or now_s - self._noted_s >= self._settings.progress_s
        if new_tokens and is_due:
            if self._journal.is_durable(self._ticket):
                self._durable_tokens = self._noted_tokens
            self._noted_tokens, self._noted_s = self.output_tokens, now_s
            self._ticket = self._journal.progress(self._progress())

    @property
    def is_ahead(self) -> bool:
        """More than an interval of tokens has come that a killed gateway would not bill: the client must not have them yet."""
        if self.output_tokens - self._durable_tokens <= self._settings.progress_tokens:
            return False
        if self._journal.is_durable(self._ticket):
            self._durable_tokens = self._noted_tokens
        return self.output_tokens - self._durable_tokens > self._settings.progress_tokens

    async def catch_up(self) -> None:
        """Return when all that has come is on the disk.

        Raises:
            JournalUnavailable: the client must not have it.
        """
        noted_tokens = self.output_tokens
        try:
            async with asyncio.timeout(CATCH_UP_LIMIT_S):
                await self._journal.progress_event(self._progress())
        except TimeoutError as error:
            raise JournalUnavailable(f"the journal has not taken a record for {CATCH_UP_LIMIT_S:g} s") from error
        self._durable_tokens = noted_tokens

    async def close(self, outcome: Outcome, received_s: float, now_s: float) -> UsageClose:
        """Make the end durable and say what is billed. Without a token there is nothing to bill, whatever the outcome.
        A plain answer counts as sent now: it goes out when this returns.

        Raises:
            ApiError: `metering_unavailable`; the journal writes it later, but the client must not be told that all is well.
        """
        self._check()
        if outcome is not Outcome.FINISHED and self.output_tokens == 0:
            outcome = Outcome.NOT_SERVED
        if outcome is Outcome.FINISHED and self.first_sent_s is None:
            self.first_sent_s = now_s
        self.outcome = outcome
        is_billed = outcome is not Outcome.NOT_SERVED
        record = UsageClose(
            open=self.opened,
            outcome=outcome,
            source=self.source if is_billed else CountSource.NONE,
            prompt_tokens=self.prompt_tokens if is_billed else 0,
            cached_tokens=self.cached_tokens if is_billed else 0,
            output_tokens=self.output_tokens if is_billed else 0,
            closed_at_ms=now_ms(),
            finish_reason=self.finish_reason,
            ttft_ms=-1.0 if self.first_sent_s is None else (self.first_sent_s - received_s) * 1e3,
            attempts=self.attempts,
            engines=self.engines,
            routing_reason=self.routing_reason,
            reasoning_tokens=self.reasoning_tokens if is_billed else -1,
            queue_ms=-1.0 if self.first_asked_s is None else (self.first_asked_s - received_s) * 1e3,
            total_ms=(now_s - received_s) * 1e3,
        )
        try:
            await self._journal.close_event(record)
        except JournalUnavailable as error:
            raise unavailable() from error
        return record

    def usage(self) -> dict[str, object]:
        """The counts as OpenAI's API shows them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def ended_by(self) -> str:
        """The budget that ended the answer; empty where it ended otherwise."""
        return self.bound_by if self.finish_reason == "length" else ""

    @property
    def attempts(self) -> int:
        """Engines asked."""
        return len(self.engines)

    @property
    def is_final(self) -> bool:
        """The engine has sent its totals."""
        return self.source is CountSource.ENGINE_FINAL

    @property
    def total_tokens(self) -> int:
        """What has been received."""
        return self.prompt_tokens + self.output_tokens

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None for fewer than two."""
        if self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)

    def _progress(self) -> UsageProgress:
        return UsageProgress(self.opened.event_id, self.prompt_tokens, self.cached_tokens, self.output_tokens)

    def _check(self) -> None:
        """Put what passed in the place of counts that cannot be."""
        if self.num_pieces <= self.output_tokens <= self._max_output_tokens:
            return
        self.is_disputed, self.source = True, CountSource.COUNTED
        self.output_tokens, self.reasoning_tokens = self.num_pieces, -1
        if self.prompt_tokens <= 0:
            self.prompt_tokens, self.cached_tokens = self.opened.prompt_tokens, 0

    def _count(self, output_tokens: int, now_s: float) -> None:
        if output_tokens > self.output_tokens:
            self.last_token_s = now_s
            if self.first_token_s is None:
                self.first_token_s = now_s
        self.output_tokens = output_tokens


def unavailable() -> ApiError:
    """Usage cannot be made durable."""
    message = "Usage cannot be recorded at the moment, so nothing is generated."
    return ApiError(errors.METERING_UNAVAILABLE, message, retry_after_s=METERING_RETRY_S)


def mint_event_id() -> str:
    """A UUIDv7 (RFC 9562): ids sort by time, and 74 random bits keep two gateways apart."""
    value = now_ms() << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def now_ms() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000
