"""Where pods of each workload belong, by catalog and design, and what is wrong with where they are.

It follows from a model's GPUs and a fleet's kind, never from what a pod's own manifest asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kube import Kube, has_condition
from nodes import FakeNode

from infra import config
from infra.components.workloads.fleets import Fleet, FleetKind
from infra.instances import GpuKind
from infra.naming import GATEWAY, NAMESPACE, StackName
from infra.scheduling import GATEWAY_POOL, Capacity

Pod = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Nodes that pods of a workload may be on."""

    gpu: GpuKind | None
    """None is a node without GPUs."""
    bought: tuple[Capacity, ...]
    pools: tuple[str, ...] = ()
    """Only these, where there are any."""

    def faults(self, node: FakeNode) -> Iterable[str]:
        """What makes `node` none of them."""
        if node.gpu != self.gpu:
            yield f"it has {node.gpu or 'no GPU'}, must have {self.gpu or 'none'}"
        if node.bought not in self.bought:
            yield f"it is {node.bought}, must be {' or '.join(self.bought)}"
        if self.pools and node.pool not in self.pools:
            yield f"its pool is {node.pool}, must be {' or '.join(self.pools)}"


def places(stack: StackName) -> dict[str, Place]:
    """Where each workload that a region may have belongs, by its name."""
    catalog = config.load_catalog()
    found = {GATEWAY: Place(None, (Capacity.ON_DEMAND,), (GATEWAY_POOL,))}
    for model_class, name in config.environment_of(catalog, stack.environment).models.items():
        gpus = catalog.models[name].gpus
        for kind in FleetKind:
            fleet = Fleet(model_class, kind)
            bought = (Capacity.RESERVED, Capacity.ON_DEMAND) if kind is FleetKind.BASE else (Capacity.SPOT,)
            found[fleet.name] = Place(gpus.kind if gpus else None, bought)
    return found


def pods_of(kube: Kube) -> list[Pod]:
    """Our pods that are not on their way out."""
    return [pod for pod in kube.list("Pod", NAMESPACE) if "deletionTimestamp" not in pod["metadata"]]


def workload_of(pod: Pod) -> str:
    """The Deployment or StatefulSet that a pod belongs to."""
    owner = pod["metadata"]["ownerReferences"][0]
    name: str = owner["name"]
    return name.rpartition("-")[0] if owner["kind"] == "ReplicaSet" else name


def misplaced(pods: Sequence[Pod], nodes: Sequence[FakeNode], where: Mapping[str, Place]) -> list[str]:
    """What is wrong, a line a pod; pods that wait for a node are not misplaced."""
    known = {node.name: node for node in nodes}
    return [
        f"{pod['metadata']['name']} is on {node.name}: {fault}"
        for pod in pods
        if "nodeName" in pod["spec"]
        for node in [known[pod["spec"]["nodeName"]]]
        for fault in where[workload_of(pod)].faults(node)
    ]


def waiting(pods: Sequence[Pod]) -> list[str]:
    """Pods without a node, with the scheduler's reason."""
    return [f"{pod['metadata']['name']}: {_reason(pod)}" for pod in pods if "nodeName" not in pod["spec"]]


def ready_by_workload(pods: Sequence[Pod]) -> dict[str, int]:
    """Ready pods of each workload."""
    ready: dict[str, int] = {}
    for pod in pods:
        if has_condition(pod, "Ready"):
            ready[workload_of(pod)] = ready.get(workload_of(pod), 0) + 1
    return ready


def lost(before: Sequence[Pod], after: Sequence[Pod]) -> dict[str, int]:
    """How many pods of each workload that were there are there no more."""
    there = {pod["metadata"]["uid"] for pod in after}
    gone: dict[str, int] = {}
    for pod in before:
        if pod["metadata"]["uid"] not in there:
            gone[workload_of(pod)] = gone.get(workload_of(pod), 0) + 1
    return gone


def _reason(pod: Pod) -> str:
    conditions = pod["status"].get("conditions", ())
    return next((each.get("message", "") for each in conditions if each["type"] == "PodScheduled"), "not looked at yet")
