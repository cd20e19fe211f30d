"""The gateway's metrics, built from `serving.series` and from nothing else. One registry a gateway.

Labels are bounded: a request whose model is unknown counts under `none`, never under the name that a client made up.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from policies.admission.lanes import RESERVED
from serving import series
from serving.gateway.scaling.exported import Exported
from serving.gateway.scaling.first_tokens import FirstTokens
from serving.metering.journal import Commit
from serving.metrics import make
from serving.series import Series

NO_MODEL = "none"
QUEUE_REASONS = ("deadline", "full", "pushed_out", "expired")
_TTFT_S = (0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Close around 200 ms, where the objective is: with the engine's own steps (0.1, 0.25) its median could not be read."""
_TPOT_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_COMMIT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series and are not in `serving.series`


class Metrics:
    """Every series of the gateway."""

    def __init__(self, model_classes: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        self.requests = make(Counter, series.REQUESTS, self._registry)
        self.errors = make(Counter, series.ERRORS, self._registry)
        self.ttft = self._histogram(series.TTFT, _TTFT_S)
        self.tpot = self._histogram(series.TPOT, _TPOT_S)
        self.request_seconds = self._histogram(series.REQUEST_SECONDS, _REQUEST_S)
        self.tokens = make(Counter, series.TOKENS, self._registry)
        self.in_flight = make(Gauge, series.IN_FLIGHT, self._registry)
        self.ttft_error = make(Gauge, series.TTFT_ERROR, self._registry)
        self.queue_waiting = make(Gauge, series.QUEUE_WAITING, self._registry)
        self.queue_wait = self._histogram(series.QUEUE_WAIT, _REQUEST_S)
        self.queue_refusals = make(Counter, series.QUEUE_REFUSALS, self._registry)
        self.engines_ready = make(Gauge, series.ENGINES_READY, self._registry)
        self.retries = make(Counter, series.RETRIES, self._registry)
        self.fast_tokenizer = make(Gauge, series.FAST_TOKENIZER, self._registry)
        self.resumes = make(Counter, series.RESUMES, self._registry)
        self.hedges = make(Counter, series.HEDGES, self._registry)
        self.usage_disputed = make(Counter, series.USAGE_DISPUTED, self._registry)
        self.limiter_fallbacks = make(Counter, series.LIMITER_FALLBACKS, self._registry)
        self.journal_commit = self._histogram(series.JOURNAL_COMMIT, _COMMIT_S)
        self.journal_healthy = make(Gauge, series.JOURNAL_HEALTHY, self._registry)
        self.open_events = make(Gauge, series.OPEN_EVENTS, self._registry)
        self.exported = Exported()
        self._registry.register(self.exported)
        self.first_tokens = FirstTokens(model_classes)
        for model_class in model_classes:
            for band in RESERVED:
                self.queue_wait.labels(model_class, band)
                for reason in QUEUE_REASONS:
                    self.queue_refusals.labels(model_class, band, reason)
            for first in ("one", "two"):
                self.hedges.labels(model_class, first)
            for metric in (
                self.in_flight,
                self.queue_waiting,
                self.engines_ready,
                self.retries,
                self.fast_tokenizer,
                self.resumes,
                self.usage_disputed,
                self.ttft,
                self.tpot,
                self.request_seconds,
            ):
                metric.labels(model_class)

    def commit(self, commit: Commit) -> None:
        """Note a commit of the usage journal."""
        self.journal_commit.observe(commit.seconds)
        self.open_events.set(commit.num_open_events)

    def render(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _histogram(self, of: Series, buckets: Sequence[float]) -> Histogram:
        return Histogram(of.name, of.help, of.labels, buckets=buckets, registry=self._registry)
