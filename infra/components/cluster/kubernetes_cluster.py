"""An EKS cluster and the nodes that carry everything but engines.

Its API answers inside the VPC only, knows IAM principals through access entries alone, writes every audit line, and encrypts
Secrets with our key. Nodes give credentials to nobody: metadata needs a token and reaches no container (hop limit 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.naming import StackName
from infra.stack_config.cluster import CpuNodesConfig

CONTROL_PLANE_LOGS = ("api", "audit", "authenticator", "controllerManager", "scheduler")
ADMIN_POLICY = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
NODE_POLICIES = ("AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly", "AmazonEKS_CNI_Policy")
NODE_DISK_GIB = 100
NODE_UPDATE_PERCENT = 33


@dataclass(frozen=True)
class KubernetesClusterArgs:
    """`admin_role_arns` administer the cluster; whoever creates it gets nothing by that."""

    cluster: str
    region: str
    version: str
    kms_key_arn: pulumi.Input[str]
    subnet_ids: Sequence[pulumi.Input[str]]
    admin_role_arns: Sequence[str]
    system_nodes: CpuNodesConfig


class KubernetesCluster(Component):
    """Control plane, access, system nodes."""

    def __init__(
        self, name: str, args: KubernetesClusterArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("cluster:KubernetesCluster", name, stack, opts)
        self._args = args
        role, attachment = self._create_role("control-plane", "eks.amazonaws.com", ("AmazonEKSClusterPolicy",))
        self.cluster = aws.eks.Cluster(
            self.part("control-plane"),
            name=args.cluster,
            version=args.version,
            role_arn=role.arn,
            deletion_protection=True,
            bootstrap_self_managed_addons=False,
            access_config={"authentication_mode": "API", "bootstrap_cluster_creator_admin_permissions": False},
            upgrade_policy={"support_type": "STANDARD"},
            zonal_shift_config={"enabled": True},
            vpc_config={"subnet_ids": list(args.subnet_ids), "endpoint_private_access": True, "endpoint_public_access": False},
            encryption_config={"provider": {"key_arn": args.kms_key_arn}, "resources": ["secrets"]},
            enabled_cluster_log_types=list(CONTROL_PLANE_LOGS),
            tags=self.tags(),
            opts=self.child(protect=True, depends_on=attachment),
        )
        self._create_access()
        self.system_nodes = self._create_system_nodes()
        self.security_group_id = self.cluster.vpc_config.apply(lambda config: config.cluster_security_group_id or "")
        """The group of every node and pod."""
        self.kubeconfig = _kubeconfig(self.cluster, args.cluster, args.region)
        self.register_outputs({"cluster": self.cluster.name})

    def _create_role(self, what: str, service: str, policies: Sequence[str]) -> tuple[aws.iam.Role, list[pulumi.Resource]]:
        role = aws.iam.Role(
            self.part(f"{what}-role"),
            name=f"{self._args.cluster}-{what}",
            assume_role_policy=iam.trust(service, ["sts:AssumeRole", "sts:TagSession"]),
            tags=self.tags(),
            opts=self.child(),
        )
        attachments: list[pulumi.Resource] = [
            aws.iam.RolePolicyAttachment(
                self.part(f"{what}-{policy}"), role=role.name, policy_arn=f"arn:aws:iam::aws:policy/{policy}", opts=self.child()
            )
            for policy in policies
        ]
        return role, attachments

    def _create_access(self) -> None:
        for arn in self._args.admin_role_arns:
            who = arn.rsplit("/", 1)[-1]
            entry = aws.eks.AccessEntry(
                self.part(f"access-{who}"), cluster_name=self.cluster.name, principal_arn=arn, tags=self.tags(), opts=self.child()
            )
            aws.eks.AccessPolicyAssociation(
                self.part(f"admin-{who}"),
                cluster_name=self.cluster.name,
                principal_arn=entry.principal_arn,
                policy_arn=ADMIN_POLICY,
                access_scope={"type": "cluster"},
                opts=self.child(),
            )

    def _create_system_nodes(self) -> aws.eks.NodeGroup:
        config = self._args.system_nodes
        role, attachments = self._create_role("system-node", "ec2.amazonaws.com", NODE_POLICIES)
        template = aws.ec2.LaunchTemplate(
            self.part("system-template"),
            name=f"{self._args.cluster}-system",
            update_default_version=True,
            metadata_options={"http_tokens": "required", "http_put_response_hop_limit": 1, "http_endpoint": "enabled"},
            block_device_mappings=[
                {
                    "device_name": "/dev/xvda",
                    "ebs": {
                        "volume_size": NODE_DISK_GIB,
                        "volume_type": "gp3",
                        "encrypted": "true",
                        "delete_on_termination": "true",
                    },
                }
            ],
            tag_specifications=[{"resource_type": kind, "tags": self.tags()} for kind in ("instance", "volume")],
            tags=self.tags(),
            opts=self.child(),
        )
        return aws.eks.NodeGroup(
            self.part("system-nodes"),
            cluster_name=self.cluster.name,
            node_group_name="system",
            node_role_arn=role.arn,
            subnet_ids=self._args.subnet_ids,
            ami_type="AL2023_x86_64_STANDARD",
            instance_types=list(config.instance_types),
            scaling_config={"min_size": config.min_size, "max_size": config.max_size, "desired_size": config.min_size},
            update_config={"max_unavailable_percentage": NODE_UPDATE_PERCENT},
            node_repair_config={"enabled": True},
            launch_template={"id": template.id, "version": template.latest_version.apply(str)},
            labels={"flotilla.dev/pool": "system"},
            tags=self.tags(),
            # The autoscaler owns the number of nodes once they run.
            opts=self.child(depends_on=attachments, ignore_changes=["scaling_config.desired_size"]),
        )


def _kubeconfig(cluster: aws.eks.Cluster, name: str, region: str) -> pulumi.Output[str]:
    """A kubeconfig that fetches its own tokens: nothing in it is secret."""
    return pulumi.Output.json_dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "clusters": [
                {
                    "name": name,
                    "cluster": {"server": cluster.endpoint, "certificate-authority-data": cluster.certificate_authority.data},
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "exec": {
                            "apiVersion": "client.authentication.k8s.io/v1",
                            "interactiveMode": "Never",
                            "command": "aws",
                            "args": ["--region", region, "eks", "get-token", "--cluster-name", name],
                        }
                    },
                }
            ],
        }
    )
