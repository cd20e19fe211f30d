"""How long the first token of a request will take at each replica: learnt from every first token that comes.

    TTFT = a + b x uncached + c x queued + d x running + e x uncached x running

in thousands of tokens (`uncached`: of this prompt; `queued`: of prompts sent there before and not yet begun) and dozens of
requests (`running`). At an idle replica `a` is half a step and the overheads and `b` the prefill; `c` what waits before it, `d`
and `e` what a batch adds to each step. The five numbers are fitted by recursive least squares with forgetting (Haykin, Adaptive
Filter Theory, ch. 10), each sample weighed by one over its TTFT: what is small is then the relative error, and few long prompts
do not drown many short ones. The replicas of a class share one fit until each has learnt enough of its own.

The covariance is bounded, or a replica that is asked the same for hours forgets everything else and then jumps (wind-up).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

FORGET = 0.998
"""Weight of a sample against the one after it: about 500 count."""
OWN_SAMPLES = 40
"""From so many on a replica is predicted from its own."""
MIN_S = 0.001
_MAX_COVARIANCE = 1e6
_NUM = 5
_ERROR_LEARN = 0.02

Features = tuple[float, float, float, float, float]


def features(uncached_tokens: float, queued_tokens: float, running: float) -> Features:
    """What a prediction is made from, scaled to be near 1.

    `features(1000, 2000, 12)` is `(1.0, 1.0, 2.0, 1.0, 1.0)`.
    """
    uncached, batch = uncached_tokens / 1000, running / 12
    return 1.0, uncached, queued_tokens / 1000, batch, uncached * batch


@dataclass(slots=True)
class Fit:
    """Recursive least squares of five numbers."""

    theta: list[float] = field(default_factory=lambda: [0.0] * _NUM)
    covariance: list[list[float]] = field(
        default_factory=lambda: [[1e3 if row == column else 0.0 for column in range(_NUM)] for row in range(_NUM)]
    )
    num_samples: int = 0

    def predict(self, x: Features) -> float:
        """Seconds, never below `MIN_S`."""
        a, b, c, d, e = self.theta
        return max(a + b * x[1] + c * x[2] + d * x[3] + e * x[4], MIN_S)

    def learn(self, x: Features, ttft_s: float) -> None:
        """A first token took so long."""
        # Written out: as nested sums this took a tenth of what a whole request costs the gateway.
        weight = 1 / max(ttft_s, MIN_S)
        x0, x1, x2, x3, x4 = [value * weight for value in x]
        rows = self.covariance
        gained = [a * x0 + b * x1 + c * x2 + d * x3 + e * x4 for a, b, c, d, e in rows]
        g0, g1, g2, g3, g4 = gained
        denominator = FORGET + g0 * x0 + g1 * x1 + g2 * x2 + g3 * x3 + g4 * x4
        a, b, c, d, e = self.theta
        step = (1.0 - (a * x0 + b * x1 + c * x2 + d * x3 + e * x4)) / denominator
        self.theta = [a + step * g0, b + step * g1, c + step * g2, d + step * g3, e + step * g4]
        trace = rows[0][0] + rows[1][1] + rows[2][2] + rows[3][3] + rows[4][4]
        keep = 1 / FORGET if trace < _MAX_COVARIANCE else 1.0
        self.covariance = [
            [(a - k * g0) * keep, (b - k * g1) * keep, (c - k * g2) * keep, (d - k * g3) * keep, (e - k * g4) * keep]
            for (a, b, c, d, e), k in zip(rows, [value / denominator for value in gained], strict=True)
        ]
        self.num_samples += 1


class Predictor:
    """Of one class. Replicas are named."""

    def __init__(self) -> None:
        self.error_ratio = 0.0
        """Of late: the median of |predicted - true| / true, followed by small steps."""
        self._shared = Fit()
        self._own: dict[str, Fit] = {}

    def predict_s(self, replica: str, x: Features) -> float | None:
        """Seconds to the first token; None where nothing is known."""
        own = self._own.get(replica)
        if own is not None and own.num_samples >= OWN_SAMPLES:
            return own.predict(x)
        return self._shared.predict(x) if self._shared.num_samples >= _NUM else None

    def learn(self, replica: str, x: Features, ttft_s: float) -> None:
        """A first token came after `ttft_s`."""
        predicted_s = self.predict_s(replica, x)
        if predicted_s is not None:
            off = abs(predicted_s - ttft_s) / max(ttft_s, MIN_S)
            step = _ERROR_LEARN * max(self.error_ratio, 0.05)
            self.error_ratio = max(self.error_ratio + (step if off > self.error_ratio else -step), 0.0)
        self._shared.learn(x, ttft_s)
        self._own.setdefault(replica, Fit()).learn(x, ttft_s)

    def forget(self, replicas: Iterable[str]) -> None:
        """Those have gone."""
        for replica in replicas:
            self._own.pop(replica, None)
