"""Pods of every class land on nodes that they belong on and on no other, and what a region always runs has room.

Nodes are fake; scheduler and controllers are Kubernetes' own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleets import misplaced, places, pods_of, waiting, workload_of
from kube import eventually
from populated import Populated, populated_region
from regions import SERVING_STACKS

from infra.components.workloads.fleets import Fleet, FleetKind
from infra.naming import LOCAL, NAMESPACE
from infra.scheduling import GPU_RESOURCE

pytestmark = pytest.mark.cluster
IN_AWS = tuple(stack for stack in SERVING_STACKS if stack.environment != LOCAL)
"""The pods of `local` are processes of one machine; it has no node to land on."""


@pytest.fixture(scope="module", params=IN_AWS, ids=str)
def populated(request: pytest.FixtureRequest, assets: Path, plane_folder: Callable[[str], Path]) -> Iterator[Populated]:
    """Each region in turn, with its nodes."""
    with populated_region(request.param, assets, plane_folder(str(request.param))) as populated:
        yield populated


def test_at_rest_every_pod_has_a_node_that_it_belongs_on(populated: Populated) -> None:
    pods = populated.settle(populated.scale("minReplicaCount"))
    assert populated.faults() == []
    assert len(pods) >= 3


def test_gateways_are_spread_over_zones(populated: Populated) -> None:
    pods = populated.settle(populated.scale("minReplicaCount"))
    zone_of = {node.name: node.zone for node in populated.nodes}
    zones = [zone_of[pod["spec"]["nodeName"]] for pod in pods if workload_of(pod) == "gateway"]
    counts = [zones.count(zone) for zone in sorted(set(zone_of.values()))]
    assert max(counts) - min(counts) <= 1, counts
    assert sum(counts) >= 2


def test_at_its_largest_nothing_lands_where_it_does_not_belong(populated: Populated) -> None:
    """Every fleet wants as much as it may; what finds no room waits for GPUs, and takes nobody else's node."""
    pods = populated.settle(populated.scale("maxReplicaCount"), may_wait_for=GPU_RESOURCE)
    assert populated.faults() == []
    assert len(pods) > len(waiting(pods)) * 20
    populated.settle(populated.scale("minReplicaCount"))


def test_an_engine_on_the_wrong_nodes_is_seen(populated: Populated) -> None:
    """A base fleet that was told to run where no GPU of its kind is: a toleration too many and a selector too few."""
    fleet = next(each for each in populated.region.declared("Deployment") if Fleet("small", FleetKind.BASE).name == each.name)
    planted = copy.deepcopy(fleet.manifest)
    planted["metadata"]["name"] = planted["spec"]["template"]["metadata"]["labels"]["planted"] = "planted"
    planted["spec"] |= {"replicas": 1, "selector": {"matchLabels": {"planted": "planted"}}}
    pod = planted["spec"]["template"]["spec"]
    pod.pop("affinity", None)
    pod["nodeSelector"] = {"kubernetes.io/hostname": next(node.name for node in populated.nodes if node.gpu is None)}
    pod["tolerations"] = [{"operator": "Exists"}]
    pod["containers"] = [{"name": "engine", "image": "image", "securityContext": pod["containers"][0]["securityContext"]}]
    populated.kube.apply(planted)
    try:
        pods = eventually(
            lambda: [pod for pod in pods_of(populated.kube) if workload_of(pod) == "planted" and "nodeName" in pod["spec"]],
            "it is scheduled",
        )
        where = {**places(populated.region.stack), "planted": places(populated.region.stack)[fleet.name]}
        assert len(misplaced(pods, populated.nodes, where)) == 1
    finally:
        populated.kube.delete("Deployment", "planted", NAMESPACE, "apps/v1")
        eventually(lambda: not any(workload_of(pod) == "planted" for pod in pods_of(populated.kube)), "it is gone")
