"""The text of an answer while it may still turn out to be the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence


class HeldText:
    """Holds back as many characters as the longest stop string could take, as vLLM does."""

    __slots__ = ("_num_given", "_num_held", "_stop", "text")

    def __init__(self, stop: Sequence[str]) -> None:
        self.text = ""
        """All text so far, up to the stop string that ended it."""
        self._stop = stop
        self._num_held = max((len(string) for string in stop), default=1) - 1
        self._num_given = 0

    def add(self, piece: str) -> str | None:
        """Take a token's text; the stop string that it completes, or None."""
        before = len(self.text)
        self.text += piece
        for string in self._stop:
            found = self.text.find(string, max(0, before - len(string) + 1))
            if found >= 0:
                self.text = self.text[:found]
                return string
        return None

    def skip(self, num_chars: int) -> None:
        """So many characters have been shown already."""
        self._num_given = num_chars

    def take(self, *, is_last: bool) -> str:
        """The text that may be shown and has not been."""
        end = len(self.text) if is_last else max(self._num_given, len(self.text) - self._num_held)
        piece, self._num_given = self.text[self._num_given : end], end
        return piece
