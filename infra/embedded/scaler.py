"""Sizes workloads of this machine as KEDA and a HorizontalPodAutoscaler would: reads the size that the leading gateway exports,
and follows it at the pace of the workload's ScaledObject.

Where no gateway says a size (none leads, none answers) a workload keeps the one that it has. Growing by the engines' queues then,
as in a cluster, is left out: that needs Prometheus.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from infra.embedded.desired import Scaling, Workload
from policies.autoscaling.pace import Pacer
from serving.series import SCALING_DECISION, SCALING_NEED

SYNC_S = 1.0
READ_TIMEOUT_S = 2.0
Addresses = Callable[[str], Iterable[str]]
"""Of the ready pods of a workload, by its key."""


@dataclass
class Sized:
    """A workload that is sized here."""

    replicas: int
    pacer: Pacer
    desired: int | None = None
    """What the leading gateway says; None where nobody says anything."""
    reason: str = ""


class LocalScaler:
    """Sizes by workload. `sync` reads and decides; `size` is what holds."""

    def __init__(self) -> None:
        self._sized: dict[str, Sized] = {}

    def size(self, workload: Workload) -> int:
        """Replicas that the workload should have now."""
        sized = self._sized.get(workload.key)
        return sized.replicas if sized and workload.scaling else workload.replicas

    def says(self, workload: Workload) -> Sized | None:
        """What is known of its size; None where it is fixed."""
        return self._sized.get(workload.key) if workload.scaling else None

    async def sync(self, workloads: Iterable[Workload], addresses: Addresses) -> bool:
        """One look at what gateways say, and a step towards it; whether any size changed."""
        scaled = {workload.key: workload.scaling for workload in workloads if workload.scaling}
        self._sized = {key: self._sized.get(key) or _begun(scaling) for key, scaling in scaled.items()}
        sources = {(scaling.source, scaling.port) for scaling in scaled.values()}
        said = dict(zip(sources, await asyncio.gather(*(_read(addresses(key), port) for key, port in sources)), strict=True))
        changed = False
        for key, scaling in scaled.items():
            sized, samples = self._sized[key], said[scaling.source, scaling.port]
            sized.pacer.pace, sized.pacer.minimum, sized.pacer.maximum = scaling.pace, scaling.minimum, scaling.maximum
            sized.desired = desired(samples, scaling)
            sized.reason = reason(samples, scaling) if sized.desired is not None else "no gateway says a size: it stays"
            before, sized.replicas = sized.replicas, sized.pacer.size(sized.desired, sized.replicas, time.monotonic())
            changed |= sized.replicas != before
        return changed


def desired(samples: Sequence[Sample], scaling: Scaling) -> int | None:
    """The largest number that a gateway says: two may lead for a moment."""
    found = [it.value for it in samples if it.name == scaling.series and scaling.labels.items() <= it.labels.items()]
    return int(max(found)) if found else None


def reason(samples: Sequence[Sample], scaling: Scaling) -> str:
    """`pace: in_flight needs 15.6`, of the class."""
    of_class = {key: value for key, value in scaling.labels.items() if key == "model_class"}.items()
    ours = [it for it in samples if of_class <= it.labels.items()]
    why = next((it.labels["reason"] for it in ours if it.name == SCALING_DECISION.name), "")
    needs = {it.labels["signal"]: it.value for it in ours if it.name == SCALING_NEED.name}
    if not needs:
        return why
    strongest = max(needs, key=lambda signal: needs[signal])
    return f"{why}: {strongest} needs {needs[strongest]:.1f}"


def _begun(scaling: Scaling) -> Sized:
    return Sized(scaling.minimum, Pacer(scaling.pace, scaling.minimum, scaling.maximum))


async def _read(addresses: Iterable[str], port: int) -> list[Sample]:
    """All samples of those that answer."""
    texts = await asyncio.gather(*(_metrics(address, port) for address in addresses))
    return [sample for text in texts for family in text_string_to_metric_families(text) for sample in family.samples]


async def _metrics(address: str, port: int) -> str:
    """The text of its `/metrics`; nothing where it does not answer well in time."""
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(READ_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(f"GET /metrics HTTP/1.1\r\nHost: {address}:{port}\r\nConnection: close\r\n\r\n".encode())
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
                if head.split(b" ", 2)[1] == b"200":
                    return body.decode()
            finally:
                writer.close()
    return ""
