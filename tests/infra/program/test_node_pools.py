"""Nodes that follow demand: what Karpenter may buy, where, and when it may take a node away."""

from __future__ import annotations

from typing import Any

import pytest
from workload_support import DEPLOYMENT, LOCAL, PROD, STAGING, named, pod

from infra.config import load_catalog
from infra.embedded.graph import Graph
from infra.scheduling import GPU_TAINT, SPOT_TAINT

NODE_POOL, NODE_CLASS = "kubernetes:karpenter.sh/v1:NodePool", "kubernetes:karpenter.k8s.aws/v1:EC2NodeClass"


def pools(graph: Graph) -> dict[str, dict[str, Any]]:
    return {name: found.inputs["spec"] for name, found in named(graph, NODE_POOL).items()}


def requirements(pool: dict[str, Any]) -> dict[str, list[str]]:
    assert all(item["operator"] == "In" for item in pool["template"]["spec"]["requirements"])
    return {item["key"]: item["values"] for item in pool["template"]["spec"]["requirements"]}


@pytest.mark.parametrize(
    ("name", "instance_type", "capacity", "nodes"),
    [
        ("p4d-on-demand", "p4d.24xlarge", "on-demand", "9"),
        ("p4de-on-demand", "p4de.24xlarge", "on-demand", "10"),
        ("p4d-spot", "p4d.24xlarge", "spot", "7"),
        ("p4de-spot", "p4de.24xlarge", "spot", "4"),
    ],
)
def test_a_gpu_pool_buys_one_type_in_one_way_where_it_is_offered(
    name: str, instance_type: str, capacity: str, nodes: str, graphs: dict[str, Graph]
) -> None:
    pool = pools(graphs[PROD])[name]
    assert requirements(pool) == {
        "node.kubernetes.io/instance-type": [instance_type],
        "karpenter.sh/capacity-type": [capacity],
        "topology.kubernetes.io/zone": list(load_catalog().regions["us-east-2"].gpu_zones[instance_type]),
    }
    assert pool["limits"] == {"nodes": nodes}
    taints = [(item["key"], item["value"], item["effect"]) for item in pool["template"]["spec"]["taints"]]
    expected = [GPU_TAINT, SPOT_TAINT] if capacity == "spot" else [GPU_TAINT]
    assert taints == [(taint.key, taint.value, taint.effect) for taint in expected]


def test_no_engine_is_moved_to_save_money_and_no_node_ends_for_its_age(graphs: dict[str, Graph]) -> None:
    """An A100 node that was consolidated after 30 s could not be had again (METR/hawk#93)."""
    found = pools(graphs[PROD])
    assert len(found) == 5
    for name, pool in found.items():
        assert pool["disruption"]["consolidationPolicy"] == "WhenEmpty", name
        assert pool["disruption"]["budgets"] == [{"nodes": "1"}]
        assert pool["disruption"]["consolidateAfter"] == ("5m" if name.endswith("spot") else "30m")
        assert pool["template"]["spec"]["expireAfter"] == "Never"


def test_every_gpu_fleet_finds_a_pool_that_carries_its_labels(graphs: dict[str, Graph]) -> None:
    for stack in (STAGING, PROD):
        labels = [pool["template"]["metadata"]["labels"] for pool in pools(graphs[stack]).values()]
        for workload in named(graphs[stack], DEPLOYMENT).values():
            (term,) = pod(workload)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
                "nodeSelectorTerms"
            ]
            fits = [each for each in labels if all(each.get(item["key"]) in item["values"] for item in term["matchExpressions"])]
            assert fits, f"{stack}: {workload.name}"


def test_gateways_have_a_pool_of_cpu_nodes_that_carries_the_label_they_ask_for(graphs: dict[str, Graph]) -> None:
    pool = pools(graphs[PROD])["gateway"]
    gateway = pod(named(graphs[PROD], "kubernetes:apps/v1:StatefulSet")["gateway"])
    assert gateway["nodeSelector"].items() <= pool["template"]["metadata"]["labels"].items()
    assert "taints" not in pool["template"]["spec"] and requirements(pool)["karpenter.sh/capacity-type"] == ["on-demand"]
    assert pool["limits"] == {"nodes": "20"}


def test_nodes_are_pinned_encrypted_and_give_credentials_to_nobody(graphs: dict[str, Graph]) -> None:
    cluster = graphs["prod.cluster.us-east-2"].outputs
    classes = {name: found.inputs["spec"] for name, found in named(graphs[PROD], NODE_CLASS).items()}
    assert classes.keys() == {"gpu", "gateway"}
    for spec in classes.values():
        (image,) = spec["amiSelectorTerms"]
        assert image["alias"].startswith("al2023@v20") and "latest" not in image["alias"]
        assert spec["metadataOptions"] == {"httpEndpoint": "enabled", "httpTokens": "required", "httpPutResponseHopLimit": 1}
        (disk,) = spec["blockDeviceMappings"]
        assert disk["ebs"]["encrypted"] and disk["ebs"]["volumeType"] == "gp3" and disk["ebs"]["deleteOnTermination"]
        assert spec["instanceProfile"] == cluster["karpenter"]["instance_profile_name"]
        assert [term["id"] for term in spec["subnetSelectorTerms"]] == cluster["private_subnet_ids"]
        assert spec["securityGroupSelectorTerms"] == [{"id": cluster["cluster_security_group_id"]}]
        assert "networkInterfaces" not in spec, "EFA is for engines over several nodes alone"
    assert classes["gpu"]["instanceStorePolicy"] == "RAID0", "else Karpenter counts 17 Gi of disk, and no engine fits"
    assert "instanceStorePolicy" not in classes["gateway"]


def test_local_asks_for_no_gpu_node(graphs: dict[str, Graph]) -> None:
    assert pools(graphs[LOCAL]).keys() == {"gateway"}
