"""Metrics are made from `serving.series` and from nothing else."""

from __future__ import annotations

from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from serving.series import Series

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MetricT = TypeVar("MetricT", bound=MetricWrapperBase)


def make(kind: type[MetricT], of: Series, registry: CollectorRegistry) -> MetricT:
    """The metric `of`; the client library adds `_total` to counters itself."""
    return kind(of.name.removesuffix("_total"), of.help, of.labels, registry=registry)
