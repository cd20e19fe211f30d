"""The nodes that a region would have, made from its graphs: managed groups of the cluster stack, Karpenter's pools of serving.

A node has the labels and taints that its group or pool gives, and the size of its instance type. What it *is* (its hardware, how
it was bought) is read from what AWS acts on: instance type, reservation, capacity type. Our own labels are never believed, since
a check that read them would agree with whatever they say. Elastic pools have all the nodes that they may, of the largest size
that they may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from control_plane import FAKE_NODE
from kube import Kube, eventually, has_condition

from infra.embedded.graph import TOKEN, Graph, Resource
from infra.instances import INSTANCE_SHAPES, GpuKind
from infra.scheduling import GPU_RESOURCE, HOST, ZONE, Capacity

NODE_GROUP, LAUNCH_TEMPLATE, SUBNET = (
    "aws:eks/nodeGroup:NodeGroup",
    "aws:ec2/launchTemplate:LaunchTemplate",
    "aws:ec2/subnet:Subnet",
)
NODE_POOL = "kubernetes:karpenter.sh/v1:NodePool"
INSTANCE_TYPE, CAPACITY_TYPE = "node.kubernetes.io/instance-type", "karpenter.sh/capacity-type"
FAMILY, VCPUS = "karpenter.k8s.aws/instance-family", "karpenter.k8s.aws/instance-cpu"
EFFECTS = {"NO_SCHEDULE": "NoSchedule", "NO_EXECUTE": "NoExecute", "PREFER_NO_SCHEDULE": "PreferNoSchedule"}
MAX_PODS = 110
GIB_PER_VCPU = {"c": 2, "m": 4, "r": 8}
"""Of EC2's compute, general and memory families (EC2 instance type pages, read November 2026)."""
ROOT_DISK_GIB = 100


@dataclass(frozen=True)
class FakeNode:
    """A node, and what it truly is."""

    name: str
    pool: str
    """The managed group or NodePool that it belongs to."""
    instance_type: str
    zone: str
    bought: Capacity
    labels: Mapping[str, str]
    taints: Sequence[Mapping[str, str]]

    @property
    def gpu(self) -> GpuKind | None:
        """None is a CPU node."""
        shape = INSTANCE_SHAPES.get(self.instance_type)
        return shape.gpu if shape else None

    def manifest(self) -> dict[str, Any]:
        """As its kubelet would register it."""
        key, value = FAKE_NODE
        capacity, allocatable = _sizes(self.instance_type)
        common = {
            HOST: self.name,
            ZONE: self.zone,
            INSTANCE_TYPE: self.instance_type,
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux",
        }
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": {**common, **self.labels}, "annotations": {key: value}},
            "spec": {"taints": list(self.taints), "providerID": f"aws:///{self.zone}/{self.name}"},
            "status": {"capacity": capacity, "allocatable": allocatable},
        }


def nodes_of(cluster: Graph, serving: Graph, zones: Sequence[str]) -> list[FakeNode]:
    """Every node of a region with `zones`, each managed group at its size, each pool at its limit."""
    managed = [node for group in cluster.of_type(NODE_GROUP) for node in _managed(group, cluster)]
    elastic = [node for graph in (cluster, serving) for pool in graph.of_type(NODE_POOL) for node in _elastic(pool, zones)]
    return managed + elastic


def start_nodes(kube: Kube, nodes: Sequence[FakeNode]) -> None:
    """Creates them, and returns once pods may land on each."""
    for node in nodes:
        kube.create(node.manifest())

    def are_ready() -> bool:
        taken = {node["metadata"]["name"] for node in kube.list("Node") if _is_ready(node)}
        return taken >= {node.name for node in nodes}

    eventually(are_ready, "every fake node is ready", 120)


def _is_ready(node: Mapping[str, Any]) -> bool:
    is_tainted = any(taint["key"].startswith("node.kubernetes.io/") for taint in node["spec"].get("taints", ()))
    return not is_tainted and has_condition(node, "Ready")


def _managed(group: Resource, graph: Graph) -> Iterator[FakeNode]:
    inputs = group.inputs
    template = _resource(graph, inputs["launchTemplate"]["id"]).inputs
    instance_type = template.get("instanceType") or inputs["instanceTypes"][0]
    subnets = [_resource(graph, subnet) for subnet in inputs["subnetIds"]]
    zones = [subnet.inputs["availabilityZone"] for subnet in subnets]
    is_reserved = "capacityReservationSpecification" in template or inputs.get("capacityType") == "CAPACITY_BLOCK"
    bought = Capacity.RESERVED if is_reserved else Capacity.SPOT if inputs.get("capacityType") == "SPOT" else Capacity.ON_DEMAND
    taints = [{**taint, "effect": EFFECTS[taint["effect"]]} for taint in inputs.get("taints") or ()]
    name = inputs["nodeGroupName"]
    for number, zone in enumerate(islice(cycle(zones), int(inputs["scalingConfig"]["desiredSize"]))):
        yield FakeNode(f"{name}-{number}", name, instance_type, zone, bought, inputs.get("labels") or {}, taints)


def _elastic(pool: Resource, region_zones: Sequence[str]) -> Iterator[FakeNode]:
    name, spec = pool.inputs["metadata"]["name"], pool.inputs["spec"]
    template = spec["template"]
    terms = template["spec"]["requirements"]
    assert {term["operator"] for term in terms} == {"In"}, f"{name}: only lists of values are understood here, not {terms}"
    wanted = {term["key"]: list(term["values"]) for term in terms}
    # Karpenter labels a node with what its pool requires, as far as one value is left.
    single = {key: values[0] for key, values in wanted.items() if len(values) == 1}
    labels = {**single, **(template["metadata"].get("labels") or {}), "karpenter.sh/nodepool": name}
    instance_type = (
        wanted[INSTANCE_TYPE][0] if INSTANCE_TYPE in wanted else _instance_type(wanted[FAMILY][0], max(map(int, wanted[VCPUS])))
    )
    taints = template["spec"].get("taints") or ()
    zones = wanted.get(ZONE, list(region_zones))
    for number, zone in enumerate(islice(cycle(zones), int(spec["limits"]["nodes"]))):
        node = f"karpenter-{name}-{number}"
        yield FakeNode(node, name, instance_type, zone, Capacity(single[CAPACITY_TYPE]), labels, taints)


def _resource(graph: Graph, token: str) -> Resource:
    """The resource that a token speaks of."""
    found = TOKEN.fullmatch(token)
    assert found, f"{token} is no token"
    return next(resource for resource in graph.resources if resource.urn == found["urn"])


def _instance_type(family: str, num_vcpus: int) -> str:
    size = {2: "large", 4: "xlarge"}.get(num_vcpus, f"{num_vcpus // 4}xlarge")
    return f"{family}.{size}"


def _sizes(instance_type: str) -> tuple[dict[str, str], dict[str, str]]:
    """Capacity and, less what EKS's bootstrap keeps for the system, allocatable."""
    if shape := INSTANCE_SHAPES.get(instance_type):
        num_vcpus, memory_gib, disk_gib, num_gpus = shape.num_vcpus, shape.memory_gib, shape.nvme_gib, shape.num_gpus
    else:
        family, size = re.fullmatch(r"([a-z])\w*\.(\w+)", instance_type).groups()  # type: ignore[union-attr]
        times = re.fullmatch(r"(\d+)xlarge", size)
        num_vcpus = 4 * int(times[1]) if times else {"large": 2, "xlarge": 4}[size]
        memory_gib, disk_gib, num_gpus = num_vcpus * GIB_PER_VCPU[family], ROOT_DISK_GIB, 0
    gpus = {GPU_RESOURCE: str(num_gpus)} if num_gpus else {}
    pods = {"pods": str(MAX_PODS), **gpus}
    capacity = {"cpu": str(num_vcpus), "memory": f"{memory_gib}Gi", "ephemeral-storage": f"{disk_gib}Gi", **pods}
    # 255 MiB and 11 a pod for kubelet and runtime, 100 before it evicts, and a tenth of the disk.
    kept_mib = 255 + 11 * MAX_PODS + 100
    cpu_m = 1000 * num_vcpus - (60 + 10 + 2 * 5 + (num_vcpus - 4) * 2.5 if num_vcpus > 4 else 80)
    allocatable = {
        "cpu": f"{int(cpu_m)}m",
        "memory": f"{memory_gib * 1024 - kept_mib}Mi",
        "ephemeral-storage": f"{disk_gib * 9 // 10}Gi",
        **pods,
    }
    return capacity, allocatable
