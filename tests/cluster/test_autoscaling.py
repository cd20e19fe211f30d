"""A ScaledObject as our program renders it, with the real KEDA and the real autoscaler: load grows a workload, silence keeps it.

Only Prometheus is not real: `keda.PromAnswers` gives the number that a test sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keda
import pytest
from kube import Kube, eventually, has_condition
from regions import Region, running_region

from infra.naming import GATEWAY, NAMESPACE, parse_stack

pytestmark = pytest.mark.cluster
STACK = parse_stack("prod.serving.us-east-2")
KEDA_API = "keda.sh/v1alpha1"
TIMEOUT_S = 120


@dataclass(frozen=True)
class Scaled:
    """The gateways of a region under KEDA."""

    kube: Kube
    spec: dict[str, Any]
    prometheus: keda.PromAnswers

    @property
    def query(self) -> tuple[str, str]:
        metadata = self.spec["triggers"][0]["metadata"]
        return metadata["serverAddress"], metadata["query"]

    @property
    def target(self) -> float:
        return float(self.spec["triggers"][0]["metadata"]["threshold"])

    def replicas(self) -> int:
        """What the workload is told to have."""
        return int(self.kube.get("StatefulSet", GATEWAY, NAMESPACE, "apps/v1")["spec"]["replicas"])

    def is_falling_back(self) -> bool:
        """Whether KEDA has given up on Prometheus for now."""
        return has_condition(self.kube.get("ScaledObject", GATEWAY, NAMESPACE, KEDA_API), "Fallback")

    def failures(self) -> int:
        """How often in a row KEDA got no number."""
        health = self.kube.get("ScaledObject", GATEWAY, NAMESPACE, KEDA_API).get("status", {}).get("health", {})
        return sum(int(metric.get("numberOfFailures", 0)) for metric in health.values())

    def events(self) -> str:
        """What the autoscaler and KEDA last said."""
        last = self.kube.list("Event", NAMESPACE)[-8:]
        return "; ".join(f"{event['reason']}: {event['message']}" for event in last) + f"; refused {self.prometheus.refused[-3:]}"


@pytest.fixture(scope="module")
def scaled(assets: Path, plane_folder: Callable[[str], Path]) -> Iterator[Scaled]:
    """A region whose gateways are at their floor, and Prometheus says that there is no work."""
    with keda.prom_answers() as prometheus, running_region(STACK, assets, plane_folder("keda")) as region:
        scaled = Scaled(region.kube, _gateways(region), prometheus)
        prometheus.values[scaled.query] = 0
        keda.start(region.plane, prometheus)
        floor = scaled.spec["minReplicaCount"]
        eventually(lambda: scaled.replicas() == floor, f"there are {floor} gateways", TIMEOUT_S, scaled.events)
        yield scaled


def _gateways(region: Region) -> dict[str, Any]:
    """The specification of their ScaledObject."""
    found = [each for each in region.declared("ScaledObject") if each.name == GATEWAY]
    return dict(found[0].manifest["spec"])


def test_load_grows_a_workload_at_its_pace_and_silence_keeps_it(scaled: Scaled) -> None:
    """Missing data once meant "no load" to an autoscaler, which took a service down while its monitoring was being upgraded."""
    floor = scaled.spec["minReplicaCount"]
    pace = scaled.spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"]
    step = pace["policies"][0]["value"]

    # Work for three times as many, at a pace of `step` a minute.
    scaled.prometheus.values[scaled.query] = 3 * floor * scaled.target
    eventually(lambda: scaled.replicas() > floor, "load grows them", TIMEOUT_S, scaled.events)
    assert scaled.replicas() == floor + step

    scaled.prometheus.values[scaled.query] = None
    eventually(scaled.is_falling_back, "KEDA sees the silence", TIMEOUT_S, scaled.events)
    seen = scaled.failures()
    # Each failure answers one question of the autoscaler's; when it asks again, it has acted on the answer before.
    eventually(lambda: scaled.failures() >= seen + 3, "the autoscaler goes on asking", TIMEOUT_S, scaled.events)
    assert scaled.replicas() >= floor + step


def test_silence_that_counted_as_no_work_would_be_seen(scaled: Scaled) -> None:
    """What the rendered object must not say: with `ignoreNullValues`, an empty answer is 0 and no failure."""
    metadata = {**scaled.spec["triggers"][0]["metadata"], "ignoreNullValues": "true"}
    planted = {**scaled.spec, "triggers": [{**scaled.spec["triggers"][0], "metadata": metadata}]}
    scaled.prometheus.values[scaled.query] = None
    scaled.kube.patch("ScaledObject", GATEWAY, {"spec": planted}, NAMESPACE, KEDA_API)
    eventually(lambda: not scaled.is_falling_back(), "KEDA takes silence for an answer", TIMEOUT_S, scaled.events)
