"""`<env>.cluster.<region>`: network, Kubernetes, the nodes that always run, and who its pods are to AWS.

AWS's API only: what lives in Kubernetes is the serving stack's (docs/decisions/0006-cluster-api-later.md).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pulumi

from infra.components.cluster.addons import AddonsArgs, ClusterAddons, NodeAddons
from infra.components.cluster.controller_policies import load_balancer_policy
from infra.components.cluster.karpenter import KarpenterArgs, KarpenterInAws
from infra.components.cluster.kubernetes_cluster import KubernetesCluster, KubernetesClusterArgs
from infra.components.cluster.node_groups import NodeGroups, NodeGroupsArgs
from infra.components.cluster.pod_role import PodRole, PodRoleArgs
from infra.components.cluster.workload_policies import Place, engine_policy, gateway_policy
from infra.components.network.refused_traffic import RefusedTraffic, RefusedTrafficArgs
from infra.components.network.regional_network import RegionalNetwork, RegionalNetworkArgs
from infra.config import Program
from infra.naming import ENGINE, GATEWAY, LOAD_BALANCER_CONTROLLER, NAMESPACE, ServiceAccount, StackName
from infra.providers import aws_provider
from infra.stack_config import ClusterConfig
from infra.stackref import ClusterOutputs, FoundationOutputs, export, read


def build(program: Program[ClusterConfig]) -> None:
    """Declares the stack and exports ClusterOutputs."""
    stack, environment, region, config = program.stack, program.environment, program.region, program.config
    here = pulumi.ResourceOptions(provider=aws_provider("aws", stack.region, environment.account_id))
    foundation = read(StackName(stack.environment, "foundation"), FoundationOutputs)
    boundary = foundation.apply(lambda outputs: outputs.permissions_boundary_arn)
    key = foundation.apply(lambda outputs: outputs.regions[stack.region].kms_key_arn)
    vpc_name, cluster_name = (program.names.regionally(region.code, what) for what in ("vpc", "cluster"))
    place = Place(stack.region, environment.home_region, environment.account_id)

    network = RegionalNetwork(
        "network",
        RegionalNetworkArgs(
            vpc_name=vpc_name,
            cluster_name=cluster_name,
            region=stack.region,
            vpc_cidr=region.vpc_cidr,
            zones=region.availability_zones,
            num_zones_with_egress=config.num_zones_with_egress(len(region.availability_zones)),
        ),
        stack,
        here,
    )
    RefusedTraffic(
        "refused-traffic", RefusedTrafficArgs(f"{vpc_name}-refused", network.vpc.id, config.log_days, boundary), stack, here
    )
    cluster = KubernetesCluster(
        "cluster",
        KubernetesClusterArgs(
            cluster=cluster_name,
            region=stack.region,
            version=config.kubernetes_version,
            kms_key_arn=key,
            permissions_boundary_arn=boundary,
            subnet_ids=network.private_subnet_ids,
            vpc_cidr=region.vpc_cidr,
            access_cidrs=() if config.cluster_access == "in-vpc-runner" else config.cluster_access,
            admin_role_arns=config.admin_role_arns,
            log_days=config.log_days,
        ),
        stack,
        here,
    )
    addons = AddonsArgs(
        cluster=cluster_name,
        cluster_name=cluster.cluster.name,
        kubernetes_version=config.kubernetes_version,
        account_id=environment.account_id,
        kms_key_arn=key,
        permissions_boundary_arn=boundary,
    )
    node_addons = NodeAddons("node-addons", addons, stack, here)
    nodes = NodeGroups(
        "nodes",
        NodeGroupsArgs(
            config=config,
            cluster=cluster_name,
            cluster_name=cluster.cluster.name,
            security_group_id=cluster.security_group_id,
            subnet_ids={zone: subnet.id for zone, subnet in network.private_subnets.items()},
            permissions_boundary_arn=boundary,
            after=[node_addons],
        ),
        stack,
        here,
    )
    ClusterAddons("addons", replace(addons, after=[nodes]), stack, here)
    karpenter = KarpenterInAws("karpenter", KarpenterArgs(cluster_name, cluster.cluster.name, place, boundary), stack, here)
    for name, account, policy in (
        (GATEWAY, ServiceAccount(NAMESPACE, GATEWAY), foundation.apply(partial(gateway_policy, place))),
        (ENGINE, ServiceAccount(NAMESPACE, ENGINE), foundation.apply(partial(engine_policy, place))),
        ("load-balancer", LOAD_BALANCER_CONTROLLER, load_balancer_policy(place, stack.environment)),
    ):
        PodRole(
            f"{name}-role",
            PodRoleArgs(
                role_name=f"{cluster_name}-{name}",
                cluster_name=cluster.cluster.name,
                account_id=environment.account_id,
                permissions_boundary_arn=boundary,
                service_account=account,
                policy=policy,
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
            "kubernetes_version": config.kubernetes_version,
            "vpc_id": network.vpc.id,
            "vpc_cidr": str(region.vpc_cidr),
            "private_subnet_ids": network.private_subnet_ids,
            "public_subnet_ids": network.public_subnet_ids,
            "cluster_security_group_id": cluster.security_group_id,
            "karpenter": {
                "instance_profile_name": karpenter.instance_profile.name,
                "interruption_queue": karpenter.queue.name,
            },
        },
    )
