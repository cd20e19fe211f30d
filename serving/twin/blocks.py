"""KV cache blocks as vLLM keeps them: which prompt tokens are found again, which blocks are evicted, and the events that say so.

The rules are those of vLLM 0.32 (`v1/core/kv_cache_utils.py`, `v1/core/block_pool.py`) for one group of full attention:

- only full blocks are found; the hash of a block covers all blocks before it, the adapter, and in the first block the salt;
- the last token of a prompt is always computed, so a prompt that is known whole still computes its last block;
- a block that nobody uses stays until its place is needed: blocks without a hash go first, then the one unused for longest;
  of one request's blocks the last go first;
- equal blocks computed at the same time both stay: a block never moves.

Hashes are vLLM's own default, `sha256` over a pickle, so they equal those of an engine that runs the same Python.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Sequence

from serving.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Event, external

_SEED = "vllm-none-hash"
"""vLLM's `DEFAULT_NONE_HASH_SEED`: what the first block's hash is chained to, the same in every process."""

ExtraKeys = tuple[tuple[str, ...], ...] | None


def _sha256(value: object) -> bytes:
    return hashlib.sha256(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)).digest()


NONE_HASH = _sha256(_SEED)


def block_hash(parent: bytes | None, token_ids: Sequence[int], extra_keys: ExtraKeys) -> bytes:
    """The hash of a full block behind `parent`."""
    return _sha256((parent or NONE_HASH, tuple(token_ids), extra_keys))


class CacheKey:
    """What besides its tokens keeps a request's blocks apart from others'."""

    __slots__ = ("events_first", "events_rest", "first", "lora_id", "lora_name", "rest")

    def __init__(self, salt: str | None = None, lora: tuple[str, str, int] | None = None) -> None:
        """`lora` is an adapter's name, path and number."""
        adapter = (("lora", lora[0], lora[1]),) if lora else ()
        salted = (("cache_salt", salt),) if salt else ()
        self.first: ExtraKeys = (*adapter, *salted) or None
        self.rest: ExtraKeys = adapter or None
        self.events_first = tuple(key[1] for key in self.first) if self.first else None
        self.events_rest = tuple(key[1] for key in self.rest) if self.rest else None
        self.lora_name = lora[0] if lora else None
        self.lora_id = lora[2] if lora else None


class Block:
    """A place in the cache."""

    __slots__ = ("hash", "num_users")

    def __init__(self) -> None:
        self.hash: bytes | None = None
        self.num_users = 0


class BlockTable:
    """The blocks of one sequence, first to last."""

    __slots__ = ("block_tokens", "blocks", "hashes", "key", "num_cached")

    def __init__(self, key: CacheKey, block_tokens: int) -> None:
        self.key = key
        self.block_tokens = block_tokens
        self.blocks: list[Block] = []
        self.hashes: list[bytes] = []
        """Of all full blocks of the sequence's tokens, as far as they were asked for."""
        self.num_cached = 0
        """Blocks that can be found by their hash."""

    def extend_hashes(self, token_ids: Sequence[int]) -> None:
        """Hash the full blocks of `token_ids` that have no hash yet."""
        number = len(self.hashes)
        parent = self.hashes[-1] if self.hashes else None
        size = self.block_tokens
        while (end := (number + 1) * size) <= len(token_ids):
            extra_keys = self.key.rest if number else self.key.first
            parent = block_hash(parent, token_ids[end - size : end], extra_keys)
            self.hashes.append(parent)
            number += 1


class BlockPool:
    """The cache of one engine."""

    def __init__(self, num_blocks: int, block_tokens: int, *, is_caching: bool = True, has_events: bool = False) -> None:
        self.num_blocks = num_blocks - 1
        """vLLM keeps one for itself."""
        self.block_tokens = block_tokens
        self.is_caching = is_caching
        self._has_events = has_events
        self.events: list[Event] = []
        self._num_fresh = self.num_blocks
        """Never used: made when they are needed, so that an idle twin has no memory for them."""
        self._unhashed: list[Block] = []
        """Free and not findable; the last is taken first."""
        self._lru: OrderedDict[Block, None] = OrderedDict()
        """Free and findable; the first is taken first."""
        self._by_hash: dict[bytes, list[Block]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that a request can get."""
        return self._num_fresh + len(self._unhashed) + len(self._lru)

    @property
    def num_findable(self) -> int:
        """Different blocks that a prompt can hit."""
        return len(self._by_hash)

    @property
    def usage_ratio(self) -> float:
        """vLLM's `kv_cache_usage_perc`."""
        return 1.0 - self.num_free / self.num_blocks

    def find(self, table: BlockTable, num_tokens: int) -> list[Block]:
        """The blocks of the longest prefix that is here, for a sequence of `num_tokens` whose hashes are in `table`."""
        found = []
        if self.is_caching:
            for value in table.hashes[: (num_tokens - 1) // self.block_tokens]:
                if (blocks := self._by_hash.get(value)) is None:
                    break
                found.append(blocks[0])
        return found

    def num_needed(self, hits: Sequence[Block], num_blocks: int) -> int:
        """Free blocks that a sequence of `num_blocks` with `hits` takes: a hit that nobody uses is taken from the free ones."""
        return num_blocks - len(hits) + sum(1 for block in hits if not block.num_users)

    def adopt(self, table: BlockTable, hits: Sequence[Block]) -> None:
        """Begin `table` with blocks that were found."""
        for block in hits:
            if not block.num_users:
                del self._lru[block]
            block.num_users += 1
        table.blocks.extend(hits)
        table.num_cached = len(hits)

    def grow(self, table: BlockTable, num_blocks: int) -> bool:
        """Give `table` its blocks up to `num_blocks`; False, and nothing taken, where there are too few."""
        missing = num_blocks - len(table.blocks)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            table.blocks.append(self._take())
        return True

    def cache_full(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Make the full blocks of the first `num_computed` tokens findable."""
        begin, end = table.num_cached, num_computed // self.block_tokens
        if not self.is_caching or end <= begin:
            return
        table.extend_hashes(token_ids)
        for block, value in zip(table.blocks[begin:end], table.hashes[begin:end], strict=True):
            block.hash = value
            self._by_hash.setdefault(value, []).append(block)
        table.num_cached = end
        if self._has_events:
            self.events.append(_stored(table, token_ids, begin, end))

    def free(self, table: BlockTable) -> None:
        """Take `table`'s blocks back; they stay findable."""
        unhashed = []
        for block in reversed(table.blocks):
            block.num_users -= 1
            if block.num_users:
                continue
            if block.hash is None:
                unhashed.append(block)
            else:
                self._lru[block] = None
        self._unhashed.extend(reversed(unhashed))
        table.blocks, table.num_cached = [], 0

    def clear(self) -> bool:
        """Forget all that can be found, unless a request uses blocks."""
        if self.num_free != self.num_blocks:
            return False
        self._by_hash.clear()
        self._lru.clear()
        self._unhashed.clear()
        self._num_fresh = self.num_blocks
        if self._has_events:
            self.events.append(AllBlocksCleared())
        return True

    def _take(self) -> Block:
        if self._unhashed:
            block = self._unhashed.pop()
        elif self._num_fresh:
            self._num_fresh -= 1
            block = Block()
        else:
            block = self._lru.popitem(last=False)[0]
            self._forget(block)
        block.num_users = 1
        return block

    def _forget(self, block: Block) -> None:
        value = block.hash
        assert value is not None
        twins = self._by_hash[value]
        twins.remove(block)
        if not twins:
            del self._by_hash[value]
        block.hash = None
        if self._has_events:
            self.events.append(BlockRemoved([external(value)], medium="GPU", group_idx=0))


def _stored(table: BlockTable, token_ids: Sequence[int], begin: int, end: int) -> BlockStored:
    key = table.key
    extra_keys = [key.events_rest if number else key.events_first for number in range(begin, end)]
    return BlockStored(
        block_hashes=[external(value) for value in table.hashes[begin:end]],
        parent_block_hash=external(table.hashes[begin - 1]) if begin else None,
        token_ids=list(token_ids[begin * table.block_tokens : end * table.block_tokens]),
        block_size=table.block_tokens,
        lora_id=key.lora_id,
        medium="GPU",
        lora_name=key.lora_name,
        extra_keys=extra_keys,
        group_idx=0,
        kv_cache_spec_kind="full_attention",
    )
