"""The usage event: one per request, minted by the gateway, in three kinds of journal record; and what revises its price later.

OPEN is durable before an engine is asked, PROGRESS follows the tokens as they arrive, CLOSE is durable before the client
sees the end. CLOSE repeats all that OPEN said, so a bill needs CLOSE records alone. A REVISION is written when an ended event
is rated anew: it adds a difference and changes nothing.
"Generated" means received by the gateway.

Records are arrays, which take half the bytes of objects. So a field is only ever added at the end, with a default that means "not
known", and none is moved or removed: then older records, which are shorter, stay readable. Schema 1 wrote objects
(`events_v1.py`); a segment that an upgrade found open may hold both.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

SCHEMA_VERSION = 2


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
    COUNTED = "counted"
    """Counted here, since the engine's counts were missing or could not be: the prompt by its tokenizer, and a token for each
    piece that passed, which is never too many. Reports and invoices say how many requests were."""
    GATEWAY = "gateway"
    """What gateways wrote for `COUNTED` until November 2026; only read, since what was sealed keeps its words."""
    NONE = "none"
    """Nothing was received, so nothing was counted."""


class UsageOpen(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
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
    request_id: str = ""
    """What the client was told (`x-request-id`) and engines were asked under."""
    adapter: str = ""
    """LoRA adapter that was asked for; empty for the bare model."""
    adapter_release_id: str = ""
    asked_model: str = ""
    """What was asked for, where another serves it: `auto`, or a class in whose place it does; else empty."""
    is_compacted: bool = False
    """The conversation was shortened before the engine was asked."""
    is_batch: bool = False
    """Priced as a batch."""
    claim: str = ""
    """The claim on its idempotency key (`serving.gateway.claims`); empty where it came without one."""
    num_choices: int = 1
    """Answers asked for (`n`). The prompt is billed once, and an engine counts it for each."""
    model_reason: str = ""
    """Why `auto` became this class, as `policies.routing.model_choice` says it; empty where the client named it."""
    compaction: str = ""
    """The strategy by which the conversation was shortened; empty where all of it was kept."""
    dropped_messages: int = 0
    dropped_tokens: int = 0
    """What was dropped, by the model's own count: of the whole prompt less that of what was kept."""
    summary_for: str = ""
    """Event id of the request whose conversation this one summarises; the gateway asks for it itself."""


class UsageProgress(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """What has arrived so far. Counts are totals, not increments."""

    event_id: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class UsageClose(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
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
    engines: tuple[str, ...] = ()
    """Those engines, in order: attempt n of the request was at the n-th."""
    routing_reason: str = ""
    """Why the last one was chosen, as `policies.routing.choice` says it."""
    reasoning_tokens: int = -1
    """Part of `output_tokens`; -1 where the engine does not report it."""
    queue_ms: float = -1.0
    """Last request byte received to first engine asked; -1 where none was."""
    total_ms: float = -1.0
    """Last request byte received to the end."""

    @property
    def cost_pico_usd(self) -> int:
        """Price of this request in units of 1e-12 dollars, exact: micro-dollars per million tokens times tokens."""
        return (
            (self.prompt_tokens - self.cached_tokens) * self.open.input_micro_usd_per_mtok
            + self.cached_tokens * self.open.cached_input_micro_usd_per_mtok
            + self.output_tokens * self.open.output_micro_usd_per_mtok
        )


class UsageRevision(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """An ended event is rated anew. The first bill stands; this adds a difference to it."""

    open: UsageOpen
    """The event's OPEN, but for the version and the prices, which are those that hold from now on."""
    revision: int
    """Counts the revisions of an event from 1."""
    delta_pico_usd: int
    """What the event costs now, less what it cost before this revision."""
    reason: str
    revised_at_ms: int


UsageRecord = UsageOpen | UsageProgress | UsageClose | UsageRevision
