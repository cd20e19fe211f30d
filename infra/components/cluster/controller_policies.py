"""What the controllers may do in AWS. Pure documents; `PodRole` gives them to pods.

Karpenter's follows its CloudFormation template and the calls in the source of version 1.14 (`pkg/aws/sdk.go`), without what we do
not use: it makes no instance profile, and takes no reservation, which managed groups hold. It changes only what carries the
cluster's tag. The load balancer controller puts pods into target groups of this environment; load balancers are Pulumi's.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra import iam
from infra.components.cluster.workload_policies import Place
from infra.naming import PROJECT

LAUNCH = ("ec2:RunInstances", "ec2:CreateFleet")
DESCRIBE_FOR_KARPENTER = (
    "ec2:DescribeCapacityReservations",
    "ec2:DescribeImages",
    "ec2:DescribeInstanceStatus",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeInstances",
    "ec2:DescribeLaunchTemplates",
    "ec2:DescribePlacementGroups",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSpotPriceHistory",
    "ec2:DescribeSubnets",
)
DESCRIBE_FOR_LOAD_BALANCERS = (
    "ec2:DescribeAvailabilityZones",
    "ec2:DescribeInstances",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
    "elasticloadbalancing:DescribeListeners",
    "elasticloadbalancing:DescribeLoadBalancers",
    "elasticloadbalancing:DescribeTags",
    "elasticloadbalancing:DescribeTargetGroupAttributes",
    "elasticloadbalancing:DescribeTargetGroups",
    "elasticloadbalancing:DescribeTargetHealth",
)


@dataclass(frozen=True)
class KarpenterNames:
    """Physical names of what Karpenter works with."""

    cluster: str
    node_role: str
    queue: str


def karpenter_policy(place: Place, names: KarpenterNames) -> str:
    """Launches, tags and ends nodes of its own cluster; hears of interruptions."""
    region, account = place.region, place.account_id
    owned = {f"kubernetes.io/cluster/{names.cluster}": "owned"}
    requested = {f"aws:RequestTag/{key}": value for key, value in {**owned, "eks:eks-cluster-name": names.cluster}.items()}
    existing = {f"aws:ResourceTag/{key}": value for key, value in owned.items()}
    of_new_pools = {"aws:RequestTag/karpenter.sh/nodepool": "*"}
    of_pools = {"aws:ResourceTag/karpenter.sh/nodepool": "*"}

    def ec2(*kinds: str) -> list[str]:
        return [f"arn:aws:ec2:{region}:{account}:{kind}/*" for kind in kinds]

    templates = ec2("launch-template")
    made = ec2("fleet", "instance", "volume", "network-interface", "launch-template", "spot-instances-request")
    at_creation = {"ec2:CreateAction": ["CreateFleet", "CreateLaunchTemplate", "RunInstances"]}
    later_tags = {"aws:TagKeys": ["Name", "eks:eks-cluster-name", "karpenter.sh/nodeclaim"]}
    images = [f"arn:aws:ec2:{region}::{kind}/*" for kind in ("image", "snapshot")]
    return iam.plain_document(
        iam.allow("LaunchInto", LAUNCH, [*images, *ec2("security-group", "subnet")]),
        iam.allow("LaunchFromOwnTemplates", LAUNCH, templates, {"StringEquals": existing, "StringLike": of_pools}),
        iam.allow(
            "LaunchTagged",
            (*LAUNCH, "ec2:CreateLaunchTemplate"),
            made,
            {"StringEquals": requested, "StringLike": of_new_pools},
        ),
        iam.allow(
            "TagAtCreation", ["ec2:CreateTags"], made, {"StringEquals": {**requested, **at_creation}, "StringLike": of_new_pools}
        ),
        iam.allow(
            "TagOwn",
            ["ec2:CreateTags"],
            ec2("instance"),
            {"StringEquals": existing, "StringLike": of_pools, "ForAllValues:StringEquals": later_tags},
        ),
        iam.allow(
            "EndOwn",
            ["ec2:TerminateInstances", "ec2:DeleteLaunchTemplate"],
            ec2("instance", "launch-template"),
            {"StringEquals": existing, "StringLike": of_pools},
        ),
        iam.allow("Look", DESCRIBE_FOR_KARPENTER, ["*"], {"StringEquals": {"aws:RequestedRegion": region}}),
        iam.allow("FindImages", ["ssm:GetParameter"], [f"arn:aws:ssm:{region}::parameter/aws/service/*"]),
        iam.allow("ComparePrices", ["pricing:GetProducts"], ["*"]),
        iam.allow(
            "HearInterruptions",
            ["sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage"],
            [iam.queue_arn(region, account, names.queue)],
        ),
        iam.allow(
            "GiveNodesTheirRole",
            ["iam:PassRole"],
            [iam.role_arn(account, names.node_role)],
            {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
        ),
        iam.allow("ReadProfiles", ["iam:GetInstanceProfile", "iam:ListInstanceProfiles"], ["*"]),
        iam.allow(
            "KnowCluster",
            ["arc-zonal-shift:GetManagedResource", "eks:DescribeCluster"],
            [iam.cluster_arn(region, account, names.cluster)],
        ),
    )


def load_balancer_policy(place: Place, environment: str) -> str:
    """Moves pods in and out of the environment's target groups, and looks at what else it needs to know."""
    groups = f"arn:aws:elasticloadbalancing:{place.region}:{place.account_id}:targetgroup/*"
    ours = {"aws:ResourceTag/project": PROJECT, "aws:ResourceTag/environment": environment}
    return iam.plain_document(
        iam.allow("Look", DESCRIBE_FOR_LOAD_BALANCERS, ["*"], {"StringEquals": {"aws:RequestedRegion": place.region}}),
        iam.allow(
            "MovePods",
            ["elasticloadbalancing:DeregisterTargets", "elasticloadbalancing:RegisterTargets"],
            [groups],
            {"StringEquals": ours},
        ),
    )
