"""Roles that AWS's services, nodes and pods take. Every one carries the permissions boundary of the foundation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component

POD_IDENTITY = "pods.eks.amazonaws.com"
MANAGED_POLICIES = "arn:aws:iam::aws:policy"


@dataclass(frozen=True)
class RoleArgs:
    """`trust` is the document that says who takes it."""

    role_name: str
    trust: str
    permissions_boundary_arn: pulumi.Input[str]


def create_role(owner: Component, what: str, args: RoleArgs) -> aws.iam.Role:
    """A role, as a child of `owner` that is called `what`."""
    return aws.iam.Role(
        owner.part(what),
        name=args.role_name,
        assume_role_policy=args.trust,
        permissions_boundary=args.permissions_boundary_arn,
        tags=owner.tags(),
        opts=owner.child(),
    )


def attach_policies(owner: Component, what: str, role: aws.iam.Role, policies: Sequence[str]) -> list[pulumi.Resource]:
    """Gives `role` policies that AWS keeps, named as below `MANAGED_POLICIES`. Whatever uses the role should wait for them."""
    return [
        aws.iam.RolePolicyAttachment(
            owner.part(f"{what}-{policy.rpartition('/')[2]}"),
            role=role.name,
            policy_arn=f"{MANAGED_POLICIES}/{policy}",
            opts=owner.child(),
        )
        for policy in policies
    ]


def pod_trust(account_id: str) -> str:
    """Trust in pods of this account, through EKS Pod Identity."""
    condition = {"StringEquals": {"aws:SourceAccount": account_id}}
    return iam.trust(POD_IDENTITY, ["sts:AssumeRole", "sts:TagSession"], condition)
