"""Log probabilities as vLLM writes them. A twin has none: they follow from the token, and the others are words of its list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_STEP = 0.25
_FIRST = (-0.03125, -0.5)


def chat(token_id: int, top: int, text: Callable[[int], str], words: Sequence[int]) -> dict[str, Any]:
    """Of one token of a chat, with the `top` likeliest."""
    likely = _likely(token_id, max(1, top), words)
    entries = [{"token": text(other), "logprob": value, "bytes": list(text(other).encode())} for other, value in likely]
    return {"content": [{**entries[0], "top_logprobs": entries[:top]}]}


def plain(token_id: int, top: int, text: Callable[[int], str], words: Sequence[int], offset: int) -> dict[str, Any]:
    """Of one token of a plain completion that begins `offset` characters behind its answer's beginning."""
    likely = _likely(token_id, max(1, top), words)
    return {
        "text_offset": [offset],
        "token_logprobs": [likely[0][1]],
        "tokens": [text(token_id)],
        "top_logprobs": [{text(other): value for other, value in likely}],
    }


def joined(pieces: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Those of a whole answer; None where there are none."""
    return {name: [value for piece in pieces for value in piece[name]] for name in pieces[0]} if pieces else None


def _likely(token_id: int, number: int, words: Sequence[int]) -> list[tuple[int, float]]:
    """The token that was written and those after it in the list, less likely each: as sampling at temperature 0 has it."""
    first = _FIRST[token_id % len(_FIRST)]
    others = [words[(token_id + step) % len(words)] for step in range(1, number + 1)]
    chosen = [token_id, *(other for other in others if other != token_id)][:number]
    return [(other, first - _STEP * 8 * rank) for rank, other in enumerate(chosen)]
