"""A managed node group and its launch template: nodes that outlive every controller in the cluster.

No node gives credentials to a container (metadata wants a token and answers one hop far), disks are encrypted, images are pinned.
Nothing scales a group but its stack file: what follows demand is Karpenter's, on nodes of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pulumi
import pulumi_aws as aws

from infra import versions
from infra.components.component import Component
from infra.naming import StackName
from infra.scheduling import Effect, Taint

STANDARD_AMI = "AL2023_x86_64_STANDARD"
NVIDIA_AMI = "AL2023_x86_64_NVIDIA"
"""Has driver, container toolkit and fabric manager, and no device plugin: that is a chart."""
ROOT_DISK_GIB = 100
UPDATE_PERCENT = 33
"""Of a group's nodes at a time: one zone's worth."""
EFFECTS: Mapping[Effect, str] = {"NoSchedule": "NO_SCHEDULE", "NoExecute": "NO_EXECUTE"}
"""As EKS writes them."""


@dataclass(frozen=True)
class Hardware:
    """What sets a group's instances apart in their launch template."""

    user_data: str | None = None
    """Base64; EKS appends its own part."""
    instance_type: str | None = None
    """Where the template must name it; the group does otherwise."""
    reservation: aws.ec2.LaunchTemplateCapacityReservationSpecificationArgsDict | None = None
    market: aws.ec2.LaunchTemplateInstanceMarketOptionsArgsDict | None = None
    interfaces: Sequence[aws.ec2.LaunchTemplateNetworkInterfaceArgsDict] | None = None
    placement: aws.ec2.LaunchTemplatePlacementArgsDict | None = None


@dataclass(frozen=True)
class NodeGroupArgs:
    """`group` is its name in EKS. Sizes are numbers of nodes; it starts with `min_size`."""

    group: str
    template_name: str
    cluster_name: pulumi.Input[str]
    kubernetes_version: str
    role_arn: pulumi.Input[str]
    subnet_ids: Sequence[pulumi.Input[str]]
    instance_types: Sequence[str]
    min_size: int
    max_size: int
    labels: Mapping[str, str]
    taints: Sequence[Taint] = ()
    ami_type: str = STANDARD_AMI
    capacity_type: Literal["ON_DEMAND", "CAPACITY_BLOCK"] = "ON_DEMAND"
    has_room_to_surge: bool = True
    """Whether AWS has instances beside these, so that a node's successor can come before it goes. A full reservation has none."""
    hardware: Hardware = Hardware()
    after: Sequence[pulumi.Resource] = ()
    """What must be there before the first node. A component's own `depends_on` does not reach its children."""


class ManagedNodeGroup(Component):
    """Launch template and node group."""

    def __init__(self, name: str, args: NodeGroupArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cluster:ManagedNodeGroup", name, stack, opts)
        template = self._create_template(args.template_name, args.hardware)
        self.group = aws.eks.NodeGroup(
            self.part("group"),
            cluster_name=args.cluster_name,
            node_group_name=args.group,
            node_role_arn=args.role_arn,
            subnet_ids=args.subnet_ids,
            version=args.kubernetes_version,
            ami_type=args.ami_type,
            release_version=versions.NODE_AMIS[args.kubernetes_version],
            capacity_type=args.capacity_type,
            instance_types=None if args.hardware.instance_type else list(args.instance_types),
            scaling_config={"min_size": args.min_size, "max_size": args.max_size, "desired_size": args.min_size},
            update_config=_update(args.has_room_to_surge),
            node_repair_config={"enabled": True, "max_parallel_nodes_repaired_count": 1},
            launch_template={"id": template.id, "version": template.latest_version.apply(str)},
            labels=dict(args.labels),
            taints=[{"key": taint.key, "value": taint.value, "effect": EFFECTS[taint.effect]} for taint in args.taints],
            tags=self.tags(),
            opts=self.child(depends_on=args.after),
        )
        self.register_outputs({})

    def _create_template(self, template_name: str, hardware: Hardware) -> aws.ec2.LaunchTemplate:
        return aws.ec2.LaunchTemplate(
            self.part("template"),
            name=template_name,
            update_default_version=True,
            metadata_options={"http_tokens": "required", "http_put_response_hop_limit": 1, "http_endpoint": "enabled"},
            # AWS's own key for volumes: with ours, Auto Scaling's role would need a grant, and a node's disk keeps nothing.
            block_device_mappings=[
                {
                    "device_name": "/dev/xvda",
                    "ebs": {
                        "volume_size": ROOT_DISK_GIB,
                        "volume_type": "gp3",
                        "encrypted": "true",
                        "delete_on_termination": "true",
                    },
                }
            ],
            user_data=hardware.user_data,
            instance_type=hardware.instance_type,
            capacity_reservation_specification=hardware.reservation,
            instance_market_options=hardware.market,
            network_interfaces=hardware.interfaces,
            placement=hardware.placement,
            tag_specifications=[
                {"resource_type": kind, "tags": self.tags(Name=template_name)}
                for kind in ("instance", "volume", "network-interface")
            ],
            tags=self.tags(),
            opts=self.child(),
        )


def _update(has_room_to_surge: bool) -> aws.eks.NodeGroupUpdateConfigArgsDict:
    if has_room_to_surge:
        return {"max_unavailable_percentage": UPDATE_PERCENT}
    return {"max_unavailable": 1, "update_strategy": "MINIMAL"}
