"""Usage records as schema 1 wrote them: objects by field name. Read for ever, written no more.

Their rows are what they always were: `schema` stays 1, and what schema 1 did not know has the value that stands for "not known".
"""

from __future__ import annotations

import msgspec

from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen, UsageProgress


class OpenV1(msgspec.Struct, frozen=True, tag="open"):
    """OPEN."""

    event_id: str
    tenant: str
    key_id: str
    model: str
    release_id: str
    region: str
    gateway: str
    endpoint: str
    opened_at_ms: int
    prompt_tokens: int
    price_version: str
    input_micro_usd_per_mtok: int
    cached_input_micro_usd_per_mtok: int
    output_micro_usd_per_mtok: int
    schema: int = 1

    def current(self) -> UsageOpen:
        """As this code has it."""
        return UsageOpen(**msgspec.structs.asdict(self))


class ProgressV1(msgspec.Struct, frozen=True, tag="progress"):
    """PROGRESS."""

    event_id: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    def current(self) -> UsageProgress:
        """As this code has it."""
        return UsageProgress(**msgspec.structs.asdict(self))


class CloseV1(msgspec.Struct, frozen=True, tag="close"):
    """CLOSE."""

    open: OpenV1
    outcome: Outcome
    source: CountSource
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    closed_at_ms: int
    finish_reason: str = ""
    ttft_ms: float = -1.0
    attempts: int = 1

    def current(self) -> UsageClose:
        """As this code has it."""
        return UsageClose(**{**msgspec.structs.asdict(self), "open": self.open.current()})


_decoder: msgspec.msgpack.Decoder[OpenV1 | ProgressV1 | CloseV1] = msgspec.msgpack.Decoder(OpenV1 | ProgressV1 | CloseV1)


def decode_v1(payload: bytes | memoryview) -> UsageOpen | UsageProgress | UsageClose:
    """The record in `payload`.

    Raises:
        msgspec.MsgspecError: it is none of schema 1.
    """
    return _decoder.decode(payload).current()
