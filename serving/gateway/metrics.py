"""The gateway's metrics, built from `serving.series` and from nothing else. One registry a gateway.

Labels are bounded: a request whose model is unknown counts under `none`, never under the name that a client made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from serving import series
from serving.metering.journal import Commit
from serving.series import Series

NO_MODEL = "none"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TTFT_S = (0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Close around 200 ms, where the objective is: with the engine's own steps (0.1, 0.25) its median could not be read."""
_TPOT_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_COMMIT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series and are not in `serving.series`

MetricT = TypeVar("MetricT", bound=MetricWrapperBase)


class Metrics:
    """Every series of the gateway."""

    def __init__(self, model_classes: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._make(Counter, series.REQUESTS)
        self.errors = self._make(Counter, series.ERRORS)
        self.ttft = self._histogram(series.TTFT, _TTFT_S)
        self.tpot = self._histogram(series.TPOT, _TPOT_S)
        self.request_seconds = self._histogram(series.REQUEST_SECONDS, _REQUEST_S)
        self.tokens = self._make(Counter, series.TOKENS)
        self.in_flight = self._make(Gauge, series.IN_FLIGHT)
        self.engines_ready = self._make(Gauge, series.ENGINES_READY)
        self.retries = self._make(Counter, series.RETRIES)
        self.limiter_fallbacks = self._make(Counter, series.LIMITER_FALLBACKS)
        self.journal_commit = self._histogram(series.JOURNAL_COMMIT, _COMMIT_S)
        self.open_events = self._make(Gauge, series.OPEN_EVENTS)
        for model_class in model_classes:
            for metric in (self.in_flight, self.engines_ready, self.retries, self.ttft, self.tpot, self.request_seconds):
                metric.labels(model_class)

    def commit(self, commit: Commit) -> None:
        """Note a commit of the usage journal."""
        self.journal_commit.observe(commit.seconds)
        self.open_events.set(commit.num_open_events)

    def render(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _make(self, kind: type[MetricT], of: Series) -> MetricT:
        return kind(of.name.removesuffix("_total"), of.help, of.labels, registry=self._registry)

    def _histogram(self, of: Series, buckets: Sequence[float]) -> Histogram:
        return Histogram(of.name, of.help, of.labels, buckets=buckets, registry=self._registry)
