"""What a twin writes: each next token follows from all tokens before it, the seed and the adapter, and from nothing else.

So greedy answers are the same on every replica, an answer that goes on from its first tokens elsewhere ends the same, and an
adapter's answers differ from its base model's. The state is a CRC over the token ids: a few microseconds for a long prompt, and
the state after one more token is one step away.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from zlib import crc32

from serving.twin.vocabulary import Vocabulary

_MIX, _MASK = 0x9E3779B1, 0xFFFFFFFF
_WIDE_ONE_IN = 16


class TextSource:
    """The answers of one model."""

    def __init__(self, vocabulary: Vocabulary, seed: int, mean_answer_tokens: int) -> None:
        """`mean_answer_tokens` is the mean length of an answer that nothing else ends; 0 never ends one."""
        words = vocabulary.words
        self._ascii, self._wide = words.ascii, words.wide or words.ascii
        self._packed = {token_id: struct.pack("<I", token_id) for token_id in (*words.ascii, *words.wide)}
        self.eos_id = vocabulary.eos_id
        self._mean = mean_answer_tokens
        self._seed = seed

    def start(self, token_ids: Sequence[int], adapter: str, choice_seed: int | None) -> int:
        """The state behind `token_ids`. `choice_seed` sets answers apart that are not greedy; None is greedy."""
        state = crc32(array("I", token_ids).tobytes(), crc32(adapter.encode(), self._seed & _MASK))
        return state if choice_seed is None else state ^ crc32(struct.pack("<Q", choice_seed & (1 << 64) - 1))

    def next(self, state: int, may_end: bool) -> tuple[int, int]:
        """The next token and the state behind it; the end-of-text token where the answer is over, if it `may_end`."""
        mixed = state * _MIX & _MASK
        if may_end and self._mean and mixed % self._mean == 0:
            return self.eos_id, state
        words = self._ascii if (mixed >> 4) % _WIDE_ONE_IN else self._wide
        token_id = words[(mixed >> 8) % len(words)]
        return token_id, crc32(self._packed[token_id], state)
