"""The usage event: one per request, minted by the gateway, in three kinds of journal record.

OPEN is durable before an engine is asked, PROGRESS follows the tokens as they arrive, CLOSE is durable before the client
sees the end. CLOSE repeats all that OPEN said, so a bill needs CLOSE records alone.
"Generated" means received by the gateway.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

SCHEMA_VERSION = 1


class Outcome(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    """The engine said so, and the client was told."""
    CLIENT_GONE = "client_gone"
    """The client hung up; the engine was told to stop; what had arrived is billed."""
    ENGINE_LOST = "engine_lost"
    """The engine broke off or went silent after its first token; what had arrived is billed."""
    NOT_SERVED = "not_served"
    """No token ever arrived; nothing is billed."""
    GATEWAY_CRASH = "gateway_crash"
    """The gateway died; the last PROGRESS is billed."""


class CountSource(StrEnum):
    """Where the token counts come from."""

    ENGINE_FINAL = "engine_final"
    ENGINE_RUNNING = "engine_running"
    NONE = "none"
    """Nothing was received, so nothing was counted."""


class UsageOpen(msgspec.Struct, frozen=True, tag="open", omit_defaults=True):
    """A request is about to be sent to an engine."""

    event_id: str
    """UUIDv7, minted here; never the client's request id."""
    tenant: str
    key_id: str
    model: str
    """The model class asked for, such as `small`."""
    release_id: str
    region: str
    gateway: str
    """Pod and worker that minted the event."""
    endpoint: str
    """`chat.completions` or `completions`."""
    opened_at_ms: int
    """Unix time; the hour and day of the bill come from it."""
    prompt_tokens: int
    """As counted here, before the engine is asked."""
    price_version: str
    input_micro_usd_per_mtok: int
    cached_input_micro_usd_per_mtok: int
    output_micro_usd_per_mtok: int
    schema: int = SCHEMA_VERSION


class UsageProgress(msgspec.Struct, frozen=True, tag="progress", omit_defaults=True):
    """What has arrived so far. Counts are totals, not increments."""

    event_id: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class UsageClose(msgspec.Struct, frozen=True, tag="close", omit_defaults=True):
    """The request is over. `prompt_tokens` and `output_tokens` are what is billed; zero is zero."""

    open: UsageOpen
    outcome: Outcome
    source: CountSource
    prompt_tokens: int
    cached_tokens: int
    """Part of `prompt_tokens` that the engine found in its prefix cache."""
    output_tokens: int
    closed_at_ms: int
    finish_reason: str = ""
    ttft_ms: float = -1.0
    """Last request byte received to first content byte sent; -1 where no content was sent."""
    attempts: int = 1
    """Engines asked; only the last attempt is billed."""

    @property
    def cost_pico_usd(self) -> int:
        """Price of this request in units of 1e-12 dollars, exact: micro-dollars per million tokens times tokens."""
        return (
            (self.prompt_tokens - self.cached_tokens) * self.open.input_micro_usd_per_mtok
            + self.cached_tokens * self.open.cached_input_micro_usd_per_mtok
            + self.output_tokens * self.open.output_micro_usd_per_mtok
        )


UsageRecord = UsageOpen | UsageProgress | UsageClose
