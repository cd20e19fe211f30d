"""KV cache events as vLLM 0.32 publishes them (`distributed/kv_events.py`): twins write them and gateways read them.

A batch is a msgpack array, its events are maps with a `type`, and a block's hash in them is its last 64 bits as a number (vLLM's
default; as bytes where it is told so). Each batch goes out as three frames: topic, sequence number (8 bytes, big endian), batch.
Who missed some asks the replay socket for all from a number on, as far as the buffer goes back, and gets an end marker of -1.
"""

from __future__ import annotations

from typing import Any

import msgspec

END = (-1).to_bytes(8, "big", signed=True)
"""In the place of a sequence number: the replay is over."""


def external(value: int | bytes) -> int:
    """A block's hash as a number, whichever way it is told."""
    return int.from_bytes(value[-8:], "big") if isinstance(value, bytes) else value


class _Event(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    """An event of the cache."""


class BlockStored(_Event):
    """Blocks that can be found from now on."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None


class BlockRemoved(_Event):
    """Blocks that cannot be found any more."""

    block_hashes: list[int | bytes]
    medium: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(_Event):
    """Nothing can be found any more."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """The events of one engine step."""

    ts: float
    events: list[Event]
    data_parallel_rank: int | None = None
