"""An EKS control plane and who may speak to it.

It knows IAM principals through access entries alone, writes every audit line, encrypts Secrets with our key, and cannot be
deleted by mistake. Its endpoint answers in the VPC; outside it, to networks that the stack file names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.components.roles import RoleArgs, attach_policies, create_role
from infra.naming import StackName

CONTROL_PLANE_LOGS = ("api", "audit", "authenticator", "controllerManager", "scheduler")
ADMIN_POLICY = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"


@dataclass(frozen=True)
class KubernetesClusterArgs:
    """`admin_role_arns` administer the cluster; whoever creates it gets nothing by that."""

    cluster: str
    region: str
    version: str
    kms_key_arn: pulumi.Input[str]
    permissions_boundary_arn: pulumi.Input[str]
    subnet_ids: Sequence[pulumi.Input[str]]
    vpc_cidr: ipaddress.IPv4Network
    access_cidrs: Sequence[ipaddress.IPv4Network]
    """Networks that reach the API besides the VPC; public ones open its public endpoint."""
    admin_role_arns: Sequence[str]
    log_days: int


class KubernetesCluster(Component):
    """Control plane, its logs, and access to it."""

    def __init__(
        self, name: str, args: KubernetesClusterArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("cluster:KubernetesCluster", name, stack, opts)
        self._args = args
        trust = iam.trust("eks.amazonaws.com", ["sts:AssumeRole", "sts:TagSession"])
        role = create_role(
            self, "control-plane-role", RoleArgs(f"{args.cluster}-control-plane", trust, args.permissions_boundary_arn)
        )
        attached = attach_policies(self, "control-plane", role, ("AmazonEKSClusterPolicy",))
        # Made before EKS makes it itself, and keeps it for ever.
        log = aws.cloudwatch.LogGroup(
            self.part("log"),
            name=f"/aws/eks/{args.cluster}/cluster",
            retention_in_days=args.log_days,
            tags=self.tags(),
            opts=self.child(),
        )
        endpoint: aws.eks.ClusterVpcConfigArgsDict = {"subnet_ids": list(args.subnet_ids), "endpoint_private_access": True}
        public = [str(cidr) for cidr in args.access_cidrs if not cidr.is_private]
        endpoint["endpoint_public_access"] = bool(public)
        if public:
            endpoint["public_access_cidrs"] = public
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
            vpc_config=endpoint,
            encryption_config={"provider": {"key_arn": args.kms_key_arn}, "resources": ["secrets"]},
            enabled_cluster_log_types=list(CONTROL_PLANE_LOGS),
            tags=self.tags(),
            opts=self.child(protect=True, depends_on=[*attached, log]),
        )
        self.security_group_id = self.cluster.vpc_config.apply(lambda config: config.cluster_security_group_id or "")
        """The group of the private endpoint and of every node and pod; EKS lets its members talk to each other."""
        for cidr in (args.vpc_cidr, *(cidr for cidr in args.access_cidrs if cidr.is_private)):
            self._let_in(cidr)
        for arn in args.admin_role_arns:
            self._create_admin(arn)
        self.kubeconfig = _kubeconfig(self.cluster, args.cluster, args.region)
        self.register_outputs({"cluster": self.cluster.name})

    def _let_in(self, cidr: ipaddress.IPv4Network) -> None:
        """Lets a private network, such as the VPC's runner, to the private endpoint."""
        what = "vpc" if cidr == self._args.vpc_cidr else str(cidr).replace(".", "-").replace("/", "-")
        aws.vpc.SecurityGroupIngressRule(
            self.part(f"api-from-{what}"),
            security_group_id=self.security_group_id,
            description="Kubernetes API",
            cidr_ipv4=str(cidr),
            ip_protocol="tcp",
            from_port=443,
            to_port=443,
            tags=self.tags(),
            opts=self.child(),
        )

    def _create_admin(self, role_arn: str) -> None:
        who = _without_place(role_arn.rpartition("/")[2], self.stack)
        entry = aws.eks.AccessEntry(
            self.part(f"access-{who}"),
            cluster_name=self.cluster.name,
            principal_arn=role_arn,
            tags=self.tags(),
            opts=self.child(),
        )
        aws.eks.AccessPolicyAssociation(
            self.part(f"admin-{who}"),
            cluster_name=self.cluster.name,
            principal_arn=entry.principal_arn,
            policy_arn=ADMIN_POLICY,
            access_scope={"type": "cluster"},
            opts=self.child(),
        )


def _without_place(role: str, stack: StackName) -> str:
    """A role's name as part of a logical name, which holds neither region nor environment: in `prod.cluster.us-east-2`,
    `flotilla-deploy-us-east-2` gives `flotilla-deploy`."""
    return "-".join(part for part in role.replace(stack.region, "").split("-") if part and part != stack.environment)


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
