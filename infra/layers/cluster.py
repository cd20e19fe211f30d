"""`<env>.cluster.<region>`: network, Kubernetes, and who its pods are to AWS."""

from __future__ import annotations

from functools import partial

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.cluster.addons import ClusterAddons, ClusterAddonsArgs
from infra.components.cluster.kubernetes_cluster import KubernetesCluster, KubernetesClusterArgs
from infra.components.cluster.pod_role import POD_IDENTITY, PodRole, PodRoleArgs
from infra.components.cluster.workload_policies import Place, engine_policy, gateway_policy
from infra.components.network.regional_network import RegionalNetwork, RegionalNetworkArgs
from infra.config import Program
from infra.naming import ENGINE, GATEWAY, NAMESPACE, StackName
from infra.providers import aws_provider
from infra.stack_config import ClusterConfig
from infra.stackref import ClusterOutputs, FoundationOutputs, export, read
from infra.tags import tags_of


def build(program: Program[ClusterConfig]) -> None:
    """Declares the stack and exports ClusterOutputs."""
    stack, environment, region = program.stack, program.environment, program.region
    provider = aws_provider("aws", stack.region, environment.account_id)
    here = pulumi.ResourceOptions(provider=provider)
    foundation = read(StackName(stack.environment, "foundation"), FoundationOutputs)
    cluster_name = program.names.regionally(region.code, "cluster")

    network = RegionalNetwork(
        "network",
        RegionalNetworkArgs(
            program.names.regionally(region.code, "vpc"), stack.region, region.vpc_cidr, region.availability_zones
        ),
        stack,
        here,
    )
    cluster = KubernetesCluster(
        "cluster",
        KubernetesClusterArgs(
            cluster=cluster_name,
            region=stack.region,
            version=program.config.kubernetes_version,
            kms_key_arn=foundation.apply(lambda outputs: outputs.regions[stack.region].kms_key_arn),
            subnet_ids=network.private_subnet_ids,
            admin_role_arns=program.config.admin_role_arns,
            system_nodes=program.config.system_nodes,
        ),
        stack,
        here,
    )
    ebs_csi = _ebs_csi_role(program, cluster_name, provider)
    ClusterAddons("addons", ClusterAddonsArgs(cluster.cluster.name, cluster.system_nodes, ebs_csi.arn), stack, here)
    place = Place(stack.region, environment.home_region, environment.account_id)
    for account, policy in ((GATEWAY, gateway_policy), (ENGINE, engine_policy)):
        PodRole(
            f"{account}-role",
            PodRoleArgs(
                role_name=f"{cluster_name}-{account}",
                cluster_name=cluster.cluster.name,
                account_id=environment.account_id,
                namespace=NAMESPACE,
                service_account=account,
                policy=foundation.apply(partial(policy, place)),
            ),
            stack,
            here,
        )
    export(
        ClusterOutputs,
        {
            "cluster_name": cluster.cluster.name,
            "cluster_endpoint": cluster.cluster.endpoint,
            "kubeconfig": cluster.kubeconfig,
            "kubernetes_version": program.config.kubernetes_version,
            "vpc_id": network.vpc.id,
            "vpc_cidr": str(region.vpc_cidr),
            "private_subnet_ids": network.private_subnet_ids,
            "public_subnet_ids": network.private_subnet_ids,
            "cluster_security_group_id": cluster.security_group_id,
            "karpenter": {"instance_profile_name": "INTERIM", "interruption_queue": "INTERIM"},
        },
    )


def _ebs_csi_role(program: Program[ClusterConfig], cluster_name: str, provider: aws.Provider) -> aws.iam.Role:
    """The role of the volume driver. The add-on makes its association itself."""
    role = aws.iam.Role(
        "ebs-csi-role",
        name=f"{cluster_name}-ebs-csi",
        assume_role_policy=iam.trust(POD_IDENTITY, ["sts:AssumeRole", "sts:TagSession"]),
        tags=tags_of(program.stack, "ebs-csi"),
        opts=pulumi.ResourceOptions(provider=provider),
    )
    aws.iam.RolePolicyAttachment(
        "ebs-csi-policy",
        role=role.name,
        policy_arn="arn:aws:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy",
        opts=pulumi.ResourceOptions(provider=provider),
    )
    return role
