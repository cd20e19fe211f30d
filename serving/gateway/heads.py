"""Registered prompts tokenised once: their token ids are remembered, and only what follows them is encoded each time. No I/O.

A text may be cut behind a special token without changing its ids, since tokenizers cut it there themselves before they do
anything else. So the head of a prompt ends with the last special token that every conversation beginning with it has in common.
That this holds for a release's tokenizer and template is tried on each head when it is made: where the ids are not those of the
whole, and wherever a conversation is rendered otherwise (with tools, for one, which many templates put before the first message),
the whole is encoded as if nothing was remembered. A count is never guessed.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Encode = Callable[[str], Sequence[int]]

MAX_HEADS = 128
"""Of one release; 128 heads of 32,768 tokens are 16 MiB and their text."""
PROBES = ("a", " b", "\n\nc", "é", "1", "{", "<")
"""What a message behind a head may begin with."""


@dataclass(frozen=True)
class Head:
    """What all conversations that begin with one prompt begin with; empty where nothing may be remembered."""

    text: str
    ids: array[int]


class Heads:
    """The heads of one release, the one used longest ago first. Threads may share it: the worst is a head made twice."""

    def __init__(self, encode: Encode, special_tokens: Sequence[str]) -> None:
        self._encode = encode
        self._special_tokens = tuple(special_tokens)
        self._heads: OrderedDict[str, Head] = OrderedDict()

    def ids(self, name: str, text: str, render_with: Callable[[str], str]) -> list[int]:
        """The ids of `text`, a conversation that begins with the prompt `name`; `render_with` renders the prompt alone with a
        user's message behind it."""
        head = self._heads.get(name)
        if head is None:
            head = self._heads[name] = self._make([render_with(probe) for probe in PROBES])
            while len(self._heads) > MAX_HEADS:
                self._heads.popitem(last=False)
        if head.text and text.startswith(head.text):
            return head.ids.tolist() + list(self._encode(text[len(head.text) :]))
        return list(self._encode(text))

    def knows(self, name: str) -> bool:
        """The ids of this prompt are remembered."""
        head = self._heads.get(name)
        return head is not None and bool(head.text)

    def _make(self, probes: Sequence[str]) -> Head:
        text = _common_start(probes)
        ends = [found + len(token) for token in self._special_tokens if (found := text.rfind(token)) >= 0]
        text = text[: max(ends, default=0)]
        ids = list(self._encode(text)) if text else []
        if any(list(self._encode(probe)) != ids + list(self._encode(probe[len(text) :])) for probe in probes):
            text, ids = "", []
        return Head(text, array("I", ids))


def _common_start(texts: Sequence[str]) -> str:
    """The longest text that all of them begin with, which is what the first and the last in order have in common."""
    first, last = min(texts), max(texts)
    num = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:num]
