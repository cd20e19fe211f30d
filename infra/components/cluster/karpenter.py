"""Karpenter's side of AWS: who its nodes are, who its controller is, and the queue that tells of nodes about to go.

The chart, the node pools and the node classes are the serving stack's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.cluster.controller_policies import KarpenterNames, karpenter_policy
from infra.components.cluster.node_role import create_node_role
from infra.components.cluster.pod_role import PodRole, PodRoleArgs
from infra.components.cluster.workload_policies import Place
from infra.components.component import Component
from infra.naming import KARPENTER, StackName

EVENTS: Mapping[str, tuple[str, str]] = {
    "spot": ("aws.ec2", "EC2 Spot Instance Interruption Warning"),
    "rebalance": ("aws.ec2", "EC2 Instance Rebalance Recommendation"),
    "reservation": ("aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning"),
    "state": ("aws.ec2", "EC2 Instance State-change Notification"),
    "health": ("aws.health", "AWS Health Event"),
}
"""Source and kind of what Karpenter 1.14 understands (`pkg/controllers/interruption/messages`)."""
MESSAGE_LIFE_S = 300
"""A notice older than this is of a node that is gone."""


@dataclass(frozen=True)
class KarpenterArgs:
    """`cluster_name` is the one that EKS gives back; `cluster` the same, known beforehand."""

    cluster: str
    cluster_name: pulumi.Input[str]
    place: Place
    permissions_boundary_arn: pulumi.Input[str]


class KarpenterInAws(Component):
    """Nodes' role, instance profile and access entry; controller's role; interruption queue and its rules."""

    def __init__(self, name: str, args: KarpenterArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cluster:KarpenterInAws", name, stack, opts)
        names = KarpenterNames(args.cluster, node_role=f"{args.cluster}-karpenter-node", queue=f"{args.cluster}-karpenter")
        role, attached = create_node_role(self, "node", names.node_role, args.permissions_boundary_arn)
        self.instance_profile = aws.iam.InstanceProfile(
            self.part("node-profile"),
            name=names.node_role,
            role=role.name,
            tags=self.tags(),
            opts=self.child(depends_on=attached),
        )
        # For managed groups EKS makes the entry itself, and must not find it made.
        aws.eks.AccessEntry(
            self.part("node-access"),
            cluster_name=args.cluster_name,
            principal_arn=role.arn,
            type="EC2_LINUX",
            tags=self.tags(),
            opts=self.child(),
        )
        PodRole(
            self.part("controller"),
            PodRoleArgs(
                role_name=f"{args.cluster}-karpenter",
                cluster_name=args.cluster_name,
                account_id=args.place.account_id,
                permissions_boundary_arn=args.permissions_boundary_arn,
                service_account=KARPENTER,
                policy=karpenter_policy(args.place, names),
            ),
            stack,
            self.child(),
        )
        self.queue = self._create_queue(names.queue)
        rules = [self._create_rule(what, f"{args.cluster}-{what}") for what in EVENTS]
        self._let_rules_send(rules)
        self.register_outputs({})

    def _create_queue(self, queue_name: str) -> aws.sqs.Queue:
        return aws.sqs.Queue(
            self.part("interruptions"),
            name=queue_name,
            message_retention_seconds=MESSAGE_LIFE_S,
            sqs_managed_sse_enabled=True,
            tags=self.tags(),
            opts=self.child(),
        )

    def _create_rule(self, what: str, rule_name: str) -> aws.cloudwatch.EventRule:
        source, kind = EVENTS[what]
        rule = aws.cloudwatch.EventRule(
            self.part(what),
            name=rule_name,
            description=f"To Karpenter: {kind}",
            event_pattern=iam.compact_json({"source": [source], "detail-type": [kind]}),
            tags=self.tags(),
            opts=self.child(),
        )
        aws.cloudwatch.EventTarget(
            self.part(f"{what}-target"), rule=rule.name, target_id="karpenter", arn=self.queue.arn, opts=self.child()
        )
        return rule

    def _let_rules_send(self, rules: Sequence[aws.cloudwatch.EventRule]) -> None:
        """These rules alone may write to the queue: whoever else could would have Karpenter drain any node."""
        statement: iam.Statement = {
            **iam.allow(
                "RulesSend", ["sqs:SendMessage"], [self.queue.arn], {"ArnEquals": {"aws:SourceArn": [rule.arn for rule in rules]}}
            ),
            "Principal": {"Service": "events.amazonaws.com"},
        }
        aws.sqs.QueuePolicy(
            self.part("interruptions-policy"), queue_url=self.queue.id, policy=iam.document(statement), opts=self.child()
        )
