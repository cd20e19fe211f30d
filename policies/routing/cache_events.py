"""What an engine says of its cache, as blocks of the prefix index.

An engine tells each block that it stores: its hash, its parent's, and its tokens; and the hashes of those that it evicts. Its
hashes mean nothing here (they depend on the engine's version and Python): keys are made from the tokens, as for a prompt, and
from the parent's, so a block is understood when its parent is, back to the first, which names adapter and salt. The engine's
hashes only lead from an event to what an earlier one said.

That memory is a table of fixed size, 22 bytes a place, in which what has no room pushes something out: a dictionary would take a
hundred bytes a block, and a busy fleet has two million. A block whose parent was pushed out is not learnt; one whose eviction is
not understood leaves by the index's own bound. Both are lost hits, never wrong answers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from zlib import crc32

from policies.routing.prefix_index import BLOCK_TOKENS, PrefixIndex, next_key, root_of

MAX_PLACES = 1 << 22
"""Of all engines of a class together: twice the blocks of 64 A100s with 40 GB and a 7B model."""
_MIN_PLACES, _MOST_PLACES = 1 << 12, 1 << 18
_WAYS = 4
_HASH_BITS = (1 << 64) - 1


class EngineCache:
    """One engine's cache as its events tell it; `replica` is its bit in `index`."""

    def __init__(self, index: PrefixIndex, replica: int, num_engines: int = 1) -> None:
        """`num_engines` share `MAX_PLACES`."""
        places = max(_MIN_PLACES, min(_MOST_PLACES, 1 << (MAX_PLACES // max(num_engines, 1)).bit_length() - 1))
        self._index, self._replica = index, replica
        self._num_sets = places // _WAYS
        self._hashes = array("Q", bytes(8 * places))
        self._keys = array("Q", bytes(8 * places))
        """Of the last full block of the index at the end of this block of the engine."""
        self._crcs = array("I", bytes(4 * places))
        """Of the tokens behind that; there are `_rests` of them."""
        self._rests = bytearray(places)
        self._copies = bytearray(places)
        """How often the engine has stored this block and not evicted it: prompts that are computed at the same time store equal
        blocks, and each one's eviction is told."""

    def stored(
        self,
        hashes: Sequence[int],
        parent: int | None,
        token_ids: Sequence[int],
        block_tokens: int,
        *,
        adapter: str = "",
        salt: str = "",
    ) -> int:
        """The engine has stored these blocks, which follow each other behind `parent`; `salt` counts where there is none. How
        many blocks of the index are new at this engine. Blocks that do not divide the index's are not understood."""
        if BLOCK_TOKENS % block_tokens or len(token_ids) != len(hashes) * block_tokens:
            return 0
        if parent is None:
            key, crc, rest = root_of(adapter, salt), 0, 0
        else:
            place = self._find(parent)
            if place < 0:
                return 0
            key, crc, rest = self._keys[place], self._crcs[place], self._rests[place]
        tokens = memoryview(array("I", token_ids)).cast("B")
        step = 4 * block_tokens
        full: list[int] = []
        for number, value in enumerate(hashes):
            crc, rest = crc32(tokens[number * step : (number + 1) * step], crc), rest + block_tokens
            if rest == BLOCK_TOKENS:
                key = next_key(key, crc)
                crc = rest = 0
                full.append(key)
            self._put(value, key, crc, rest)
        return self._index.add(self._replica, full) if full else 0

    def removed(self, hashes: Iterable[int]) -> None:
        """The engine has evicted these: with the last of the engine's blocks in one of the index, that one goes."""
        gone = []
        for value in hashes:
            place = self._find(value)
            if place < 0:
                continue
            self._copies[place] -= 1
            if not self._copies[place]:
                self._hashes[place] = 0
                if not self._rests[place]:
                    gone.append(self._keys[place])
        self._index.remove(self._replica, gone)

    def cleared(self) -> None:
        """The engine holds nothing, or nobody knows what it holds."""
        self._hashes = array("Q", bytes(8 * len(self._hashes)))
        self._index.forget(self._replica)

    def _find(self, value: int) -> int:
        value &= _HASH_BITS
        first = value % self._num_sets * _WAYS
        hashes = self._hashes
        for place in range(first, first + _WAYS):
            if hashes[place] == value:
                return place
        return -1

    def _put(self, value: int, key: int, crc: int, rest: int) -> None:
        value &= _HASH_BITS
        first = value % self._num_sets * _WAYS
        hashes = self._hashes
        at = first + (value >> 60) % _WAYS  # who is pushed out where all are taken: as good as at random
        for place in range(first, first + _WAYS):
            if hashes[place] == value:
                self._copies[place] = min(self._copies[place] + 1, 255)
                return
            if not hashes[place]:
                at = place
        hashes[at], self._keys[at], self._crcs[at], self._rests[at], self._copies[at] = value, key, crc, rest, 1
