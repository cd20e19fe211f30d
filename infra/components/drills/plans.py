"""What each drill in AWS harms: targets, actions, and the rights they take and no more.

Actions, their targets and their rights are those of the FIS user guide, "Actions reference" (read 2026-11-24). What was left
out, and why: latency between pods (`aws:eks:pod-network-latency`) needs privileged pods, which the namespace refuses; S3's
replication is not paused, as no role of an environment may write a bucket's replication (`access/permissions_boundary.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.errors import ConfigError
from infra.naming import NAMESPACE, PROJECT, Names, StackName
from infra.stack_config.serving import Drill

Target = aws.fis.ExperimentTemplateTargetArgsDict
Action = aws.fis.ExperimentTemplateActionArgsDict
DURATION = "PT10M"
"""Long enough for health checks, rescheduling and new nodes; FIS takes a minute to 12 hours."""
WRITE_LATENCY_MS = "500"
"""A journal's write, which stands before every answer, takes a millisecond or two."""
OURS = {"aws:RequestTag/managedByFIS": "true"}
MADE_BY_FIS = {"aws:ResourceTag/managedByFIS": "true"}
JOURNALS = {"kubernetes.io/created-for/pvc/namespace": NAMESPACE}
"""What the EBS CSI driver tags volumes with (its documentation, "Volume tagging")."""


class Stop(StrEnum):
    """What ends an experiment early."""

    NO_GATEWAY = "no_gateway"
    """No gateway of the region is healthy: more than the drill should cost."""
    TOLD = "told"
    """Somebody says so: the drill is meant to leave no gateway."""


@dataclass(frozen=True)
class Plan:
    """A drill for FIS, less what all have in common."""

    description: str
    targets: Sequence[Target]
    actions: Sequence[Action]
    statements: Sequence[iam.Statement]
    stop: Stop = Stop.NO_GATEWAY


@dataclass(frozen=True)
class Place:
    """The region that is harmed."""

    stack: StackName
    account_id: str
    names: Names
    zones: Sequence[str]
    other_regions: Sequence[str]
    """Of the environment."""
    vpc_id: pulumi.Input[str]

    @property
    def tags(self) -> list[aws.fis.ExperimentTemplateTargetResourceTagArgsDict]:
        """What all that belongs to the environment carries."""
        return [{"key": "project", "value": PROJECT}, {"key": "environment", "value": self.stack.environment}]

    @property
    def tagged(self) -> Mapping[str, str]:
        """The same as a condition."""
        return {"aws:ResourceTag/project": PROJECT, "aws:ResourceTag/environment": self.stack.environment}

    def arns(self, *kinds: str) -> list[str]:
        """EC2's ARNs of these kinds."""
        return [f"arn:aws:ec2:{self.stack.region}:{self.account_id}:{kind}/*" for kind in kinds]


def plan_of(drill: Drill, place: Place) -> Plan:
    """What `drill` does to `place`.

    Raises:
        ConfigError: the environment has no region to be cut off from.
    """
    return _PLANS[drill](place)


def _action(name: str, action_id: str, kind: str, target: str, **parameters: str) -> Action:
    """An action on a target of the template, for `DURATION`."""
    given = {"duration": DURATION, **parameters}
    return {
        "name": name,
        "action_id": action_id,
        "target": {"key": kind, "value": target},
        "parameters": [{"key": key, "value": value} for key, value in sorted(given.items())],
    }


def _subnets(place: Place, name: str, *zones: str) -> Target:
    """The region's own subnets, of all zones or of those named."""
    filters: list[aws.fis.ExperimentTemplateTargetFilterArgsDict] = [{"path": "VpcId", "values": [place.vpc_id]}]
    if zones:
        filters.append({"path": "AvailabilityZone", "values": list(zones)})
    return {
        "name": name,
        "resource_type": "aws:ec2:subnet",
        "selection_mode": "ALL",
        "resource_tags": place.tags,
        "filters": filters,
    }


def _cut_off(place: Place, description: str, subnets: Target, stop: Stop) -> Plan:
    """Subnets get a network ACL that refuses all that enters or leaves them, and theirs back afterwards."""
    acls, on = place.arns("network-acl"), place.arns("subnet")
    described = ("ManagedPrefixLists", "NetworkAcls", "Subnets", "Vpcs")
    reads = [*(f"ec2:Describe{kind}" for kind in described), "ec2:GetManagedPrefixListEntries"]
    return Plan(
        description,
        [subnets],
        [_action("cut-off", "aws:network:disrupt-connectivity", "Subnets", str(subnets["name"]), scope="all")],
        [
            iam.allow("TagAcls", ["ec2:CreateTags"], acls, {"StringEquals": {"ec2:CreateAction": "CreateNetworkAcl", **OURS}}),
            iam.allow("MakeAcls", ["ec2:CreateNetworkAcl"], acls, {"StringEquals": OURS}),
            iam.allow("MakeAclsIn", ["ec2:CreateNetworkAcl"], place.arns("vpc")),
            iam.allow("ChangeAcls", ["ec2:CreateNetworkAclEntry", "ec2:DeleteNetworkAcl"], acls, {"StringEquals": MADE_BY_FIS}),
            iam.allow("PutAcls", ["ec2:ReplaceNetworkAclAssociation"], acls),
            iam.allow("PutAclsOn", ["ec2:ReplaceNetworkAclAssociation"], on, {"StringEquals": dict(place.tagged)}),
            iam.allow("Read", reads, ["*"]),
        ],
        stop,
    )


def _az_loss(place: Place) -> Plan:
    zone = place.zones[0]
    return _cut_off(place, f"The region loses {zone}", _subnets(place, "zone", zone), Stop.NO_GATEWAY)


def _region_loss(place: Place) -> Plan:
    """Cut off, not dead: within a subnet all goes on, and AWS's own services go on copying tables and objects."""
    return _cut_off(place, "The region's network is cut off from everything", _subnets(place, "region"), Stop.TOLD)


def _partition(place: Place) -> Plan:
    """No packet reaches another region of the environment, and tables are not copied. Objects still are."""
    if not place.other_regions:
        raise ConfigError(
            f"`flotilla:drills.templates` of {place.stack} has partition, and {place.stack.environment} has one region",
            "take it out there",
        )
    prefix = place.names.globally("*")
    tables = iam.table_arn(place.stack.region, place.account_id, prefix)
    made, reads = ("CreateRouteTable", "CreateManagedPrefixList", "CreateNetworkInterface"), _DESCRIBED_ROUTES
    ours = place.arns("route-table", "prefix-list", "network-interface")
    policies = ["dynamodb:PutResourcePolicy", "dynamodb:DeleteResourcePolicy", "dynamodb:GetResourcePolicy"]
    associate = ["ec2:AssociateRouteTable", "ec2:DisassociateRouteTable", "ec2:ReplaceRouteTableAssociation"]
    changes = ["ec2:CreateRoute", "ec2:DeleteRouteTable", "ec2:DeleteManagedPrefixList", "ec2:ModifyManagedPrefixList"]
    return Plan(
        "The region is cut off from the environment's others, and tables are not copied",
        [
            _subnets(place, "subnets"),
            {
                "name": "tables",
                "resource_type": "aws:dynamodb:global-table",
                "selection_mode": "ALL",
                "resource_tags": place.tags,
            },
        ],
        [
            *(
                _action(
                    f"cut-{region}",
                    "aws:network:route-table-disrupt-cross-region-connectivity",
                    "Subnets",
                    "subnets",
                    region=region,
                )
                for region in place.other_regions
            ),
            _action("pause-tables", "aws:dynamodb:global-table-pause-replication", "Tables", "tables"),
        ],
        [
            iam.allow("TagMade", ["ec2:CreateTags"], ours, {"StringEquals": {"ec2:CreateAction": list(made), **OURS}}),
            iam.allow("Make", [f"ec2:{verb}" for verb in made], ours, {"StringEquals": OURS}),
            iam.allow("MakeIn", [f"ec2:{verb}" for verb in made], place.arns("vpc", "subnet", "security-group")),
            iam.allow("Change", [*changes, "ec2:DeleteNetworkInterface"], ours, {"StringEquals": MADE_BY_FIS}),
            iam.allow("Associate", associate, place.arns("route-table")),
            iam.allow("AssociateOn", associate, place.arns("subnet"), {"StringEquals": dict(place.tagged)}),
            iam.allow("Endpoints", ["ec2:ModifyVpcEndpoint"], place.arns("vpc-endpoint"), {"StringEquals": dict(place.tagged)}),
            iam.allow("EndpointRoutes", ["ec2:ModifyVpcEndpoint"], place.arns("route-table")),
            iam.allow("Read", [*reads, "tag:GetResources"], ["*"]),
            iam.allow("Tables", [*policies, "dynamodb:DescribeTable"], [tables, f"{tables}/stream/*"]),
        ],
    )


_DESCRIBED_ROUTES = (
    "ec2:DescribeManagedPrefixLists",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeRouteTables",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcPeeringConnections",
    "ec2:DescribeVpcs",
    "ec2:GetManagedPrefixListEntries",
)


def _cache_loss(place: Place) -> Plan:
    """The first zone's nodes of the cache lose power, the primary among them or not; a replica elsewhere takes over."""
    region, account = place.stack.region, place.account_id
    groups = f"arn:aws:elasticache:{region}:{account}:replicationgroup:{place.names.globally('*')}"
    zone = place.zones[0]
    return Plan(
        f"The cache loses {zone}",
        [
            {
                "name": "cache",
                "resource_type": "aws:elasticache:replicationgroup",
                "selection_mode": "ALL",
                "resource_tags": place.tags,  # neither ARNs nor filters are taken
                "parameters": {"availabilityZoneIdentifier": zone},
            }
        ],
        [_action("interrupt", "aws:elasticache:replicationgroup-interrupt-az-power", "ReplicationGroups", "cache")],
        [
            iam.allow("Interrupt", ["elasticache:InterruptClusterAzPower"], [groups]),
            iam.allow("Read", ["elasticache:DescribeReplicationGroups", "tag:GetResources"], ["*"]),
        ],
    )


def _slow_region(place: Place) -> Plan:
    """Every gateway's journal is slow to write, and so is the beginning and the end of every answer."""
    targets: list[Target] = [
        {
            "name": f"journals-{zone}",
            "resource_type": "aws:ec2:ebs-volume",
            "selection_mode": "ALL",
            "resource_tags": [{"key": key, "value": value} for key, value in JOURNALS.items()],
            "parameters": {"availabilityZoneIdentifier": zone},
        }
        for zone in place.zones  # an action's volumes must be in one zone
    ]
    latency = {"writeIOLatencyMilliseconds": WRITE_LATENCY_MS}
    condition = {f"aws:ResourceTag/{key}": value for key, value in JOURNALS.items()}
    return Plan(
        f"Each write of a gateway's journal takes {WRITE_LATENCY_MS} ms",
        targets,
        [_action(f"slow-{zone}", "aws:ebs:volume-io-latency", "Volumes", f"journals-{zone}", **latency) for zone in place.zones],
        [
            iam.allow("Slow", ["ec2:InjectVolumeIOLatency"], place.arns("volume"), {"StringEquals": condition}),
            iam.allow("Read", ["ec2:DescribeVolumes", "tag:GetResources"], ["*"]),
        ],
    )


_PLANS: Mapping[Drill, Callable[[Place], Plan]] = {
    Drill.REGION_LOSS: _region_loss,
    Drill.PARTITION: _partition,
    Drill.AZ_LOSS: _az_loss,
    Drill.CACHE_LOSS: _cache_loss,
    Drill.SLOW_REGION: _slow_region,
}
