"""The EKS add-ons without which no pod of ours would run, in the order in which nodes need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.naming import StackName

BEFORE_NODES = ("vpc-cni", "kube-proxy", "eks-pod-identity-agent")
AFTER_NODES = ("coredns", "aws-ebs-csi-driver")
CONFIGURATION = {"vpc-cni": iam.compact_json({"enableNetworkPolicy": "true"})}
"""Without it EKS accepts network policies and enforces none."""


@dataclass(frozen=True)
class ClusterAddonsArgs:
    """`ebs_csi_role_arn` is the role that may make volumes."""

    cluster_name: pulumi.Input[str]
    system_nodes: pulumi.Resource
    ebs_csi_role_arn: pulumi.Input[str]


class ClusterAddons(Component):
    """Network, DNS, proxy, pod identity and volumes."""

    def __init__(self, name: str, args: ClusterAddonsArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cluster:ClusterAddons", name, stack, opts)
        for addon in BEFORE_NODES:
            self._create(addon, args, ())
        for addon in AFTER_NODES:
            self._create(addon, args, (args.system_nodes,))
        self.register_outputs({})

    def _create(self, addon: str, args: ClusterAddonsArgs, after: Sequence[pulumi.Resource]) -> None:
        identities: list[aws.eks.AddonPodIdentityAssociationArgsDict] = (
            [{"role_arn": args.ebs_csi_role_arn, "service_account": "ebs-csi-controller-sa"}]
            if addon == "aws-ebs-csi-driver"
            else []
        )
        aws.eks.Addon(
            self.part(addon),
            cluster_name=args.cluster_name,
            addon_name=addon,
            configuration_values=CONFIGURATION.get(addon),
            pod_identity_associations=identities,
            resolve_conflicts_on_create="OVERWRITE",
            resolve_conflicts_on_update="PRESERVE",
            tags=self.tags(),
            opts=self.child(depends_on=list(after)),
        )
