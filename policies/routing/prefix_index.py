"""Which replica holds how much of a prompt in its prefix cache, as far as a gateway knows: by what it has sent where, and by what
engines say of their caches (`cache_events.py`).

A prompt is cut into blocks of tokens, and each block's key covers all before it, the adapter and the tenant's cache salt, as in
vLLM's own cache: two prompts share a key only where an engine could share the blocks. An index is of one class of engines, so
the model is not in it. A replica is a bit, and a block's entry is the set of replicas that hold it, so one look-up tells about
all replicas at once.

A block is believed to be at a replica from the moment that a prompt is sent there: a burst of equal prompts follows the first of
them instead of prefilling it everywhere. Each replica's blocks are bounded and the one used longest ago goes first. Parents are
touched after their children, so a chain loses its end first, and "holds block i" implies "holds all before it".

Blocks are longer than the engine's (16), which keeps the index small; what is lost is to know the last 63 tokens of a shared
prefix, which change no choice that matters. A block's key is made from its parent's and a CRC of its tokens: a CRC can be taken
a piece at a time, so an engine's shorter blocks lead to the same keys.
"""

from __future__ import annotations

import struct
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from zlib import crc32

BLOCK_TOKENS = 64
MAX_ENTRIES = 524_288
"""Pairs of a block and a replica. Among 64 replicas that is 524,288 tokens each, half more than an A100 with 40 GB holds of a 7B
model at 16 bits; with its engines' events (`cache_events.py`) such an index takes what `make bench-routing` measures."""
_LINK = struct.Struct("<QI")

Chain = tuple[int, ...]
"""The keys of a prompt's full blocks, first to last."""


def root_of(adapter: str, salt: str) -> int:
    """What the first block of a prompt is chained to."""
    return int.from_bytes(blake2b(f"{adapter}\0{salt}".encode(), digest_size=8).digest(), "big")


def next_key(parent: int, crc: int) -> int:
    """The key of a block behind `parent` whose tokens, 4 bytes each, have this CRC."""
    return int.from_bytes(blake2b(_LINK.pack(parent, crc), digest_size=8).digest(), "big")


def chain_of(token_ids: Sequence[int], *, adapter: str, salt: str) -> Chain:
    """The prompt's chain; empty for one that is shorter than a block. About 1 µs a block."""
    ids = array("I", token_ids)
    tokens = memoryview(ids).cast("B")
    step = BLOCK_TOKENS * ids.itemsize
    parent = root_of(adapter, salt)
    keys = []
    for start in range(0, len(token_ids) // BLOCK_TOKENS * step, step):
        parent = next_key(parent, crc32(tokens[start : start + step]))
        keys.append(parent)
    return tuple(keys)


class PrefixIndex:
    """Who holds what. Replicas are bits: 1 << n for the nth."""

    def __init__(self, max_blocks_per_replica: int = MAX_ENTRIES) -> None:
        self.max_blocks_per_replica = max_blocks_per_replica
        """May be changed; a replica that has more loses them with its next blocks."""
        self._holders: dict[int, int] = {}
        self._blocks: dict[int, OrderedDict[int, None]] = {}
        """Of each replica, the block used longest ago first. A plain dict keeps order too, but finding its first key passes over
        all that were deleted before it: evictions would take longer and longer."""

    def add(self, replica: int, blocks: Sequence[int]) -> int:
        """`replica` has these, parents first, or gets them now; how many it was not known to have."""
        held = self._blocks.setdefault(replica, OrderedDict())
        before = len(held)
        for block in reversed(blocks):
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                self._holders[block] = self._holders.get(block, 0) | replica
        num_new = len(held) - before
        while len(held) > self.max_blocks_per_replica:
            oldest, _ = held.popitem(last=False)
            self._leave(oldest, replica)
        return num_new

    def remove(self, replica: int, blocks: Iterable[int]) -> None:
        """`replica` has evicted these. What it is not known to have is none of its own."""
        held = self._blocks.get(replica)
        if held is not None:
            for block in blocks:
                if block in held:
                    del held[block]
                    self._leave(block, replica)

    def forget(self, replica: int) -> None:
        """The replica is gone, or its cache is empty."""
        for block in self._blocks.pop(replica, ()):
            self._leave(block, replica)

    def match(self, chain: Chain) -> list[tuple[int, int]]:
        """How far into the chain whom it holds: pairs of a length in blocks and the replicas that hold exactly that much, longest
        first; replicas that hold nothing are in none. `[(3, 0b01), (1, 0b10)]`: replica 0 holds three blocks, replica 1 one.

        The holders of a block hold all before it, so where two blocks have the same holders all between have too: a chain is
        halved and not walked.
        """
        found: list[tuple[int, int]] = []
        holders = self._holders.get
        at_low = holders(chain[0], 0) if chain else 0
        if not at_low:
            return found
        at_high = holders(chain[-1], 0) & at_low
        if at_high:
            found.append((len(chain), at_high))
        parts = [(0, at_low, len(chain) - 1, at_high)]
        while parts:
            low, at_low, high, at_high = parts.pop()
            # Whoever holds block `low` and not block `high` ends between them. The later half is looked at first.
            while at_low != at_high:
                if high - low == 1:
                    found.append((high, at_low & ~at_high))
                    break
                middle = (low + high) // 2
                at_middle = (holders(chain[middle], 0) | at_high) & at_low
                if at_middle != at_low:
                    parts.append((low, at_low, middle, at_middle))
                low, at_low = middle, at_middle
        return found

    def __len__(self) -> int:
        """Entries: pairs of a block and a replica."""
        return sum(len(blocks) for blocks in self._blocks.values())

    def _leave(self, block: int, replica: int) -> None:
        left = self._holders[block] & ~replica
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]
