"""A role that some principals of the account may take for one duty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.naming import StackName

SESSION_S = 4 * 3600
"""Long enough for an evacuation and the return from it."""


@dataclass(frozen=True)
class DutyRoleArgs:
    """`principals` are ARNs of roles or users of the account, `*` allowed in them; `policy` is a document."""

    role_name: str
    account_id: str
    principals: Sequence[str]
    policy: pulumi.Input[str]
    boundary_arn: pulumi.Input[str]


class DutyRole(Component):
    """An IAM role with one policy, under the environment's boundary."""

    def __init__(self, name: str, args: DutyRoleArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("access:DutyRole", name, stack, opts)
        role = aws.iam.Role(
            self.part("role"),
            name=args.role_name,
            assume_role_policy=iam.trust_within(args.account_id, args.principals),
            max_session_duration=SESSION_S,
            permissions_boundary=args.boundary_arn,
            tags=self.tags(),
            opts=self.child(),
        )
        aws.iam.RolePolicy(self.part("policy"), role=role.name, policy=args.policy, opts=self.child())
        self.register_outputs({})
