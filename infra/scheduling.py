"""How pods meet nodes: the labels and taints of nodes, and what pods say to land on them. The strings stand here alone.

Whoever makes nodes (managed node groups, Karpenter's pools) labels and taints them with what is here; whoever makes pods selects
and tolerates with what is here. A GPU node is tainted, so that nothing lands there by chance; a spot node is tainted besides, so
that only pods that may die at two minutes' notice do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from infra.instances import GpuKind
from infra.naming import PROJECT

if TYPE_CHECKING:  # takes a second, and stack files are read by commands that need none of it
    from pulumi_kubernetes.core import v1 as core

POOL = f"{PROJECT}.dev/pool"
"""Label of every node: its pool's name, SYSTEM_POOL and GATEWAY_POOL included."""
GPU = f"{PROJECT}.dev/gpu"
"""Label of GPU nodes: a GpuKind."""
CAPACITY = f"{PROJECT}.dev/capacity"
"""Label of every node: a Capacity."""
ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"
GPU_RESOURCE = "nvidia.com/gpu"
"""What the device plugin offers, one a GPU."""

SYSTEM_POOL = "system"
"""Controllers, DNS, monitoring."""
GATEWAY_POOL = "gateway"

Effect = Literal["NoSchedule", "NoExecute"]


class Capacity(StrEnum):
    """How a node is bought."""

    RESERVED = "reserved"
    ON_DEMAND = "on-demand"
    SPOT = "spot"


@dataclass(frozen=True)
class Taint:
    """Keeps pods off a node that do not tolerate it."""

    key: str
    value: str
    effect: Effect = "NoSchedule"


GPU_TAINT = Taint("nvidia.com/gpu", "present")
SPOT_TAINT = Taint(CAPACITY, Capacity.SPOT)
SYSTEM_TAINT = Taint("CriticalAddonsOnly", "true")


def node_labels(pool: str, capacity: Capacity, gpu: GpuKind | None = None) -> dict[str, str]:
    """Labels of a pool's nodes."""
    return {POOL: pool, CAPACITY: str(capacity), **({GPU: str(gpu)} if gpu else {})}


def gpu_taints(capacity: Capacity) -> tuple[Taint, ...]:
    """Taints of GPU nodes."""
    return (GPU_TAINT, SPOT_TAINT) if capacity is Capacity.SPOT else (GPU_TAINT,)


def toleration(taint: Taint) -> core.TolerationArgsDict:
    """Lets a pod onto nodes with `taint`."""
    return {"key": taint.key, "operator": "Equal", "value": taint.value, "effect": taint.effect}


def gpu_tolerations(capacities: Sequence[Capacity]) -> list[core.TolerationArgsDict]:
    """What a GPU pod tolerates that may run on any of `capacities`."""
    return [toleration(taint) for taint in dict.fromkeys(taint for kind in capacities for taint in gpu_taints(kind))]


def gpu_affinity(gpu: GpuKind, capacities: Sequence[Capacity]) -> core.AffinityArgsDict:
    """Only nodes with this GPU, bought in one of these ways; the first is preferred: it is paid for whether used or not."""
    wanted: list[core.NodeSelectorRequirementArgsDict] = [
        {"key": GPU, "operator": "In", "values": [str(gpu)]},
        {"key": CAPACITY, "operator": "In", "values": [str(kind) for kind in capacities]},
    ]
    affinity: core.NodeAffinityArgsDict = {
        "required_during_scheduling_ignored_during_execution": {"node_selector_terms": [{"match_expressions": wanted}]}
    }
    if len(capacities) > 1:
        first: core.NodeSelectorRequirementArgsDict = {"key": CAPACITY, "operator": "In", "values": [str(capacities[0])]}
        affinity["preferred_during_scheduling_ignored_during_execution"] = [
            {"weight": 100, "preference": {"match_expressions": [first]}}
        ]
    return {"node_affinity": affinity}


def spread(
    key: str, pod_labels: dict[str, str], when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
) -> core.TopologySpreadConstraintArgsDict:
    """Pods with `pod_labels` evenly over zones or hosts. Nodes that they may not use, such as a lost zone's, do not count."""
    return {
        "max_skew": 1,
        "topology_key": key,
        "when_unsatisfiable": when_unsatisfiable,
        "label_selector": {"match_labels": pod_labels},
        "node_taints_policy": "Honor",
    }
