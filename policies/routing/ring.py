"""Consistent hashing: several gateways that have never spoken send the same prompt to the same replica.

Each replica has many points on a ring, and a key belongs to the next point clockwise. When a replica comes or goes only its own
keys move. Which replicas may be chosen at the moment is the caller's business: the ring gives them in a key's order, and with the
loaded ones left out that is bounded-load consistent hashing (Mirrokni et al., arXiv:1608.01350).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Sequence
from hashlib import blake2b

_POINTS = 64
"""Of each replica: shares then differ by about 12 % (1/sqrt(64)), which the bound on load evens out."""


class Ring:
    """A ring of replicas by name. The order in which names are given does not matter."""

    def __init__(self, names: Sequence[str]) -> None:
        points = sorted(
            (int.from_bytes(blake2b(f"{name}\0{number}".encode(), digest_size=8).digest(), "big"), index)
            for index, name in enumerate(names)
            for number in range(_POINTS)
        )
        self._points = [point for point, _ in points]
        self._owners = [index for _, index in points]

    def first(self, key: int, allowed: Container[int]) -> int:
        """The first replica in the key's order that is `allowed`; -1 where none is."""
        owners = self._owners
        start = bisect_left(self._points, key)
        for place in range(start, start + len(owners)):
            owner = owners[place % len(owners)]
            if owner in allowed:
                return owner
        return -1
