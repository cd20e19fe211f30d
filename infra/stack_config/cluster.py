"""`<env>.cluster.<region>`: network, Kubernetes, and the nodes that AWS itself keeps running."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infra import versions
from infra.instances import INSTANCE_SHAPES
from infra.scheduling import GATEWAY_POOL, SYSTEM_POOL
from infra.stack_config.model import Frozen, GpuInstanceType, PoolName, RoleArn

MIN_ACCESS_PREFIX = 8
InVpcRunner = Literal["in-vpc-runner"]


class CpuNodesConfig(Frozen):
    """A managed group of CPU nodes over the three zones."""

    instance_types: Annotated[tuple[str, ...], Field(min_length=1)] = ("m7i.xlarge",)
    min_size: Annotated[int, Field(ge=1, le=100)] = 3
    max_size: Annotated[int, Field(ge=1, le=100)] = 9

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(f"`min_size` is {self.min_size}, must be at most `max_size` ({self.max_size}). Raise `max_size`.")
        return self


class Reservation(Frozen):
    """Capacity that AWS holds for this account, bought before; Pulumi does not buy it."""

    id: Annotated[str, Field(pattern=r"^cr-[0-9a-f]{17}$")]
    kind: Literal["on-demand", "capacity-block"] = "on-demand"
    """An On-Demand Capacity Reservation lasts until it is cancelled. A Capacity Block ends on its date; before it begins, and
    while its nodes are upgraded, EKS wants its pool at 0 nodes."""


class ReservedPool(Frozen):
    """A managed node group on one reservation, of one type, in one zone: part of the floor that outlives Karpenter."""

    instance_type: GpuInstanceType
    zone: str
    nodes: Annotated[int, Field(ge=0, le=450)]
    """Always running; a managed node group takes at most 450 (EKS quota, read November 2026)."""
    reservation: Reservation

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole pool."""
        return self.nodes * INSTANCE_SHAPES[self.instance_type].num_gpus

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.instance_type not in INSTANCE_SHAPES:
            raise ValueError(f"`instance_type` is {self.instance_type!r}, must be one of {', '.join(INSTANCE_SHAPES)}.")
        return self


class ClusterConfig(Frozen):
    """The stack file of a cluster."""

    kubernetes_version: Annotated[str, Field(pattern=r"^1\.\d{2}$")] = versions.KUBERNETES
    cluster_access: InVpcRunner | Annotated[tuple[ipaddress.IPv4Network, ...], Field(min_length=1)] = "in-vpc-runner"
    """Who reaches the Kubernetes API, the VPC itself apart. `in-vpc-runner` is nobody: `pulumi up` of the serving stack then runs
    in the VPC. In a list of CIDRs, public ones open the public endpoint to themselves alone, and private ones, of networks that
    are peered with the VPC, are let to the private endpoint."""
    admin_role_arns: Annotated[tuple[RoleArn, ...], Field(min_length=1)]
    """Roles that administer the cluster. Creating it gives no rights, so without one nobody could."""
    system_nodes: CpuNodesConfig = CpuNodesConfig()
    """Controllers, DNS, monitoring."""
    gateway_nodes: CpuNodesConfig = CpuNodesConfig(instance_types=("c7i.2xlarge",))
    """The floor of the gateways; Karpenter adds to it."""
    reserved_pools: dict[PoolName, ReservedPool] = Field(default_factory=dict)
    """The floor of GPUs, by the pool's name."""
    egress: Literal["each-zone", "one-zone"] = "each-zone"
    """Where the VPC's ways out are: NAT gateways and private endpoints in each zone, so that no zone needs another, or in one,
    which costs a third and fails with it."""
    log_days: Literal[7, 30, 90, 180, 365, 731] = 90
    """The control plane's logs, its audit trail among them, and what the network refused, are kept this long."""
    multi_node: bool = False
    """Engines over several nodes: EFA and a placement group for the reserved pools. Off, since one node holds our largest model
    (TP 8 over NVSwitch) and EFA interfaces cost addresses."""

    def num_zones_with_egress(self, num_zones: int) -> int:
        """Of `num_zones`, those that have a way out of their own."""
        return 1 if self.egress == "one-zone" else num_zones

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted, floor = (int(version.partition(".")[2]) for version in (self.kubernetes_version, versions.KUBERNETES_FLOOR))
        if wanted < floor:
            raise ValueError(
                f"`kubernetes_version` is {self.kubernetes_version}, must be {versions.KUBERNETES_FLOOR} or later. Upgrade."
            )
        if self.kubernetes_version not in versions.NODE_AMIS:
            raise ValueError(
                f"`kubernetes_version` is {self.kubernetes_version}, must be one of {', '.join(versions.NODE_AMIS)}. Or pin"
                " its add-ons and node images in infra/versions.py."
            )
        for name in (SYSTEM_POOL, GATEWAY_POOL):
            if name in self.reserved_pools:
                raise ValueError(f"`reserved_pools` has {name!r}, the name of a pool of every cluster. Give it another.")
        if self.cluster_access != "in-vpc-runner":
            for cidr in self.cluster_access:
                if cidr.prefixlen < MIN_ACCESS_PREFIX:
                    raise ValueError(
                        f"`cluster_access` has {cidr}, must be /{MIN_ACCESS_PREFIX} or narrower. Name the networks of"
                        " those who deploy: this opens the Kubernetes API to the world."
                    )
        return self
