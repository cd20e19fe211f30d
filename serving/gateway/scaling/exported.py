"""The leader's decisions at `/metrics`, for as long as they hold good: what is stale is absent, never the last value.

Whoever reads them falls back on their absence. So a leader whose loop hangs, whose lease has ended or who cannot see its engines
must not leave a number standing; that is why this is no gauge, which keeps what it was set to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from policies.autoscaling.decide import ScaleDecision
from serving import series
from serving.series import Series


@dataclass(frozen=True)
class _Standing:
    decision: ScaleDecision
    until_s: float


class Exported(Collector):
    """What this gateway says, if it leads."""

    def __init__(self) -> None:
        self._standing: dict[str, _Standing] = {}

    def say(self, model_class: str, decision: ScaleDecision, until_s: float) -> None:
        """Show `decision` until `until_s` of the monotonic clock. One that is not known takes back what was said."""
        if decision.is_known:
            self._standing[model_class] = _Standing(decision, until_s)
        else:
            self._standing.pop(model_class, None)

    def clear(self) -> None:
        """Say nothing."""
        self._standing.clear()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What holds good now, as the client library asks."""
        now_s = time.monotonic()
        good = {name: it.decision for name, it in self._standing.items() if now_s < it.until_s}
        if not good:
            return
        desired, needs, reasons = map(_family, (series.DESIRED_REPLICAS, series.SCALING_NEED, series.SCALING_DECISION))
        for name, decision in good.items():
            desired.add_metric([name, "base"], decision.base)
            desired.add_metric([name, "overflow"], decision.overflow)
            reasons.add_metric([name, decision.reason], 1)
            for signal, need in decision.needs.items():
                needs.add_metric([name, signal], need)
        yield from (desired, needs, reasons)


def _family(of: Series) -> GaugeMetricFamily:
    return GaugeMetricFamily(of.name, of.help, labels=of.labels)
