"""A drill in AWS: one availability zone of a region cut off from everything, by an experiment of AWS FIS.

The zone's subnets get a network ACL that refuses all that enters or leaves them, and theirs back after `DURATION`. AWS ends the
experiment at once when the load balancer has no healthy gateway left, which is more than the loss of a zone should cost. FIS
refuses to start while that alarm rings, and a region without any answer counts as one that rings.

Action, scope and the rights it takes: FIS user guide, "Actions reference", `aws:network:disrupt-connectivity`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.components.roles import RoleArgs, create_role
from infra.naming import PROJECT, StackName

DRILL = "az-loss"
"""The drill, and the end of its template's name."""
DURATION = "PT10M"
"""Long enough for health checks, rescheduling and new nodes; FIS takes a minute to 12 hours."""
LOG_DAYS = 90
OURS = {"aws:RequestTag/managedByFIS": "true"}
MADE_BY_FIS = {"aws:ResourceTag/managedByFIS": "true"}


@dataclass(frozen=True)
class ZoneLossArgs:
    """`drill_name` names template, role, log and alarm; `zone` is the one that is lost."""

    drill_name: str
    account_id: str
    region: str
    zone: str
    vpc_id: pulumi.Input[str]
    load_balancer: pulumi.Input[str]
    """As CloudWatch calls it: the end of its ARN."""
    target_group: pulumi.Input[str]
    permissions_boundary_arn: pulumi.Input[str]


class ZoneLoss(Component):
    """Template, the alarm that stops it, its role and its log."""

    def __init__(self, name: str, args: ZoneLossArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("drills:ZoneLoss", name, stack, opts)
        log = aws.cloudwatch.LogGroup(
            self.part("log"), name=args.drill_name, retention_in_days=LOG_DAYS, tags=self.tags(), opts=self.child()
        )
        role = create_role(self, "role", RoleArgs(args.drill_name, _trust(args), args.permissions_boundary_arn))
        policy = aws.iam.RolePolicy(self.part("policy"), role=role.name, policy=_policy(args, stack), opts=self.child())
        alarm = aws.cloudwatch.MetricAlarm(
            self.part("no-gateway"),
            name=args.drill_name,
            alarm_description="No gateway of the region is healthy: a drill ends here",
            namespace="AWS/ApplicationELB",
            metric_name="HealthyHostCount",
            dimensions={"LoadBalancer": args.load_balancer, "TargetGroup": args.target_group},
            statistic="Maximum",
            comparison_operator="LessThanThreshold",
            threshold=1,
            period=60,
            evaluation_periods=1,
            treat_missing_data="breaching",
            tags=self.tags(),
            opts=self.child(),
        )
        aws.fis.ExperimentTemplate(
            self.part("template"),
            description=f"The region loses {args.zone}",
            role_arn=role.arn,
            targets=[
                {
                    "name": "zone",
                    "resource_type": "aws:ec2:subnet",
                    "selection_mode": "ALL",
                    "resource_tags": [
                        {"key": "project", "value": PROJECT},
                        {"key": "environment", "value": stack.environment},
                    ],
                    "filters": [
                        {"path": "VpcId", "values": [args.vpc_id]},
                        {"path": "AvailabilityZone", "values": [args.zone]},
                    ],
                }
            ],
            actions=[
                {
                    "name": "cut-off",
                    "action_id": "aws:network:disrupt-connectivity",
                    "target": {"key": "Subnets", "value": "zone"},
                    "parameters": [{"key": "duration", "value": DURATION}, {"key": "scope", "value": "all"}],
                }
            ],
            stop_conditions=[{"source": "aws:cloudwatch:alarm", "value": alarm.arn}],
            experiment_options={"account_targeting": "single-account", "empty_target_resolution_mode": "fail"},
            log_configuration={
                "log_schema_version": 2,
                "cloudwatch_logs_configuration": {"log_group_arn": pulumi.Output.concat(log.arn, ":*")},
            },
            tags=self.tags(Name=args.drill_name),
            opts=self.child(depends_on=[policy]),
        )
        self.register_outputs({})


def _trust(args: ZoneLossArgs) -> str:
    """Trust in experiments of this account and region, and in nothing else that FIS does."""
    experiments = f"arn:aws:fis:{args.region}:{args.account_id}:experiment/*"
    condition = {"StringEquals": {"aws:SourceAccount": args.account_id}, "ArnLike": {"aws:SourceArn": experiments}}
    return iam.trust("fis.amazonaws.com", condition=condition)


def _policy(args: ZoneLossArgs, stack: StackName) -> str:
    """Rights to make network ACLs, change and delete those alone, and put them on the environment's own subnets."""
    ec2 = f"arn:aws:ec2:{args.region}:{args.account_id}"
    acls, networks, subnets = ([f"{ec2}:{kind}/*"] for kind in ("network-acl", "vpc", "subnet"))
    tagged = {"ec2:CreateAction": "CreateNetworkAcl", **OURS}
    our_subnets = {"aws:ResourceTag/project": PROJECT, "aws:ResourceTag/environment": stack.environment}
    described = ("ManagedPrefixLists", "NetworkAcls", "Subnets", "Vpcs")
    reads = [*(f"ec2:Describe{kind}" for kind in described), "ec2:GetManagedPrefixListEntries"]
    logs = ["logs:CreateLogDelivery", "logs:DescribeLogGroups", "logs:DescribeResourcePolicies", "logs:PutResourcePolicy"]
    return iam.plain_document(
        iam.allow("TagAcls", ["ec2:CreateTags"], acls, {"StringEquals": tagged}),
        iam.allow("MakeAcls", ["ec2:CreateNetworkAcl"], acls, {"StringEquals": OURS}),
        iam.allow("MakeAclsIn", ["ec2:CreateNetworkAcl"], networks),
        iam.allow("ChangeAcls", ["ec2:CreateNetworkAclEntry", "ec2:DeleteNetworkAcl"], acls, {"StringEquals": MADE_BY_FIS}),
        iam.allow("PutAcls", ["ec2:ReplaceNetworkAclAssociation"], acls),
        iam.allow("PutAclsOn", ["ec2:ReplaceNetworkAclAssociation"], subnets, {"StringEquals": our_subnets}),
        iam.allow("Read", reads, ["*"]),
        # Deliveries have no ARN before they are made.
        iam.allow("Log", logs, ["*"], {"StringEquals": {"aws:RequestedRegion": args.region}}),
    )
