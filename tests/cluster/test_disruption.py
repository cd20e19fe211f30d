"""What a lost node and a drained one do to a region's pods: budgets hold, and only what may vanish vanishes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleets import Pod, lost, pods_of, ready_by_workload, workload_of
from kube import eventually
from populated import Populated, populated_region

from infra.components.workloads.fleets import Fleet, FleetKind
from infra.naming import NAMESPACE, parse_stack
from infra.scheduling import GPU_RESOURCE, Capacity

pytestmark = pytest.mark.cluster
STACK = parse_stack("prod.serving.us-east-2")
MAY_VANISH = {
    Fleet(model_class, kind).name
    for model_class in ("small", "medium", "large")
    for kind in (FleetKind.OVERFLOW, FleetKind.BATCH)
}
POD_GC_S = 240
"""Kubernetes looks for pods of nodes that are gone every 20 s, and takes them after 40 s more."""


@pytest.fixture(scope="module")
def busy(assets: Path, plane_folder: Callable[[str], Path]) -> Iterator[Populated]:
    """A region at a peak: base fleets at their floor, overflow and batch on spot."""
    with populated_region(STACK, assets, plane_folder("disruption")) as populated:
        populated.scale("minReplicaCount")
        sizes = populated.scale("maxReplicaCount", MAY_VANISH)
        populated.settle(sizes)
        yield populated


def test_a_drain_takes_no_more_than_budgets_allow(busy: Populated) -> None:
    """A node with several engines of one class is drained: each goes only once the one before has been replaced."""
    pods = pods_of(busy.kube)
    base = Fleet("small", FleetKind.BASE).name
    size = ready_by_workload(pods)[base]
    node = max(busy.nodes, key=lambda each: sum(_on(pod, each.name, base) for pod in pods))
    leaving = [pod["metadata"]["name"] for pod in pods if _on(pod, node.name, base)]
    assert len(leaving) > 1

    busy.kube.patch("Node", node.name, {"spec": {"unschedulable": True}})
    fewest, refusals = size, 0
    while leaving:
        refused = [name for name in leaving if not busy.kube.evict(name, NAMESPACE)]
        fewest = min(fewest, ready_by_workload(pods_of(busy.kube)).get(base, 0))
        refusals += len(refused)
        leaving = refused
        eventually(lambda: ready_by_workload(pods_of(busy.kube)).get(base) == size, "the evicted engine has a successor", 60)
    assert fewest >= size - 1
    assert refusals > 0
    busy.kube.patch("Node", node.name, {"spec": {"unschedulable": False}})


def test_without_its_budget_a_drain_takes_all_at_once(busy: Populated) -> None:
    base = Fleet("small", FleetKind.BASE).name
    budget = next(each for each in busy.region.declared("PodDisruptionBudget") if each.name == base)
    pods = pods_of(busy.kube)
    node = max(busy.nodes, key=lambda each: sum(_on(pod, each.name, base) for pod in pods))
    leaving = [pod["metadata"]["name"] for pod in pods if _on(pod, node.name, base)]
    busy.kube.delete("PodDisruptionBudget", base, NAMESPACE, "policy/v1")
    try:
        assert [busy.kube.evict(name, NAMESPACE) for name in leaving] == [True] * len(leaving)
        assert len(leaving) > 1
    finally:
        busy.kube.apply(budget.manifest)
        size = ready_by_workload(pods)[base]
        eventually(lambda: ready_by_workload(pods_of(busy.kube)).get(base) == size, "the engines are back", 60)


def test_a_spot_node_that_vanishes_takes_only_overflow_and_batch_with_it(busy: Populated) -> None:
    """Without a notice, which is the worst of spot: the node is gone, and nobody drained it."""
    before = pods_of(busy.kube)
    spot = [node for node in busy.nodes if node.bought is Capacity.SPOT]
    node = max(spot, key=lambda each: len({workload_of(pod) for pod in before if pod["spec"].get("nodeName") == each.name}))
    on_it = {pod["metadata"]["uid"] for pod in before if pod["spec"].get("nodeName") == node.name}
    assert on_it

    busy.kube.delete("Node", node.name)
    eventually(lambda: not on_it & {pod["metadata"]["uid"] for pod in pods_of(busy.kube)}, "its pods are gone", POD_GC_S)

    after = busy.settle(busy.sizes(), may_wait_for=GPU_RESOURCE)
    suffered = lost(before, after)
    assert sum(suffered.values()) >= len(on_it)  # more, where an overflow engine took a batch engine's GPUs elsewhere
    assert set(suffered) <= MAY_VANISH
    assert busy.faults() == []  # their successors are on spot, or wait

    engine = next(pod for pod in after if workload_of(pod) == Fleet("small", FleetKind.BASE).name)
    assert set(lost(after, [pod for pod in after if pod is not engine])) - MAY_VANISH, "a base engine that is lost is seen"


def _on(pod: Pod, node: str, workload: str) -> bool:
    return pod["spec"].get("nodeName") == node and workload_of(pod) == workload
