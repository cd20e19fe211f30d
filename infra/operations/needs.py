"""What a region's stack files ask of an AWS account: GPU and CPU capacity, addresses, instance types, reservations, versions.

Pure: two stack files and the catalog in, numbers with their arithmetic out. Quotas of EC2 count vCPUs by family, and a capacity
reservation counts against the on-demand quota whether its nodes run or not.

Quota codes: `aws service-quotas list-service-quotas`, November 2026. They are the same in every account.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from infra.catalog import Region
from infra.instances import INSTANCE_SHAPES
from infra.stack_config import ClusterConfig, ServingConfig


@dataclass(frozen=True)
class Quota:
    """A quota of AWS."""

    service: str
    code: str
    name: str


@dataclass(frozen=True)
class QuotaNeed:
    """How much of a quota a region takes, and why so much."""

    quota: Quota
    amount: int
    why: str


ELASTIC_IPS = Quota("ec2", "L-0263D0A3", "EC2-VPC Elastic IPs")
VPCS = Quota("vpc", "L-F678F1CE", "VPCs per Region")
CLUSTERS = Quota("eks", "L-1194D53C", "Clusters")
ON_DEMAND_P = Quota("ec2", "L-417A185B", "Running On-Demand P instances (vCPUs)")
ON_DEMAND_G = Quota("ec2", "L-DB2E81BA", "Running On-Demand G and VT instances (vCPUs)")
SPOT_P = Quota("ec2", "L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests (vCPUs)")
SPOT_G = Quota("ec2", "L-3819A6DF", "All G and VT Spot Instance Requests (vCPUs)")
_ON_DEMAND = {"p": ON_DEMAND_P, "g": ON_DEMAND_G}
_SPOT = {"p": SPOT_P, "g": SPOT_G}


def quota_needs(region: Region, cluster: ClusterConfig, serving: ServingConfig) -> list[QuotaNeed]:
    """What the region takes of each quota with every pool at its largest."""
    num_gateways = cluster.num_zones_with_egress(len(region.availability_zones))
    amounts: dict[Quota, int] = defaultdict(int)
    whys: dict[Quota, list[str]] = defaultdict(list)
    for quota, instance_type, num_nodes, what in _gpu_nodes(cluster, serving):
        num_vcpus = INSTANCE_SHAPES[instance_type].num_vcpus
        amounts[quota] += num_nodes * num_vcpus
        whys[quota].append(f"{what}: {num_nodes} × {num_vcpus}")
    needs = [QuotaNeed(quota, amount, ", ".join(whys[quota])) for quota, amount in amounts.items()]
    return [
        QuotaNeed(VPCS, 1, "one a region"),
        QuotaNeed(CLUSTERS, 1, "one a region"),
        QuotaNeed(ELASTIC_IPS, num_gateways, "one a NAT gateway"),
        *needs,
    ]


def _gpu_nodes(cluster: ClusterConfig, serving: ServingConfig) -> Iterator[tuple[Quota, str, int, str]]:
    for name, reserved in cluster.reserved_pools.items():
        yield _ON_DEMAND[reserved.instance_type[0]], reserved.instance_type, reserved.nodes, f"reserved {name}"
    for name, pool in serving.pools.on_demand.items():
        yield _ON_DEMAND[pool.instance_type[0]], pool.instance_type, pool.max_nodes, f"on-demand {name}"
    for name, pool in serving.pools.spot.items():
        yield _SPOT[pool.instance_type[0]], pool.instance_type, pool.max_nodes, f"spot {name}"


def instance_types(region: Region, cluster: ClusterConfig, serving: ServingConfig) -> dict[str, tuple[str, ...]]:
    """Zones in which each instance type must be offered, by type."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for reserved in cluster.reserved_pools.values():
        wanted[reserved.instance_type].add(reserved.zone)
    for pool in (*serving.pools.on_demand.values(), *serving.pools.spot.values()):
        wanted[pool.instance_type].update(region.gpu_zones.get(pool.instance_type, ()))
    for nodes in (cluster.system_nodes, cluster.gateway_nodes):
        for instance_type in nodes.instance_types:
            wanted[instance_type].update(region.availability_zones)
    return {instance_type: tuple(sorted(zones)) for instance_type, zones in sorted(wanted.items())}
