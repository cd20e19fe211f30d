"""What a workload's pods may do in AWS: one role, for one service account of one cluster, through EKS Pod Identity."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.components.roles import RoleArgs, create_role, pod_trust
from infra.naming import ServiceAccount, StackName


@dataclass(frozen=True)
class PodRoleArgs:
    """`policy` is a policy document."""

    role_name: str
    cluster_name: pulumi.Input[str]
    account_id: str
    permissions_boundary_arn: pulumi.Input[str]
    service_account: ServiceAccount
    policy: pulumi.Input[str]


class PodRole(Component):
    """An IAM role that pods of a service account take.

    The association is made with the cluster, before any pod needs it: it is eventually consistent, and no part of a failover.
    """

    def __init__(self, name: str, args: PodRoleArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cluster:PodRole", name, stack, opts)
        self.role = create_role(self, "role", RoleArgs(args.role_name, pod_trust(args.account_id), args.permissions_boundary_arn))
        aws.iam.RolePolicy(self.part("policy"), role=self.role.name, policy=args.policy, opts=self.child())
        aws.eks.PodIdentityAssociation(
            self.part("association"),
            cluster_name=args.cluster_name,
            namespace=args.service_account.namespace,
            service_account=args.service_account.name,
            role_arn=self.role.arn,
            tags=self.tags(),
            opts=self.child(),
        )
        self.register_outputs({})
