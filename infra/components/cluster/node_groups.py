"""The nodes that always run: system, gateways, and a floor of GPUs for each reservation. Each is a managed group.

The rest of a region's nodes come and go by demand, through Karpenter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.cluster.node_group import ManagedNodeGroup, NodeGroupArgs
from infra.components.cluster.node_role import create_node_role
from infra.components.component import Component
from infra.components.gpu.reserved_pool import ReservedNodes, ReservedNodesArgs
from infra.naming import StackName
from infra.scheduling import GATEWAY_POOL, SYSTEM_POOL, SYSTEM_TAINT, Capacity, Taint, node_labels
from infra.stack_config.cluster import ClusterConfig, CpuNodesConfig


@dataclass(frozen=True)
class NodeGroupsArgs:
    """`subnet_ids` are the private subnets by zone; `security_group_id` is the cluster's."""

    config: ClusterConfig
    cluster: str
    cluster_name: pulumi.Input[str]
    security_group_id: pulumi.Input[str]
    subnet_ids: Mapping[str, pulumi.Input[str]]
    permissions_boundary_arn: pulumi.Input[str]
    after: Sequence[pulumi.Resource]
    """What makes a node ready."""


class NodeGroups(Component):
    """All managed groups, and the role that their nodes share."""

    def __init__(self, name: str, args: NodeGroupsArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cluster:NodeGroups", name, stack, opts)
        self._args = args
        self._role, attached = create_node_role(self, "node", f"{args.cluster}-node", args.permissions_boundary_arn)
        self._after = [*args.after, *attached]
        # Add-ons and charts share these nodes; without the taint, the first pod of ours that fits nowhere else takes their room.
        self._create_cpu_group(SYSTEM_POOL, args.config.system_nodes, (SYSTEM_TAINT,))
        self._create_cpu_group(GATEWAY_POOL, args.config.gateway_nodes, ())
        for pool_name, pool in args.config.reserved_pools.items():
            ReservedNodes(
                self.part(pool_name),
                ReservedNodesArgs(
                    pool=pool,
                    pool_name=pool_name,
                    cluster=args.cluster,
                    cluster_name=args.cluster_name,
                    kubernetes_version=args.config.kubernetes_version,
                    role_arn=self._role.arn,
                    subnet_id=args.subnet_ids[pool.zone],
                    security_group_id=args.security_group_id,
                    multi_node=args.config.multi_node,
                    after=self._after,
                ),
                stack,
                self.child(),
            )
        if args.config.multi_node:
            self._let_efa_out()
        self.register_outputs({})

    def _create_cpu_group(self, pool: str, config: CpuNodesConfig, taints: tuple[Taint, ...]) -> None:
        ManagedNodeGroup(
            self.part(pool),
            NodeGroupArgs(
                group=pool,
                template_name=f"{self._args.cluster}-{pool}",
                cluster_name=self._args.cluster_name,
                kubernetes_version=self._args.config.kubernetes_version,
                role_arn=self._role.arn,
                subnet_ids=list(self._args.subnet_ids.values()),
                instance_types=config.instance_types,
                min_size=config.min_size,
                max_size=config.max_size,
                labels=node_labels(pool, Capacity.ON_DEMAND),
                taints=taints,
                after=self._after,
            ),
            self.stack,
            self.child(),
        )

    def _let_efa_out(self) -> None:
        """EFA passes by the kernel, and a rule that names addresses does not cover it: one must name the group itself. EKS's own
        rule does so for what comes in."""
        aws.vpc.SecurityGroupEgressRule(
            self.part("efa"),
            security_group_id=self._args.security_group_id,
            referenced_security_group_id=self._args.security_group_id,
            description="EFA between nodes",
            ip_protocol="-1",
            tags=self.tags(),
            opts=self.child(),
        )
