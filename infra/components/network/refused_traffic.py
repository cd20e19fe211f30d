"""What the network refused, as flow logs: a scan, or a policy that cuts off what should talk, shows there first.

Refusals alone: a region of engines moves terabytes of what was accepted, and a log of it costs more than the traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.components.roles import RoleArgs, create_role
from infra.naming import StackName

WRITE_LOGS = ("logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")


@dataclass(frozen=True)
class RefusedTrafficArgs:
    """`log_name` names the log group and the role that writes it."""

    log_name: str
    vpc_id: pulumi.Input[str]
    log_days: int
    permissions_boundary_arn: pulumi.Input[str]


class RefusedTraffic(Component):
    """A flow log of a VPC, in CloudWatch."""

    def __init__(self, name: str, args: RefusedTrafficArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("network:RefusedTraffic", name, stack, opts)
        log = aws.cloudwatch.LogGroup(
            self.part("log"), name=args.log_name, retention_in_days=args.log_days, tags=self.tags(), opts=self.child()
        )
        role = create_role(
            self, "role", RoleArgs(args.log_name, iam.trust("vpc-flow-logs.amazonaws.com"), args.permissions_boundary_arn)
        )
        policy = aws.iam.RolePolicy(
            self.part("policy"),
            role=role.name,
            policy=iam.document(iam.allow("WriteLogs", WRITE_LOGS, [pulumi.Output.concat(log.arn, ":*")])),
            opts=self.child(),
        )
        aws.ec2.FlowLog(
            self.part("flow"),
            vpc_id=args.vpc_id,
            traffic_type="REJECT",
            log_destination_type="cloud-watch-logs",
            log_destination=log.arn,
            iam_role_arn=role.arn,
            tags=self.tags(Name=args.log_name),
            opts=self.child(depends_on=[policy]),
        )
        self.register_outputs({})
