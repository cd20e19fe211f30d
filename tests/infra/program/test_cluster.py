"""Network, control plane and pod identity of a region."""

from __future__ import annotations

import ipaddress
import json
from fnmatch import fnmatchcase

import pytest
from cluster_support import LOCAL, PROD, STAGING, is_allowed, named, points_at, recorded_with, statements

from infra import versions
from infra.components.cluster.controller_policies import KarpenterNames, karpenter_policy, load_balancer_policy
from infra.components.cluster.workload_policies import Place
from infra.components.network.addresses import plan_subnets
from infra.components.network.private_endpoints import INTERFACES
from infra.embedded.graph import Graph
from infra.errors import ConfigError
from infra.naming import Names

RULE = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
PLACE = Place("us-east-2", "us-east-2", "222222222222")
OWN, OTHER = "flotilla-prod-use2-cluster", "somebody-elses-cluster"


@pytest.fixture
def cluster(graphs: dict[str, Graph]) -> Graph:
    return graphs[PROD]


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
    for letter in "abc":
        route = named(cluster, "aws:ec2/route:Route", f"network-private-{letter}-default")
        (gateway,) = points_at(route.inputs["natGatewayId"])
        (subnet,) = points_at(named(cluster, "aws:ec2/natGateway:NatGateway", gateway).inputs["subnetId"])
        assert zones[subnet] == zones[f"network-private-{letter}"]
        association = named(cluster, "aws:ec2/routeTableAssociation:RouteTableAssociation", f"network-private-{letter}-routes")
        assert points_at(association.inputs["routeTableId"]) == points_at(route.inputs["routeTableId"])


def test_a_cheaper_environment_has_one_way_out_for_all(graphs: dict[str, Graph]) -> None:
    staging = graphs[STAGING]
    assert [gateway.name for gateway in staging.of_type("aws:ec2/natGateway:NatGateway")] == ["network-nat-a"]
    ways_out = [
        points_at(route.inputs["natGatewayId"])
        for route in staging.of_type("aws:ec2/route:Route")
        if "natGatewayId" in route.inputs
    ]
    assert ways_out == [["network-nat-a"]] * 3
    interfaces = [
        end for end in staging.of_type("aws:ec2/vpcEndpoint:VpcEndpoint") if end.inputs["vpcEndpointType"] == "Interface"
    ]
    assert {tuple(points_at(end.inputs["subnetIds"])) for end in interfaces} == {("network-private-a",)}


def test_aws_is_reached_without_nat(cluster: Graph) -> None:
    """A NAT gateway's fault must not keep a node from its images, or a pod from its credentials."""
    endpoints = {
        end.inputs["serviceName"].partition("us-east-2.")[2]: end for end in cluster.of_type("aws:ec2/vpcEndpoint:VpcEndpoint")
    }
    assert endpoints.keys() == {"s3", "dynamodb", *INTERFACES}
    assert {"ecr.api", "ecr.dkr", "eks", "eks-auth", "sts", "ec2", "kms", "secretsmanager", "logs"} <= INTERFACES.keys()
    for service, endpoint in endpoints.items():
        if service in INTERFACES:
            assert endpoint.inputs["privateDnsEnabled"] and len(endpoint.inputs["subnetIds"]) == 3
            assert points_at(endpoint.inputs["securityGroupIds"]) == ["network-endpoints-group"]
        else:
            assert points_at(endpoint.inputs["routeTableIds"]) == [f"network-private-{letter}-table" for letter in "abc"]
    rule = named(cluster, RULE, "network-endpoints-https").inputs
    assert (rule["cidrIpv4"], rule["fromPort"], rule["toPort"]) == ("10.16.0.0/16", 443, 443)


def test_subnets_are_marked_for_those_who_look_for_them(cluster: Graph) -> None:
    for subnet in cluster.of_type("aws:ec2/subnet:Subnet"):
        is_public, tags = "public" in subnet.name, subnet.inputs["tags"]
        assert ("kubernetes.io/role/elb" in tags) == is_public
        assert ("kubernetes.io/role/internal-elb" in tags) != is_public
        assert tags.get("karpenter.sh/discovery") == (None if is_public else OWN), "a node in a public subnet is on the internet"
        assert not subnet.inputs["mapPublicIpOnLaunch"]


def test_what_the_network_refuses_is_written_down(cluster: Graph) -> None:
    (flow,) = cluster.of_type("aws:ec2/flowLog:FlowLog")
    assert flow.inputs["trafficType"] == "REJECT" and points_at(flow.inputs["vpcId"]) == ["network-vpc"]
    for log in cluster.of_type("aws:cloudwatch/logGroup:LogGroup"):
        assert log.inputs["retentionInDays"] == 90


def test_the_control_plane_is_private_encrypted_audited_and_kept(cluster: Graph) -> None:
    (control_plane,) = cluster.of_type("aws:eks/cluster:Cluster")
    inputs = control_plane.inputs
    assert inputs["vpcConfig"]["endpointPrivateAccess"] and not inputs["vpcConfig"]["endpointPublicAccess"]
    assert inputs["accessConfig"] == {"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": False}
    assert inputs["encryptionConfig"]["resources"] == ["secrets"]
    assert "audit" in inputs["enabledClusterLogTypes"] and inputs["deletionProtection"] and control_plane.options.protect
    assert inputs["version"] == "1.36" and inputs["upgradePolicy"] == {"supportType": "STANDARD"}
    (log,) = (urn for urn in control_plane.options.depends_on if urn.endswith("cluster-log"))
    assert named(cluster, "aws:cloudwatch/logGroup:LogGroup", "cluster-log").urn == log, "or EKS makes it, and keeps it for ever"


def test_admins_are_those_of_the_stack_file(cluster: Graph) -> None:
    """Creating a cluster gives no rights, so with no entry nobody could reach it."""
    entry = named(cluster, "aws:eks/accessEntry:AccessEntry", "cluster-access-flotilla-deploy")
    assert entry.inputs["principalArn"] == "arn:aws:iam::222222222222:role/flotilla-deploy-us-east-2"
    admin = named(cluster, "aws:eks/accessPolicyAssociation:AccessPolicyAssociation", "cluster-admin-flotilla-deploy")
    assert admin.inputs["policyArn"].endswith("/AmazonEKSClusterAdminPolicy")
    assert len(list(cluster.of_type("aws:eks/accessPolicyAssociation:AccessPolicyAssociation"))) == 1


def test_a_runner_in_the_vpc_reaches_the_private_endpoint(cluster: Graph) -> None:
    rule = named(cluster, RULE, "cluster-api-from-vpc").inputs
    assert (rule["cidrIpv4"], rule["fromPort"], rule["toPort"]) == ("10.16.0.0/16", 443, 443)
    assert points_at(rule["securityGroupId"]) == ["cluster-control-plane"]


def test_public_networks_open_the_public_endpoint_to_themselves_and_private_ones_the_private_one() -> None:
    graph = recorded_with(LOCAL, cluster_access=["198.18.0.0/15", "54.240.0.0/24", "10.200.0.0/16"])
    (control_plane,) = graph.of_type("aws:eks/cluster:Cluster")
    vpc = control_plane.inputs["vpcConfig"]
    assert vpc["endpointPublicAccess"] and vpc["publicAccessCidrs"] == ["54.240.0.0/24"]
    let_in = {rule.inputs["cidrIpv4"] for rule in graph.of_type(RULE) if rule.name.startswith("cluster-api-from-")}
    assert let_in == {"10.16.0.0/16", "198.18.0.0/15", "10.200.0.0/16"}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"cluster_access": ["0.0.0.0/0"]}, "`cluster_access` has 0.0.0.0/0, must be /8 or narrower"),
        ({"kubernetes_version": "1.39"}, "`kubernetes_version` is 1.39, must be one of 1.36, 1.35"),
        ({"kubernetes_version": "1.34"}, "`kubernetes_version` is 1.34, must be 1.35 or later"),
        (
            {
                "reserved_pools": {
                    "gateway": {
                        "instance_type": "p4d.24xlarge",
                        "zone": "us-east-2a",
                        "nodes": 1,
                        "reservation": {"id": "cr-010d0000000000001"},
                    }
                }
            },
            "`reserved_pools` has 'gateway', the name of a pool of every cluster",
        ),
    ],
)
def test_what_would_make_a_bad_cluster_is_refused(overrides: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recorded_with(LOCAL, **overrides)
    assert told in caught.value.message


def test_every_version_of_kubernetes_has_its_addons_and_node_image() -> None:
    for addon, pinned in versions.ADDONS.items():
        assert pinned.keys() == versions.NODE_AMIS.keys(), addon
    for kubernetes, release in versions.NODE_AMIS.items():
        assert release.startswith(f"{kubernetes}.") and versions.ADDONS["kube-proxy"][kubernetes].startswith(f"v{kubernetes}.")
    assert versions.KUBERNETES in versions.NODE_AMIS
    assert versions.node_image_alias("1.36") == "al2023@v20260911"
    assert versions.node_image_parameter("1.36", "nvidia") == (
        "/aws/service/eks/optimized-ami/1.36/amazon-linux-2023/x86_64/nvidia"
        "/amazon-eks-node-al2023-x86_64-nvidia-1.36-v20260911/image_id"
    )


def test_addons_are_pinned_and_come_before_or_after_the_nodes(cluster: Graph) -> None:
    """Nodes without a network plugin never become ready, and their group fails after a quarter of an hour."""
    addons = {found.inputs["addonName"]: found for found in cluster.of_type("aws:eks/addon:Addon")}
    assert {name: found.inputs["addonVersion"] for name, found in addons.items()} == {
        name: pinned["1.36"] for name, pinned in versions.ADDONS.items()
    }
    groups = [group.urn for group in cluster.of_type("aws:eks/nodeGroup:NodeGroup")]
    for group in cluster.of_type("aws:eks/nodeGroup:NodeGroup"):
        for name in ("vpc-cni", "kube-proxy", "eks-pod-identity-agent"):
            assert addons[name].urn in group.options.depends_on, (group.name, name)
    for name in ("coredns", "metrics-server", "aws-ebs-csi-driver"):
        assert set(groups) <= set(addons[name].options.depends_on), name
    assert json.loads(addons["vpc-cni"].inputs["configurationValues"]) == {"enableNetworkPolicy": "true"}
    assert json.loads(addons["eks-node-monitoring-agent"].inputs["configurationValues"]) == {
        "dcgmAgent": {"tolerations": [{"operator": "Exists"}]}
    }


def test_every_role_carries_the_boundary(graphs: dict[str, Graph]) -> None:
    """A role without it is what someone with a deploy role could give themselves."""
    for stack, graph in graphs.items():
        if ".cluster." in stack:
            wanted = graphs[f"{stack.partition('.')[0]}.foundation"].outputs["permissions_boundary_arn"]
            roles = list(graph.of_type("aws:iam/role:Role"))
            assert len(roles) >= 9 and {role.inputs.get("permissionsBoundary") for role in roles} == {wanted}, stack


def test_the_boundary_lets_every_role_do_what_its_policy_says(graphs: dict[str, Graph]) -> None:
    """What the boundary leaves out is denied without a word: a controller that may not ask one question does not start."""
    (boundary,) = graphs["prod.foundation"].of_type("aws:iam/policy:Policy")
    within = [found for found in json.loads(boundary.inputs["policy"])["Statement"] if found["Effect"] == "Allow"]
    patterns = [pattern for found in within for pattern in found["Action"]]
    policies = [json.loads(found.inputs["policy"]) for found in graphs[PROD].of_type("aws:iam/rolePolicy:RolePolicy")]
    actions = {action for policy in policies for statement in policy["Statement"] for action in statement["Action"]}
    assert len(actions) > 50
    assert {action for action in actions if not any(fnmatchcase(action, pattern) for pattern in patterns)} == set()


def test_names_fit_their_limits_with_the_longest_prefix_environment_and_code(cluster: Graph) -> None:
    longest = Names("p" * 16, "e" * 12).regionally("c" * 6, "")
    grown = len(longest) - len(Names("flotilla", "prod").regionally("use2", ""))
    limits = {"aws:iam/role:Role": 64, "aws:iam/instanceProfile:InstanceProfile": 128, "aws:cloudwatch/eventRule:EventRule": 64}
    for kind, limit in {**limits, "aws:sqs/queue:Queue": 80, "aws:eks/cluster:Cluster": 100}.items():
        names = [resource.inputs["name"] for resource in cluster.of_type(kind)]
        assert names and all(len(name) + grown <= limit for name in names), kind


@pytest.mark.parametrize(
    ("role", "namespace", "account"),
    [
        ("gateway-role", "serving", "gateway"),
        ("engine-role", "serving", "engine"),
        ("load-balancer-role", "kube-system", "aws-load-balancer-controller"),
        ("karpenter-controller", "kube-system", "karpenter"),
    ],
)
def test_a_workload_has_one_role_for_its_own_service_account(cluster: Graph, role: str, namespace: str, account: str) -> None:
    association = named(cluster, "aws:eks/podIdentityAssociation:PodIdentityAssociation", f"{role}-association").inputs
    assert (association["namespace"], association["serviceAccount"]) == (namespace, account)
    assert points_at(association["roleArn"]) == [f"{role}-role"]
    (trusted,) = json.loads(named(cluster, "aws:iam/role:Role", f"{role}-role").inputs["assumeRolePolicy"])["Statement"]
    assert trusted["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert trusted["Condition"] == {"StringEquals": {"aws:SourceAccount": "222222222222"}}


@pytest.mark.parametrize("role", ["gateway-role", "engine-role"])
def test_policies_name_their_actions_and_their_resources(cluster: Graph, role: str) -> None:
    found = list(statements(cluster, f"{role}-policy"))
    assert len(found) >= 4
    for statement in found:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"]), statement
        assert "*" not in statement["Resource"], statement


def test_an_engine_can_write_nothing_and_read_no_secret(cluster: Graph) -> None:
    """An engine runs other people's prompts."""
    actions = {action for statement in statements(cluster, "engine-role-policy") for action in statement["Action"]}
    assert actions == {"dynamodb:GetItem", "dynamodb:Query", "s3:GetObject", "s3:ListBucket", "kms:Decrypt"}


def test_a_gateway_appends_usage_and_cannot_take_it_back(cluster: Graph) -> None:
    policy = list(statements(cluster, "gateway-role-policy"))
    of_ledger = [found for found in policy if any("ledger" in arn for arn in found["Resource"])]
    reads = {"dynamodb:BatchGetItem", "dynamodb:GetItem", "dynamodb:Query", "dynamodb:Scan"}
    assert [set(found["Action"]) - reads for found in of_ledger] == [{"dynamodb:PutItem"}]
    of_archive = {action for found in policy if "archive" in str(found["Resource"]) for action in found["Action"]}
    assert of_archive == {"s3:GetObject", "s3:ListBucket", "s3:PutObject"}


def test_a_region_away_from_home_may_write_at_home(graphs: dict[str, Graph]) -> None:
    policy = statements(graphs["prod.cluster.us-west-2"], "gateway-role-policy")
    (tenants,) = (found for found in policy if found["Sid"] == "KeepTenants")
    assert [arn.split(":")[3] for arn in tenants["Resource"]] == ["us-east-2", "us-west-2"]


def test_a_gateway_may_list_tenants_and_look_for_many_rows_at_once(graphs: dict[str, Graph]) -> None:
    """Sealing and reports of all usage list tenants and rows; shippers check rows in batches. No emulator refuses that."""
    found = {its["Sid"]: set(its["Action"]) for its in statements(graphs["prod.cluster.us-east-2"], "gateway-role-policy")}
    assert "dynamodb:Scan" in found["KeepTenants"]
    assert {"dynamodb:Scan", "dynamodb:BatchGetItem"} <= found["AppendUsage"]


KARPENTER_REQUESTS = [
    # (action, kind of resource, tags in the request, tags of the resource, whether it is allowed)
    ("ec2:RunInstances", "subnet", {}, {}, True),
    ("ec2:RunInstances", "instance", {"cluster": OWN, "nodepool": "p4d"}, {}, True),
    ("ec2:RunInstances", "instance", {"cluster": OTHER, "nodepool": "p4d"}, {}, False),
    ("ec2:RunInstances", "instance", {}, {}, False),
    ("ec2:RunInstances", "launch-template", {}, {"cluster": OWN, "nodepool": "p4d"}, True),
    ("ec2:RunInstances", "launch-template", {}, {"cluster": OTHER, "nodepool": "p4d"}, False),
    ("ec2:RunInstances", "capacity-reservation", {}, {}, False),
    ("ec2:TerminateInstances", "instance", {}, {"cluster": OWN, "nodepool": "p4d"}, True),
    # A managed node of the same cluster has no pool of Karpenter's.
    ("ec2:TerminateInstances", "instance", {}, {"cluster": OWN}, False),
    ("ec2:TerminateInstances", "instance", {}, {"cluster": OTHER, "nodepool": "p4d"}, False),
    ("ec2:DeleteLaunchTemplate", "launch-template", {}, {}, False),
]  # fmt: skip


@pytest.mark.parametrize(("action", "kind", "requested", "existing", "allowed"), KARPENTER_REQUESTS)
def test_karpenter_touches_nodes_of_its_own_alone(
    action: str, kind: str, requested: dict[str, str], existing: dict[str, str], allowed: bool
) -> None:
    policy = json.loads(karpenter_policy(PLACE, KarpenterNames(OWN, "node", "queue")))["Statement"]
    context: dict[str, str] = {}
    for which, tags in (("RequestTag", requested), ("ResourceTag", existing)):
        if "cluster" in tags:
            context |= {f"aws:{which}/kubernetes.io/cluster/{tags['cluster']}": "owned"}
            context |= {f"aws:{which}/eks:eks-cluster-name": tags["cluster"]}
        if "nodepool" in tags:
            context[f"aws:{which}/karpenter.sh/nodepool"] = tags["nodepool"]
    assert is_allowed(policy, action, f"arn:aws:ec2:us-east-2:222222222222:{kind}/x-1", context) == allowed


def test_karpenter_changes_nothing_in_iam_and_passes_one_role() -> None:
    policy = json.loads(karpenter_policy(PLACE, KarpenterNames(OWN, "node", "queue")))["Statement"]
    in_iam = {action for found in policy for action in found["Action"] if action.startswith("iam:")}
    assert in_iam == {"iam:GetInstanceProfile", "iam:ListInstanceProfiles", "iam:PassRole"}
    node, admin = (f"arn:aws:iam::222222222222:role/{name}" for name in ("node", "admin"))
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert is_allowed(policy, "iam:PassRole", node, to_ec2) and not is_allowed(policy, "iam:PassRole", admin, to_ec2)
    assert not is_allowed(policy, "iam:PassRole", node, {"iam:PassedToService": "lambda.amazonaws.com"})


@pytest.mark.parametrize(
    ("environment", "action", "allowed"),
    [("prod", "RegisterTargets", True), ("staging", "RegisterTargets", False), ("prod", "DeleteTargetGroup", False)],
)
def test_the_load_balancer_controller_moves_pods_of_its_environment_and_no_more(
    environment: str, action: str, allowed: bool
) -> None:
    policy = json.loads(load_balancer_policy(PLACE, "prod"))["Statement"]
    group = "arn:aws:elasticloadbalancing:us-east-2:222222222222:targetgroup/gateway/1"
    tags = {"aws:ResourceTag/project": "flotilla", "aws:ResourceTag/environment": environment}
    assert is_allowed(policy, f"elasticloadbalancing:{action}", group, tags) == allowed


def test_volumes_may_be_encrypted_with_our_key(cluster: Graph) -> None:
    policy = {found["Sid"]: found for found in statements(cluster, "addons-ebs-csi-key")}
    assert policy["GrantKeyToVolumes"]["Condition"] == {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    assert policy["UseKey"]["Resource"] == policy["GrantKeyToVolumes"]["Resource"] != ["*"]


def test_the_kubeconfig_holds_no_credential(cluster: Graph) -> None:
    config = json.loads(cluster.outputs["kubeconfig"])
    (user,) = config["users"]
    assert set(user["user"]) == {"exec"}
