"""Network, Kubernetes and pod identity of a region."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest

from infra.components.network.addresses import plan_subnets
from infra.embedded.graph import Graph, tokens_in

CLUSTER = "local.cluster.us-east-2"


@pytest.fixture
def cluster(local_graphs: dict[str, Graph]) -> Graph:
    return local_graphs[CLUSTER]


def statements(graph: Graph, role: str) -> Iterator[dict[str, Any]]:
    (policy,) = (found for found in graph.of_type("aws:iam/rolePolicy:RolePolicy") if found.name == f"{role}-policy")
    yield from json.loads(policy.inputs["policy"])["Statement"]


@pytest.mark.parametrize("cidr", ["10.0.0.0/16", "10.16.0.0/16", "172.31.0.0/16"])
def test_subnets_lie_in_the_vpc_and_apart_from_each_other(cidr: str) -> None:
    vpc = ipaddress.IPv4Network(cidr)
    planned = plan_subnets(vpc, ["a", "b", "c"])
    every = [network for zone in planned for network in (zone.private, zone.public)]
    assert len(every) == 6 and all(network.subnet_of(vpc) for network in every)
    assert not any(one.overlaps(other) for index, one in enumerate(every) for other in every[:index])


def test_each_zone_has_its_own_way_out(cluster: Graph) -> None:
    """One NAT gateway for all zones is what takes a whole region down with one of them."""
    zones = {subnet.name: subnet.inputs["availabilityZone"] for subnet in cluster.of_type("aws:ec2/subnet:Subnet")}
    assert len(set(zones.values())) == 3 and len(zones) == 6
    assert len(list(cluster.of_type("aws:ec2/natGateway:NatGateway"))) == 3
    for letter in "abc":
        (route,) = (
            found for found in cluster.of_type("aws:ec2/route:Route") if found.name == f"network-private-default-{letter}"
        )
        ((urn, _),) = tokens_in(route.inputs["natGatewayId"])
        assert urn.endswith(f"network-nat-{letter}")


def test_the_control_plane_is_private_encrypted_audited_and_kept(cluster: Graph) -> None:
    (control_plane,) = cluster.of_type("aws:eks/cluster:Cluster")
    inputs = control_plane.inputs
    assert inputs["vpcConfig"]["endpointPrivateAccess"] and not inputs["vpcConfig"]["endpointPublicAccess"]
    assert inputs["accessConfig"] == {"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": False}
    assert inputs["encryptionConfig"]["resources"] == ["secrets"]
    assert "audit" in inputs["enabledClusterLogTypes"] and inputs["deletionProtection"]
    assert inputs["version"] == "1.36" and inputs["upgradePolicy"] == {"supportType": "STANDARD"}
    assert list(cluster.of_type("aws:eks/accessEntry:AccessEntry")), "with no entry nobody could reach the cluster"


def test_nodes_give_credentials_to_no_container(cluster: Graph) -> None:
    (template,) = cluster.of_type("aws:ec2/launchTemplate:LaunchTemplate")
    assert template.inputs["metadataOptions"] == {
        "httpTokens": "required",
        "httpPutResponseHopLimit": 1,
        "httpEndpoint": "enabled",
    }


@pytest.mark.parametrize("account", ["gateway", "engine"])
def test_a_workload_has_one_role_for_its_own_service_account(cluster: Graph, account: str) -> None:
    kind = "aws:eks/podIdentityAssociation:PodIdentityAssociation"
    (association,) = (found for found in cluster.of_type(kind) if found.name == f"{account}-role-association")
    assert (association.inputs["namespace"], association.inputs["serviceAccount"]) == ("serving", account)


@pytest.mark.parametrize("role", ["gateway-role", "engine-role"])
def test_policies_name_their_actions_and_their_resources(cluster: Graph, role: str) -> None:
    found = list(statements(cluster, role))
    assert len(found) >= 4
    for statement in found:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"]), statement
        assert "*" not in statement["Resource"], statement


def test_an_engine_can_write_nothing_and_read_no_secret(cluster: Graph) -> None:
    """An engine runs other people's prompts."""
    actions = {action for statement in statements(cluster, "engine-role") for action in statement["Action"]}
    assert actions == {"dynamodb:GetItem", "dynamodb:Query", "s3:GetObject", "s3:ListBucket", "kms:Decrypt"}


def test_a_gateway_appends_usage_and_cannot_take_it_back(cluster: Graph) -> None:
    of_ledger = [found for found in statements(cluster, "gateway-role") if any("ledger" in arn for arn in found["Resource"])]
    assert [found["Action"] for found in of_ledger] == [["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query"]]
    of_archive = {
        action
        for found in statements(cluster, "gateway-role")
        if "archive" in str(found["Resource"])
        for action in found["Action"]
    }
    assert of_archive == {"s3:GetObject", "s3:ListBucket", "s3:PutObject"}


def test_a_region_away_from_home_may_write_at_home(local_graphs: dict[str, Graph]) -> None:
    (tenants,) = (
        found for found in statements(local_graphs["local.cluster.us-west-2"], "gateway-role") if found["Sid"] == "KeepTenants"
    )
    assert [arn.split(":")[3] for arn in tenants["Resource"]] == ["us-east-2", "us-west-2"]


def test_the_kubeconfig_holds_no_credential(local_graphs: dict[str, Graph]) -> None:
    config = json.loads(local_graphs[CLUSTER].outputs["kubeconfig"])
    (user,) = config["users"]
    assert set(user["user"]) == {"exec"}
