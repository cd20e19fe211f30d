"""The role of nodes: join the cluster, pull images. What pods may do is theirs, not the node's."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.components.roles import RoleArgs, attach_policies, create_role

NODE_POLICIES = ("AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly")
"""Not that of the network plugin, which could move any node's addresses: the plugin's pods have a role of their own."""


def create_node_role(
    owner: Component, what: str, role_name: str, permissions_boundary_arn: pulumi.Input[str]
) -> tuple[aws.iam.Role, Sequence[pulumi.Resource]]:
    """A role for nodes, and what must be there before the first of them."""
    role = create_role(owner, f"{what}-role", RoleArgs(role_name, iam.trust("ec2.amazonaws.com"), permissions_boundary_arn))
    return role, attach_policies(owner, what, role, NODE_POLICIES)
