"""A floor of GPU nodes on capacity that AWS holds for us: one managed group a pool, of one type, in one zone, on one reservation.

A group takes what its reservation has and no more, so a node goes before its successor comes. Each node's instance store becomes
one RAID 0 volume under containerd and the kubelet: images unpack and weights land on NVMe, and the node offers its size as
ephemeral storage. One node holds the largest model, so plain network interfaces are the default; `multi_node` gives a pool EFA on
every network card and a placement group, together, since neither helps alone.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.cluster.node_group import NVIDIA_AMI, Hardware, ManagedNodeGroup, NodeGroupArgs
from infra.components.component import Component
from infra.instances import INSTANCE_SHAPES
from infra.naming import StackName
from infra.scheduling import Capacity, gpu_taints, node_labels
from infra.stack_config.cluster import ReservedPool

NODE_CONFIG = """\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="//"

--//
Content-Type: application/node.eks.aws

apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  featureGates:
    FastImagePull: true
  instance:
    localStorage:
      strategy: RAID0
--//--
"""
"""What nodeadm reads; EKS adds the cluster's part. FastImagePull unpacks layers in parallel, and only slows a disk of less than
about 600 MiB/s, so it goes with RAID 0 and never with a root volume."""


@dataclass(frozen=True)
class ReservedNodesArgs:
    """`subnet_id` is that of the pool's zone; `security_group_id` is the cluster's."""

    pool: ReservedPool
    pool_name: str
    cluster: str
    cluster_name: pulumi.Input[str]
    kubernetes_version: str
    role_arn: pulumi.Input[str]
    subnet_id: pulumi.Input[str]
    security_group_id: pulumi.Input[str]
    multi_node: bool
    after: Sequence[pulumi.Resource]


class ReservedNodes(Component):
    """The nodes of a reserved pool."""

    def __init__(self, name: str, args: ReservedNodesArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gpu:ReservedNodes", name, stack, opts)
        pool, shape = args.pool, INSTANCE_SHAPES[args.pool.instance_type]
        is_block = pool.reservation.kind == "capacity-block"
        has_efa = args.multi_node and shape.num_network_cards > 1
        hardware = Hardware(
            user_data=base64.b64encode(NODE_CONFIG.encode()).decode(),
            instance_type=pool.instance_type if is_block else None,
            reservation={"capacity_reservation_target": {"capacity_reservation_id": pool.reservation.id}},
            market={"market_type": "capacity-block"} if is_block else None,
            interfaces=efa_interfaces(shape.num_network_cards, args.security_group_id) if has_efa else None,
            placement={"group_name": self._create_placement_group(args).name} if has_efa else None,
        )
        ManagedNodeGroup(
            self.part("nodes"),
            NodeGroupArgs(
                group=args.pool_name,
                template_name=f"{args.cluster}-{args.pool_name}",
                cluster_name=args.cluster_name,
                kubernetes_version=args.kubernetes_version,
                role_arn=args.role_arn,
                subnet_ids=[args.subnet_id],
                instance_types=[pool.instance_type],
                min_size=pool.nodes,
                max_size=max(pool.nodes, 1),
                labels=node_labels(args.pool_name, Capacity.RESERVED, shape.gpu),
                taints=gpu_taints(Capacity.RESERVED),
                ami_type=NVIDIA_AMI,
                capacity_type="CAPACITY_BLOCK" if is_block else "ON_DEMAND",
                has_room_to_surge=False,
                hardware=hardware,
                after=args.after,
            ),
            stack,
            self.child(),
        )
        self.register_outputs({})

    def _create_placement_group(self, args: ReservedNodesArgs) -> aws.ec2.PlacementGroup:
        return aws.ec2.PlacementGroup(
            self.part("placement"),
            name=f"{args.cluster}-{args.pool_name}",
            strategy="cluster",
            tags=self.tags(),
            opts=self.child(),
        )


def efa_interfaces(
    num_network_cards: int, security_group_id: pulumi.Input[str]
) -> Sequence[aws.ec2.LaunchTemplateNetworkInterfaceArgsDict]:
    """One a card. The first carries IP too; the others carry EFA alone, or each would take addresses from the pods' subnet."""
    return [
        {
            "network_card_index": card,
            "device_index": 0 if card == 0 else 1,
            "interface_type": "efa" if card == 0 else "efa-only",
            "delete_on_termination": "true",
            "security_groups": [security_group_id],
        }
        for card in range(num_network_cards)
    ]
