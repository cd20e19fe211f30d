"""The EKS add-ons, pinned: `NodeAddons` is what a node needs to become ready, `ClusterAddons` what needs ready nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from infra import iam, versions
from infra.components.component import Component
from infra.components.roles import RoleArgs, attach_policies, create_role, pod_trust
from infra.naming import StackName
from infra.scheduling import POOL, SYSTEM_POOL, SYSTEM_TAINT, toleration

ON_SYSTEM_NODES: Mapping[str, Any] = {"nodeSelector": {POOL: SYSTEM_POOL}, "tolerations": [toleration(SYSTEM_TAINT)]}
EVERYWHERE: Mapping[str, Any] = {"tolerations": [{"operator": "Exists"}]}
MAX_DNS_REPLICAS = 10
USE_KEY = (
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)


@dataclass(frozen=True)
class AddonsArgs:
    """`cluster` is the cluster's physical name; add-ons wait for `cluster_name`, the one that EKS gives back."""

    cluster: str
    cluster_name: pulumi.Input[str]
    kubernetes_version: str
    account_id: str
    kms_key_arn: pulumi.Input[str]
    permissions_boundary_arn: pulumi.Input[str]
    after: Sequence[pulumi.Resource] = ()
    """Add-ons wait for these."""


class _Addons(Component):
    """What both kinds share."""

    def __init__(self, kind: str, name: str, args: AddonsArgs, stack: StackName, opts: pulumi.ResourceOptions | None) -> None:
        super().__init__(kind, name, stack, opts)
        self._args = args

    def _create(
        self,
        addon: str,
        settings: Mapping[str, Any] | None = None,
        identity: aws.eks.AddonPodIdentityAssociationArgsDict | None = None,
        after: Sequence[pulumi.Resource] = (),
    ) -> None:
        aws.eks.Addon(
            self.part(addon),
            cluster_name=self._args.cluster_name,
            addon_name=addon,
            addon_version=versions.ADDONS[addon][self._args.kubernetes_version],
            configuration_values=iam.compact_json(settings) if settings else None,
            pod_identity_associations=[identity] if identity else [],
            resolve_conflicts_on_create="OVERWRITE",
            resolve_conflicts_on_update="PRESERVE",
            tags=self.tags(),
            opts=self.child(depends_on=[*self._args.after, *after]),
        )

    def _create_role(self, what: str, policy: str) -> tuple[aws.iam.Role, list[pulumi.Resource]]:
        """The role of an add-on's pods; EKS associates it itself."""
        trust = pod_trust(self._args.account_id)
        role = create_role(
            self, f"{what}-role", RoleArgs(f"{self._args.cluster}-{what}", trust, self._args.permissions_boundary_arn)
        )
        return role, attach_policies(self, what, role, (policy,))


class NodeAddons(_Addons):
    """Network, proxy, pod identity, and who watches the node's hardware. Groups of nodes come after these."""

    def __init__(self, name: str, args: AddonsArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cluster:NodeAddons", name, args, stack, opts)
        role, attached = self._create_role("vpc-cni", "AmazonEKS_CNI_Policy")
        # Without enableNetworkPolicy, EKS accepts network policies and enforces none.
        self._create("vpc-cni", {"enableNetworkPolicy": "true"}, {"role_arn": role.arn, "service_account": "aws-node"}, attached)
        self._create("kube-proxy")
        self._create("eks-pod-identity-agent")
        # Node repair acts on its findings; those of GPUs need its DCGM server, which by itself tolerates no taint.
        self._create("eks-node-monitoring-agent", {"dcgmAgent": EVERYWHERE})
        self.register_outputs({})


class ClusterAddons(_Addons):
    """DNS, volumes and metrics, on the system nodes."""

    def __init__(self, name: str, args: AddonsArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cluster:ClusterAddons", name, args, stack, opts)
        self._create(
            "coredns", {**ON_SYSTEM_NODES, "autoScaling": {"enabled": True, "minReplicas": 2, "maxReplicas": MAX_DNS_REPLICAS}}
        )
        self._create("metrics-server", ON_SYSTEM_NODES)
        role, attached = self._create_role("ebs-csi", "service-role/AmazonEBSCSIDriverPolicy")
        self._create(
            "aws-ebs-csi-driver",
            {"controller": ON_SYSTEM_NODES},
            {"role_arn": role.arn, "service_account": "ebs-csi-controller-sa"},
            [*attached, self._let_use_key(role)],
        )
        self.register_outputs({})

    def _let_use_key(self, role: aws.iam.Role) -> aws.iam.RolePolicy:
        """Volumes that outlive their pods, such as journals, are encrypted with our key."""
        key = self._args.kms_key_arn
        for_volumes = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        return aws.iam.RolePolicy(
            self.part("ebs-csi-key"),
            role=role.name,
            policy=iam.document(
                iam.allow("UseKey", USE_KEY, [key]), iam.allow("GrantKeyToVolumes", ["kms:CreateGrant"], [key], for_volumes)
            ),
            opts=self.child(),
        )
