"""The supervisor's metrics, built from `serving.series` and from nothing else."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from serving import series
from serving.metrics import make

PHASES = ("fetch", "verify", "load", "warm_up")
RESTART_REASONS = ("exited", "stalled", "silent", "canary")
TOKEN_KINDS = ("input", "output")


class Metrics:
    """Every series of a supervisor; all are there from the start, at 0."""

    def __init__(self, model_class: str) -> None:
        self._registry = CollectorRegistry()
        self._model_class = model_class
        self.ready = make(Gauge, series.ENGINE_READY, self._registry).labels(model_class)
        self.fetch_bytes = make(Gauge, series.ENGINE_FETCH_BYTES, self._registry).labels(model_class)
        self._restarts = make(Counter, series.ENGINE_RESTARTS, self._registry)
        self._phase_seconds = make(Gauge, series.ENGINE_PHASE_SECONDS, self._registry)
        self._canary_tokens = make(Counter, series.CANARY_TOKENS, self._registry)
        for reason in RESTART_REASONS:
            self._restarts.labels(model_class, reason)
        for phase in PHASES:
            self._phase_seconds.labels(model_class, phase)
        self.engine_started()

    def restarted(self, reason: str) -> None:
        """The engine is being started again."""
        self._restarts.labels(self._model_class, reason).inc()

    def phase_took(self, phase: str, seconds: float) -> None:
        """A phase of the last start is over."""
        self._phase_seconds.labels(self._model_class, phase).set(seconds)

    def engine_started(self) -> None:
        """The engine's own counters begin at 0 again, and so does what is to be subtracted from them."""
        for kind in TOKEN_KINDS:
            self._canary_tokens.labels(self._model_class, kind).reset()

    def canary_asked(self, input_tokens: int, output_tokens: int) -> None:
        """The engine counted these tokens for a canary prompt."""
        self._canary_tokens.labels(self._model_class, "input").inc(input_tokens)
        self._canary_tokens.labels(self._model_class, "output").inc(output_tokens)

    def render(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
