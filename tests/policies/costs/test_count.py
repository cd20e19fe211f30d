"""Bills: what is counted, what is left out and said so, and the arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from policies.costs.count import Bill, bills
from policies.costs.prices import Price, PriceBook, SpotClaim, Unit
from policies.resources import Declared

DAY = date(2026, 11, 9)
GPUS_PER_NODE = {"p4d.24xlarge": 8, "p4de.24xlarge": 8}
BOOK = PriceBook(
    region="us-east-2",
    prices={
        "ec2:p4d.24xlarge": Price(usd=20.0, source="list", read=DAY),
        "ec2:m7i.xlarge": Price(usd=0.2, source="list", read=DAY, is_confirmed=False),
        "eks:cluster": Price(usd=0.1, source="list", read=DAY),
        "vpc:interface-endpoint-zone": Price(usd=0.01, source="list", read=DAY),
        "kms:key": Price(usd=1.0, per=Unit.MONTH, source="list", read=DAY),
    },
    spot=SpotClaim(discount_ratio=0.6, source="assumed", read=DAY),
    by_use={"aws:s3/bucket:Bucket": "bytes"},
    free=("aws:iam/", "kubernetes:"),
)
CLUSTER, SERVING = "prod.cluster.us-east-2", "prod.serving.us-east-2"


def declared(kind: str, name: str = "it", stack: str = CLUSTER, **inputs: Any) -> Declared:
    return Declared(stack=stack, urn=f"urn:{name}", type=kind, name=name, inputs=inputs)


def reserved_pool(nodes: int) -> Declared:
    return declared(
        "aws:eks/nodeGroup:NodeGroup",
        "reserved",
        instanceTypes=["p4d.24xlarge"],
        labels={"flotilla.dev/gpu": "a100-40g"},
        scalingConfig={"minSize": nodes, "desiredSize": nodes, "maxSize": nodes},
    )


def elastic_pool(capacity: str, max_nodes: int) -> Declared:
    requirements = [
        {"key": "node.kubernetes.io/instance-type", "values": ["p4d.24xlarge"]},
        {"key": "karpenter.sh/capacity-type", "values": [capacity]},
    ]
    template = {"metadata": {"labels": {"flotilla.dev/gpu": "a100-40g"}}, "spec": {"requirements": requirements}}
    return declared(
        "kubernetes:karpenter.sh/v1:NodePool", capacity, SERVING, spec={"limits": {"nodes": str(max_nodes)}, "template": template}
    )


def base_engines(gpus_each: int, replicas: int) -> list[Declared]:
    wanted = {"matchExpressions": [{"key": "flotilla.dev/gpu", "operator": "In", "values": ["a100-40g"]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [wanted]}}}
    container = {"resources": {"requests": {"nvidia.com/gpu": str(gpus_each)}}}
    pod = {"affinity": affinity, "containers": [container]}
    return [
        declared(
            "kubernetes:apps/v1:Deployment", "engine", SERVING, metadata={"name": "engine"}, spec={"template": {"spec": pod}}
        ),
        declared(
            "kubernetes:keda.sh/v1alpha1:ScaledObject",
            "engine",
            SERVING,
            spec={"scaleTargetRef": {"name": "engine"}, "minReplicaCount": replicas},
        ),
    ]


def bill(*resources: Declared, cluster: tuple[Declared, ...] = ()) -> Bill:
    stack = resources[0].stack
    stacks = {CLUSTER: cluster, stack: resources} if stack != CLUSTER else {stack: resources}
    return bills(stacks, BOOK, GPUS_PER_NODE)[-1]


def test_a_cluster_by_hand() -> None:
    """1 cluster 0.10, 3 CPU nodes 3 × 0.20, 2 reserved A100 nodes 2 × 20, one endpoint in 3 zones 3 × 0.01, a key 1 ÷ 730:
    40.73137 dollars an hour."""
    found = bill(
        declared("aws:eks/cluster:Cluster"),
        declared("aws:eks/nodeGroup:NodeGroup", instanceTypes=["m7i.xlarge"], scalingConfig={"minSize": 3, "desiredSize": 3}),
        reserved_pool(2),
        declared("aws:ec2/vpcEndpoint:VpcEndpoint", vpcEndpointType="Interface", subnetIds=["a", "b", "c"]),
        declared("aws:ec2/vpcEndpoint:VpcEndpoint", vpcEndpointType="Gateway"),
        declared("aws:kms/key:Key"),
    )
    assert found.floor_usd_per_h == pytest.approx(0.1 + 0.6 + 40.0 + 0.03 + 1 / 730)
    assert found.ceiling_usd_per_h == found.floor_usd_per_h and not found.unpriced
    assert found.unconfirmed_usd_per_h == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("reserved_nodes", "gpus_each", "replicas", "num_on_demand"),
    [
        (1, 1, 8, 0),  # 8 GPUs wanted, 8 reserved
        (1, 1, 9, 1),  # 1 more: a node of 8
        (1, 1, 12, 1),  # 4 more: the same node
        (0, 2, 5, 2),  # 10 GPUs: two nodes
        (3, 8, 3, 0),
    ],
)
def test_base_engines_beyond_what_is_reserved_need_on_demand_nodes(
    reserved_nodes: int, gpus_each: int, replicas: int, num_on_demand: int
) -> None:
    found = bill(elastic_pool("on-demand", 10), *base_engines(gpus_each, replicas), cluster=(reserved_pool(reserved_nodes),))
    assert found.floor_usd_per_h == pytest.approx(20.0 * num_on_demand)
    assert found.ceiling_usd_per_h == pytest.approx(20.0 * 10), "the pool's limit holds the floor's nodes too"


def test_spot_is_no_floor_and_is_counted_at_its_discount() -> None:
    found = bill(elastic_pool("spot", 5), *base_engines(1, 4))
    assert found.floor_usd_per_h == 0
    assert found.ceiling_usd_per_h == pytest.approx(5 * 20.0 * 0.4)


def test_what_has_no_price_is_listed_and_never_counted_as_nothing() -> None:
    found = bill(
        declared("aws:new/thing:Thing"),
        declared("aws:new/thing:Thing", "other"),
        declared("aws:eks/nodeGroup:NodeGroup", instanceTypes=["x9.huge"], scalingConfig={"desiredSize": 1}),
        declared("aws:s3/bucket:Bucket"),
        declared("aws:iam/role:Role"),
    )
    assert found.unpriced == {"aws:eks/nodeGroup:NodeGroup (ec2:x9.huge)": 1, "aws:new/thing:Thing": 2}
    assert found.by_use == {"aws:s3/bucket:Bucket": "bytes"}
    assert found.floor == ()


def test_components_and_providers_cost_nothing() -> None:
    component = replace(declared("flotilla:gpu:Pool"), is_custom=False)
    assert bill(component, declared("pulumi:providers:aws")).unpriced == {}
