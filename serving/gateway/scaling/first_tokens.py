"""How soon first tokens came of late, by this gateway's own requests: a fair sample of its region's."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

MAX_KEPT = 20_000
"""The newest; a gateway has some hundred a second, and a look takes them every few seconds."""
ENOUGH = 20
"""Fewer say nothing of a P99."""


class FirstTokens:
    """Kept since the last look, by class."""

    def __init__(self, model_classes: Sequence[str]) -> None:
        self._kept: dict[str, deque[float]] = {name: deque(maxlen=MAX_KEPT) for name in model_classes}

    def came(self, model_class: str, ttft_s: float) -> None:
        """A request had its first token."""
        if model_class in self._kept:
            self._kept[model_class].append(ttft_s)

    def refused(self, model_class: str) -> None:
        """A request had none, for want of an engine."""
        self.came(model_class, math.inf)

    def take(self, model_class: str, promise_s: float) -> tuple[float | None, float | None]:
        """P99, and the share within `promise_s`, since the last look; None where too few came. A P99 that was refused is the
        promise ten times over."""
        kept = sorted(self._kept[model_class])
        self._kept[model_class].clear()
        if len(kept) < ENOUGH:
            return None, None
        p99_s = kept[math.ceil(0.99 * len(kept)) - 1]
        within = sum(ttft_s <= promise_s for ttft_s in kept) / len(kept)
        return (p99_s if math.isfinite(p99_s) else 10 * promise_s), within

    def clear(self) -> None:
        """Forget all: nobody looks here."""
        for kept in self._kept.values():
            kept.clear()
