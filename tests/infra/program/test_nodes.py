"""The nodes that always run, what is asked of them, and Karpenter's side of AWS."""

from __future__ import annotations

import base64
import email
import json
from typing import Any

import pytest
import yaml
from cluster_support import LOCAL, PROD, STAGING, named, points_at, recorded_with

from infra.components.cluster.karpenter import EVENTS
from infra.embedded.graph import Graph, Resource
from infra.scheduling import CAPACITY, GPU, POOL

GROUP, TEMPLATE = "aws:eks/nodeGroup:NodeGroup", "aws:ec2/launchTemplate:LaunchTemplate"
RESERVATION = {"id": "cr-010d0000000000001"}


def p4d(**changes: Any) -> dict[str, Any]:
    return {"instance_type": "p4d.24xlarge", "zone": "us-east-2b", "nodes": 2, "reservation": RESERVATION, **changes}


@pytest.fixture
def cluster(graphs: dict[str, Graph]) -> Graph:
    return graphs[PROD]


def pool(graph: Graph, name: str) -> tuple[Resource, Resource]:
    """A reserved pool's group and launch template."""
    group = named(graph, GROUP, f"nodes-{name}-nodes-group")
    assert points_at(group.inputs["launchTemplate"]["id"]) == [f"nodes-{name}-nodes-template"]
    return group, named(graph, TEMPLATE, f"nodes-{name}-nodes-template")


def test_no_node_gives_credentials_to_a_container_or_has_a_bare_disk(graphs: dict[str, Graph]) -> None:
    for stack in (PROD, STAGING, LOCAL):
        templates = list(graphs[stack].of_type(TEMPLATE))
        assert len(templates) == len(list(graphs[stack].of_type(GROUP))) >= 2
        for template in templates:
            assert template.inputs["metadataOptions"] == {
                "httpTokens": "required",
                "httpPutResponseHopLimit": 1,
                "httpEndpoint": "enabled",
            }
            (disk,) = template.inputs["blockDeviceMappings"]
            assert disk["ebs"]["encrypted"] == "true" and disk["ebs"]["volumeType"] == "gp3"


def test_images_are_pinned_and_sick_nodes_repaired(graphs: dict[str, Graph]) -> None:
    for stack in (PROD, STAGING, LOCAL):
        for group in graphs[stack].of_type(GROUP):
            assert (group.inputs["version"], group.inputs["releaseVersion"]) == ("1.36", "1.36.3-20260911")
            assert group.inputs["nodeRepairConfig"]["enabled"] is True
            assert group.inputs["scalingConfig"]["desiredSize"] == group.inputs["scalingConfig"]["minSize"]


def test_system_nodes_are_kept_for_controllers_and_gateway_nodes_are_open(cluster: Graph) -> None:
    system, gateway = (named(cluster, GROUP, f"nodes-{name}-group").inputs for name in ("system", "gateway"))
    assert system["taints"] == [{"key": "CriticalAddonsOnly", "value": "true", "effect": "NO_SCHEDULE"}]
    assert gateway["taints"] == []
    assert (system["labels"], gateway["labels"]) == (
        {POOL: "system", CAPACITY: "on-demand"},
        {POOL: "gateway", CAPACITY: "on-demand"},
    )
    for group in (system, gateway):
        assert points_at(group["subnetIds"]) == [f"network-private-{letter}" for letter in "abc"]
    coredns = named(cluster, "aws:eks/addon:Addon", "addons-coredns").inputs
    assert json.loads(coredns["configurationValues"])["nodeSelector"] == {POOL: "system"}


def test_each_reservation_has_a_group_of_its_type_in_its_zone(cluster: Graph) -> None:
    """Nodes launched elsewhere leave the reservation idle, and billed."""
    floors = {}
    for name in ("p4d-a", "p4d-b", "p4d-c", "p4de-a", "p4de-b"):
        group, template = pool(cluster, name)
        target = template.inputs["capacityReservationSpecification"]["capacityReservationTarget"]
        (subnet,) = points_at(group.inputs["subnetIds"])
        zone = named(cluster, "aws:ec2/subnet:Subnet", subnet).inputs["availabilityZone"]
        assert group.inputs["scalingConfig"]["minSize"] == group.inputs["scalingConfig"]["maxSize"]
        (instance_type,) = group.inputs["instanceTypes"]
        floors[target["capacityReservationId"]] = (instance_type, zone, group.inputs["scalingConfig"]["minSize"])
    assert floors == {
        "cr-010d0000000000001": ("p4d.24xlarge", "us-east-2a", 2),
        "cr-010d0000000000002": ("p4d.24xlarge", "us-east-2b", 2),
        "cr-010d0000000000003": ("p4d.24xlarge", "us-east-2c", 2),
        "cr-010e0000000000001": ("p4de.24xlarge", "us-east-2a", 5),
        "cr-010e0000000000002": ("p4de.24xlarge", "us-east-2b", 5),
    }


@pytest.mark.parametrize(("name", "gpu"), [("p4d-a", "a100-40g"), ("p4de-b", "a100-80g")])
def test_gpu_nodes_say_what_they_are_and_keep_others_off(cluster: Graph, name: str, gpu: str) -> None:
    group, template = pool(cluster, name)
    assert group.inputs["labels"] == {POOL: name, CAPACITY: "reserved", GPU: gpu}
    assert group.inputs["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}]
    assert group.inputs["amiType"] == "AL2023_x86_64_NVIDIA" and group.inputs["capacityType"] == "ON_DEMAND"
    assert "instanceMarketOptions" not in template.inputs and "networkInterfaces" not in template.inputs


def test_a_full_reservation_is_updated_without_a_node_to_spare(cluster: Graph) -> None:
    """The default way starts a successor first, and waits for an instance that the reservation does not have."""
    reserved, _ = pool(cluster, "p4d-a")
    assert reserved.inputs["updateConfig"] == {"maxUnavailable": 1, "updateStrategy": "MINIMAL"}
    assert "updateStrategy" not in named(cluster, GROUP, "nodes-system-group").inputs["updateConfig"]


def test_instance_stores_become_one_volume_under_containers(cluster: Graph) -> None:
    """Without it a node has its root disk alone to offer, and an image and a model do not fit there."""
    _, template = pool(cluster, "p4d-a")
    message = email.message_from_bytes(base64.b64decode(template.inputs["userData"]))
    (part,) = message.get_payload()
    assert part.get_content_type() == "application/node.eks.aws"
    config = yaml.safe_load(part.get_payload())
    assert config["kind"] == "NodeConfig" and config["spec"]["instance"]["localStorage"] == {"strategy": "RAID0"}
    assert config["spec"]["featureGates"] == {"FastImagePull": True}


def test_a_capacity_block_is_bought_as_one() -> None:
    block = p4d(reservation={**RESERVATION, "kind": "capacity-block"})
    group, template = pool(recorded_with(LOCAL, reserved_pools={"block": block}), "block")
    assert group.inputs["capacityType"] == "CAPACITY_BLOCK" and "instanceTypes" not in group.inputs
    assert template.inputs["instanceType"] == "p4d.24xlarge"
    assert template.inputs["instanceMarketOptions"] == {"marketType": "capacity-block"}


def test_a_pool_whose_block_has_not_begun_has_no_nodes() -> None:
    group, _ = pool(recorded_with(LOCAL, reserved_pools={"block": p4d(nodes=0)}), "block")
    assert group.inputs["scalingConfig"] == {"minSize": 0, "maxSize": 1, "desiredSize": 0}


def test_engines_over_several_nodes_get_efa_and_a_placement_group_together() -> None:
    l4 = {"instance_type": "g6.2xlarge", "zone": "us-east-2b", "nodes": 1, "reservation": RESERVATION}
    graph = recorded_with(LOCAL, multi_node=True, reserved_pools={"a100": p4d(), "l4": l4})
    _, template = pool(graph, "a100")
    interfaces = template.inputs["networkInterfaces"]
    assert [(item["networkCardIndex"], item["deviceIndex"], item["interfaceType"]) for item in interfaces] == [
        (0, 0, "efa"),
        (1, 1, "efa-only"),
        (2, 1, "efa-only"),
        (3, 1, "efa-only"),
    ]
    assert all(points_at(item["securityGroups"]) == ["cluster-control-plane"] for item in interfaces)
    (group,) = graph.of_type("aws:ec2/placementGroup:PlacementGroup")
    assert (template.inputs["placement"]["groupName"], group.inputs["strategy"]) == (group.inputs["name"], "cluster")
    rule = named(graph, "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule", "nodes-efa").inputs
    assert rule["securityGroupId"] == rule["referencedSecurityGroupId"] and rule["ipProtocol"] == "-1"
    _, single = pool(graph, "l4")
    assert "networkInterfaces" not in single.inputs and "placement" not in single.inputs


def test_one_node_an_engine_needs_neither(cluster: Graph) -> None:
    assert not list(cluster.of_type("aws:ec2/placementGroup:PlacementGroup"))
    assert not list(cluster.of_type("aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule"))


def test_staging_reserves_nothing(graphs: dict[str, Graph]) -> None:
    """A first deployment costs a few dollars an hour: its one GPU node is Karpenter's, by the hour."""
    groups = {group.inputs["nodeGroupName"]: group.inputs for group in graphs[STAGING].of_type(GROUP)}
    assert groups.keys() == {"system", "gateway"}
    assert [groups[name]["scalingConfig"]["minSize"] for name in ("system", "gateway")] == [2, 2]


def test_nodes_may_join_and_pull_and_nothing_else(cluster: Graph) -> None:
    for role in ("nodes-node-role", "karpenter-node-role"):
        role_name = named(cluster, "aws:iam/role:Role", role).inputs["name"]
        attached = {
            found.inputs["policyArn"].rpartition("/")[2]
            for found in cluster.of_type("aws:iam/rolePolicyAttachment:RolePolicyAttachment")
            if found.inputs["role"] == role_name
        }
        assert attached == {"AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"}, role
        inline = [found.name for found in cluster.of_type("aws:iam/rolePolicy:RolePolicy") if found.inputs["role"] == role_name]
        assert not inline, role


def test_karpenters_nodes_are_let_into_the_cluster(cluster: Graph) -> None:
    entry = named(cluster, "aws:eks/accessEntry:AccessEntry", "karpenter-node-access").inputs
    assert entry["type"] == "EC2_LINUX" and points_at(entry["principalArn"]) == ["karpenter-node-role"]
    profile = named(cluster, "aws:iam/instanceProfile:InstanceProfile", "karpenter-node-profile").inputs
    assert profile["role"] == named(cluster, "aws:iam/role:Role", "karpenter-node-role").inputs["name"]
    assert cluster.outputs["karpenter"] == {
        "instance_profile_name": "flotilla-prod-use2-cluster-karpenter-node",
        "interruption_queue": "flotilla-prod-use2-cluster-karpenter",
    }


def test_karpenter_hears_of_every_node_that_is_about_to_go(cluster: Graph) -> None:
    patterns = [json.loads(rule.inputs["eventPattern"]) for rule in cluster.of_type("aws:cloudwatch/eventRule:EventRule")]
    assert sorted((found["source"][0], found["detail-type"][0]) for found in patterns) == sorted(EVENTS.values())
    kinds = {kind for _, kind in EVENTS.values()}
    assert {"EC2 Spot Instance Interruption Warning", "AWS Health Event", "EC2 Instance State-change Notification"} <= kinds
    for target in cluster.of_type("aws:cloudwatch/eventTarget:EventTarget"):
        assert points_at(target.inputs["arn"]) == ["karpenter-interruptions"]
    queue = named(cluster, "aws:sqs/queue:Queue", "karpenter-interruptions").inputs
    assert queue["sqsManagedSseEnabled"] and queue["messageRetentionSeconds"] == 300


def test_only_those_rules_may_write_to_the_queue(cluster: Graph) -> None:
    (statement,) = json.loads(
        named(cluster, "aws:sqs/queuePolicy:QueuePolicy", "karpenter-interruptions-policy").inputs["policy"]
    )["Statement"]
    assert statement["Principal"] == {"Service": "events.amazonaws.com"} and statement["Action"] == ["sqs:SendMessage"]
    assert points_at(statement["Condition"]["ArnEquals"]["aws:SourceArn"]) == sorted(f"karpenter-{what}" for what in EVENTS)


@pytest.mark.parametrize(
    "change", ["a pool in front of the others", "the pools in another order"], ids=lambda text: text.replace(" ", "-")
)
def test_pools_are_known_by_name_and_not_by_place(cluster: Graph, change: str) -> None:
    """A list of pools would replace nodes when one is added in front."""
    from infra import config
    from infra.embedded.recorder import record
    from infra.naming import parse_stack

    pools = config.read_stack_file(parse_stack(PROD))["reserved_pools"]
    new = {"p4d-0": p4d()} if "front" in change else {}
    changed = {**new, **dict(reversed(pools.items()))}
    after = record([PROD], overrides={PROD: {"reserved_pools": changed}})[PROD]
    names = {group.urn for group in after.of_type(GROUP)} - {group.urn for group in cluster.of_type(GROUP)}
    assert len(names) == len(new)
    for group in cluster.of_type(GROUP):
        assert next(found for found in after.of_type(GROUP) if found.urn == group.urn).inputs == group.inputs
