"""A region with its nodes and its pods.

Karpenter and KEDA do not run: pools have all the nodes that they may, and a test says how many replicas there are, by the bounds
that the autoscaler is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fleets import Pod, misplaced, places, pods_of, ready_by_workload, waiting, workload_of
from kube import Kube, eventually
from nodes import FakeNode, nodes_of
from regions import Region, graphs_of, running_region
from volumes import volume_driver

from infra import config
from infra.naming import NAMESPACE, StackName

SETTLED_S = 180
Bound = Literal["minReplicaCount", "maxReplicaCount"]


@dataclass(frozen=True)
class Populated:
    """A region with its nodes, and its pods at rest."""

    region: Region
    nodes: Sequence[FakeNode]

    @property
    def kube(self) -> Kube:
        return self.region.kube

    def faults(self) -> list[str]:
        """Pods that are where they do not belong."""
        return misplaced(pods_of(self.kube), self.nodes, places(self.region.stack))

    def scale(self, bound: Bound, only: Collection[str] | None = None) -> dict[str, int]:
        """Gives each scaled workload, or `only` these, the size that its ScaledObject calls `bound`; every workload's size."""
        for scaled in self.region.declared("ScaledObject"):
            target = scaled.manifest["spec"]["scaleTargetRef"]
            if only is None or target["name"] in only:
                self.kube.scale(target["kind"], target["name"], NAMESPACE, int(scaled.manifest["spec"][bound]))
        return self.sizes()

    def sizes(self) -> dict[str, int]:
        """How many pods each workload should have."""
        workloads = self.kube.list("Deployment", NAMESPACE, "apps/v1") + self.kube.list("StatefulSet", NAMESPACE, "apps/v1")
        return {workload["metadata"]["name"]: int(workload["spec"]["replicas"]) for workload in workloads}

    def settle(self, sizes: Mapping[str, int], *, may_wait_for: str | None = None) -> list[Pod]:
        """The pods, once each workload has its size and every pod is ready, or lacks only the resource `may_wait_for`.

        Raises:
            AssertionError: it did not come to that; the message has the scheduler's reasons.
        """

        def settled() -> list[Pod]:
            pods = pods_of(self.kube)
            counted = {name: sum(workload_of(pod) == name for pod in pods) for name in sizes}
            reasons = waiting(pods)
            is_excused = all(may_wait_for and may_wait_for in reason for reason in reasons)
            is_ready = sum(ready_by_workload(pods).values()) == len(pods) - len(reasons)
            return pods if counted == sizes and is_excused and is_ready else []

        return eventually(settled, f"the region has {sizes}", SETTLED_S, lambda: str(waiting(pods_of(self.kube))[:3]))


@contextmanager
def populated_region(stack: StackName, assets: Path, folder: Path) -> Iterator[Populated]:
    """The region of a serving stack with every node that it may have; its workloads are as large as their manifests say."""
    zones = config.load_catalog().regions[stack.region].availability_zones
    nodes = nodes_of(*graphs_of(stack), zones)
    with running_region(stack, assets, folder, nodes) as region, volume_driver(region.kube):
        yield Populated(region, nodes)
