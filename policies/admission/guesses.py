"""How long the answer to a bad API key is held back, by how many bad ones came lately.

A key has 178 random bits, so nobody guesses one; what guesses cost is look-ups. So each connection that guesses is slowed down,
and nobody is ever refused for the guesses of others: a good key is answered at once, whatever address it comes from, while a
wrong one waits up to `MAX_DELAY_S`. Counting by address would lock out the honest client behind the same one, and needs memory
for each; this is one number a worker.
"""

from __future__ import annotations

FREE = 20
"""Bad keys that wait for nothing: a client with an old key in its configuration."""
FORGOTTEN_PER_S = 2.0
DELAY_PER_GUESS_S = 0.05
MAX_DELAY_S = 2.0
MAX_COUNTED = FREE + MAX_DELAY_S / DELAY_PER_GUESS_S
"""What is counted at most: 60, so that a flood is forgotten within half a minute of its end."""


class Guesses:
    """A count of bad keys that leaks `FORGOTTEN_PER_S`. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._count = 0.0
        self._at_s = float("-inf")

    def add(self, now_s: float) -> float:
        """A bad key came; for how many seconds its answer waits, 0 to `MAX_DELAY_S`."""
        forgotten = (now_s - self._at_s) * FORGOTTEN_PER_S
        self._count = min(max(self._count - forgotten, 0.0) + 1, MAX_COUNTED)
        self._at_s = now_s
        return min(max(self._count - FREE, 0.0) * DELAY_PER_GUESS_S, MAX_DELAY_S)
