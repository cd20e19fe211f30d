"""Which replica holds how much of a prompt in its prefix cache, as far as a gateway can know: by what it has sent where.

A prompt is cut into blocks of tokens, and each block's hash covers all before it, the model, the adapter and the tenant's
cache salt, as in vLLM's own cache: two prompts share a hash only where an engine could share the blocks. A replica is a bit,
and a block's entry is the set of replicas that were sent it, so one look-up tells about all replicas at once.

A block is believed to be at a replica from the moment that a prompt is sent there: a burst of equal prompts follows the first of
them instead of prefilling it everywhere. Each replica's blocks are bounded and the one used longest ago goes first. Parents are
touched after their children, so a chain loses its end first, and "holds block i" implies "holds all before it".

Blocks are longer than the engine's (16), which keeps the index small; what is lost is to know the last 63 tokens of a shared
prefix, which change no choice that matters.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

BLOCK_TOKENS = 64
MAX_BLOCKS_PER_REPLICA = 8192
"""524,288 tokens: a little more than an A100 with 80 GB holds of a 7B model at 16 bits."""
_HASH_BYTES = 8

Chain = tuple[int, ...]
"""The hashes of a prompt's full blocks, first to last."""


def chain_of(token_ids: Sequence[int], *, model: str, adapter: str, salt: str) -> Chain:
    """The prompt's chain; empty for one that is shorter than a block. About 1 µs a block."""
    ids = array("I", token_ids)
    tokens = memoryview(ids).cast("B")
    step = BLOCK_TOKENS * ids.itemsize
    parent = blake2b(f"{model}\0{adapter}\0{salt}".encode(), digest_size=_HASH_BYTES).digest()
    hashes = []
    for start in range(0, len(token_ids) // BLOCK_TOKENS * step, step):
        block = blake2b(parent, digest_size=_HASH_BYTES)
        block.update(tokens[start : start + step])
        parent = block.digest()
        hashes.append(int.from_bytes(parent, "big"))
    return tuple(hashes)


class PrefixIndex:
    """Who was sent what. Replicas are bits: 1 << n for the nth."""

    def __init__(self, max_blocks_per_replica: int = MAX_BLOCKS_PER_REPLICA) -> None:
        self._max_blocks = max_blocks_per_replica
        self._holders: dict[int, int] = {}
        self._blocks: dict[int, OrderedDict[int, None]] = {}
        """Of each replica, the block used longest ago first. A plain dict keeps order too, but finding its first key passes over
        all that were deleted before it: evictions would take longer and longer."""

    def add(self, replica: int, chain: Chain) -> None:
        """A prompt is sent to `replica`."""
        blocks = self._blocks.setdefault(replica, OrderedDict())
        for block in reversed(chain):
            if block in blocks:
                blocks.move_to_end(block)
            else:
                blocks[block] = None
                self._holders[block] = self._holders.get(block, 0) | replica
        while len(blocks) > self._max_blocks:
            oldest, _ = blocks.popitem(last=False)
            self._leave(oldest, replica)

    def forget(self, replica: int) -> None:
        """The replica is gone, and its cache with it."""
        for block in self._blocks.pop(replica, ()):
            self._leave(block, replica)

    def match(self, chain: Chain) -> list[tuple[int, int]]:
        """How far into the chain whom it holds: pairs of a length in blocks and the replicas that hold exactly that much, longest
        first; replicas that hold nothing are in none. `[(3, 0b01), (1, 0b10)]`: replica 0 holds three blocks, replica 1 one.

        The holders of a block hold all before it, so where two blocks have the same holders all between have too: a chain is
        halved and not walked.
        """
        found: list[tuple[int, int]] = []
        if chain:
            first = self._holders.get(chain[0], 0)
            if first:
                last = self._holders.get(chain[-1], 0) & first
                self._collect(chain, 0, first, len(chain) - 1, last, found)
                if last:
                    found.append((len(chain), last))
        found.reverse()
        return found

    def __len__(self) -> int:
        """Entries: pairs of a block and a replica."""
        return sum(len(blocks) for blocks in self._blocks.values())

    def _collect(self, chain: Chain, low: int, at_low: int, high: int, at_high: int, found: list[tuple[int, int]]) -> None:
        """Append those whose part ends after block `low` and before block `high`, shortest first."""
        if at_low == at_high:
            return
        if high - low <= 1:
            found.append((low + 1, at_low & ~at_high))
            return
        middle = (low + high) // 2
        at_middle = (self._holders.get(chain[middle], 0) | at_high) & at_low
        self._collect(chain, low, at_low, middle, at_middle, found)
        self._collect(chain, middle, at_middle, high, at_high, found)

    def _leave(self, block: int, replica: int) -> None:
        left = self._holders[block] & ~replica
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]
