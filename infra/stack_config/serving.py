"""`<env>.serving.<region>`: what runs in the cluster. Node pools that follow demand, gateways, engines, cache."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infra.instances import INSTANCE_SHAPES
from infra.stack_config.model import Frozen, GpuInstanceType, PoolName
from policies.autoscaling.policy import PolicyValues
from serving.settings import ModelClass

HOST_IMAGE = "host:"
UNPINNED = f"sha256:{64 * '0'}"
"""Stands where no image has been pinned yet. A preview takes it; `flotilla preflight` refuses it."""
Image = Annotated[str, Field(pattern=r"^(host:\.venv(-engine)?|sha256:[0-9a-f]{64})$")]
"""Digest of an image in the environment's registry; `host:<environment>` runs that Python environment, on this machine only."""
Cpu = Annotated[str, Field(pattern=r"^\d+m?$")]
Memory = Annotated[str, Field(pattern=r"^\d+(Mi|Gi)$")]


class Images(Frozen):
    """Images by digest; a tag can be moved, a digest cannot."""

    gateway: Image
    """Gateways and shippers."""
    engine: Image
    """Engines, with vLLM for the region's GPUs."""


class Resources(Frozen):
    """What a container is given. Memory is requested and limited alike, so that no pod lives on another's."""

    cpu: Cpu
    """Requested; there is no limit, since a throttled token is a late token."""
    memory: Memory


class HostPorts(Frozen):
    """Ports on this machine's 127.0.0.1, for `local` only."""

    http: Annotated[int, Field(ge=1024, le=65_535)]
    ops: Annotated[int, Field(ge=1024, le=65_535)]
    admin: Annotated[int, Field(ge=1024, le=65_535)]


class GatewayConfig(Frozen):
    """The gateways of a region."""

    replicas: Annotated[int, Field(ge=1, le=1000)]
    """At least so many, always."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Scaled up to so many; None keeps `replicas`."""
    target_in_flight: Annotated[int, Field(ge=1, le=100_000)] = 250
    """Requests in one gateway above which another is added. A stream of 211 tokens costs it about 13 ms of CPU (3.1 ms per 51
    chunks, measured on one machine) over some 6 s, so that one event loop is half busy with 250 of them."""
    resources: Resources = Resources(cpu="1", memory="1Gi")
    hedging: bool = False
    """A request that waits for its first token for longer than 95 of 100 do is asked at a second engine too: a shorter tail for
    some more prefill, within the budget for retries."""
    scaling_every_s: Annotated[float, Field(ge=0.5, le=60)] = 15
    """How often the leader among gateways decides how many engines there should be."""
    shipper_resources: Resources = Resources(cpu="100m", memory="256Mi")
    journal_gib: Annotated[int, Field(ge=1, le=1024)] = 20
    usage_ships_after_s: Annotated[int, Field(ge=1, le=3600)] = 10
    """Usage is sealed for the archive and the ledger after this long; shorter is fresher, and makes more objects."""
    host_ports: HostPorts | None = None

    @property
    def workers(self) -> int:
        """Processes that serve in one gateway: one to a whole core of `resources`, at least one."""
        return max(1, int(self.resources.cpu)) if self.resources.cpu.isdigit() else 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"`max_replicas` is {self.max_replicas}, must be at least `replicas` ({self.replicas}). Raise it, or remove it."
            )
        return self


class Floor(Frozen):
    """Engines that always run, by what they run on. Spot is never part of it: it goes two minutes after its notice."""

    reserved: Annotated[int, Field(ge=0, le=1000)] = 0
    on_demand: Annotated[int, Field(ge=0, le=1000)] = 0

    @property
    def replicas(self) -> int:
        """Both together."""
        return self.reserved + self.on_demand


class EngineConfig(Frozen):
    """The engines of one model class in a region."""

    floor: Floor
    """What the committed load needs with one region lost."""
    warm_spares: Annotated[int, Field(ge=0, le=100)] = 1
    """Running above the floor, since a cold start takes minutes."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """On reserved and on-demand nodes."""
    overflow_max_replicas: Annotated[int, Field(ge=0, le=1000)] = 0
    """Besides these, on spot, for peaks."""
    batch_max_replicas: Annotated[int, Field(ge=0, le=1000)] = 0
    """Engines that work on batches alone, on spot."""
    scaling: PolicyValues = Field(default_factory=dict)
    """Fields of the scaling policy that are this region's own (`policies.autoscaling.policy`)."""
    resources: Resources
    model_cache_gib: Annotated[int, Field(ge=1, le=8000)]
    model_cache: Literal["node", "claim"] = "node"
    """`node` is the node's own disk, gone with the pod; `claim` is a volume that stays, for one replica."""

    @property
    def min_replicas(self) -> int:
        """The floor and the warm spares."""
        return self.floor.replicas + self.warm_spares

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"`max_replicas` is {self.max_replicas}, must be at least floor and warm spares ({self.min_replicas}). Raise it."
            )
        if self.min_replicas < 1:
            raise ValueError("`floor` and `warm_spares` are 0, must be at least 1 together: nothing scales up from 0.")
        if self.model_cache == "claim" and self.max_replicas > 1:
            raise ValueError(
                f"`max_replicas` is {self.max_replicas}, must be at most 1 with a claim as model cache. Use `model_cache: node`."
            )
        return self


class ElasticPool(Frozen):
    """Nodes that Karpenter adds and removes."""

    instance_type: GpuInstanceType
    max_nodes: Annotated[int, Field(ge=1, le=1000)]

    @property
    def num_gpus(self) -> int:
        """GPUs of the pool at its largest."""
        return self.max_nodes * INSTANCE_SHAPES[self.instance_type].num_gpus

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.instance_type not in INSTANCE_SHAPES:
            raise ValueError(f"`instance_type` is {self.instance_type!r}, must be one of {', '.join(INSTANCE_SHAPES)}.")
        return self


class PoolsConfig(Frozen):
    """Node pools by purchase option."""

    on_demand: dict[PoolName, ElasticPool] = Field(default_factory=dict)
    spot: dict[PoolName, ElasticPool] = Field(default_factory=dict)
    gateway_max_nodes: Annotated[int, Field(ge=0, le=1000)] = 20
    """CPU nodes for gateways, beyond the managed ones."""


class CacheConfig(Frozen):
    """The region's cache: limits and shared state that may be lost."""

    engine: Literal["valkey", "redis"] = "valkey"
    node_type: Annotated[str, Field(pattern=r"^cache\.[a-z0-9]+\.[a-z0-9]+$")] = "cache.m7g.large"
    num_replicas: Annotated[int, Field(ge=0, le=5)] = 2
    """Besides the primary, in other zones; none means no failover."""
    transit_encryption: bool = True


class LoadBalancerConfig(Frozen):
    """The region's load balancer."""

    scheme: Literal["internet-facing", "internal"] = "internet-facing"
    deregistration_s: Annotated[int, Field(ge=0, le=300)] = 60
    """A gateway that stops gets nothing new and still serves this long, and a little longer; then the load balancer cuts its
    streams. So it is the time that a stream has to finish. 0: no load balancer stands before gateways, as in `local`."""


class Drill(StrEnum):
    """Drills that AWS FIS can do; the values name templates."""

    REGION_LOSS = "region-loss"
    PARTITION = "partition"
    AZ_LOSS = "az-loss"
    CACHE_LOSS = "cache-loss"
    SLOW_REGION = "slow-region"


class DrillsConfig(Frozen):
    """Templates of AWS FIS that the region keeps. Who may start experiments can then do this to it."""

    templates: Annotated[frozenset[Drill], Field(max_length=len(Drill))] = frozenset()
    in_production: bool = False
    """Production keeps templates only where this says so; a guardrail refuses them otherwise."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.in_production and not self.templates:
            raise ValueError("`in_production` is true, and `templates` names none. Name some, or leave it out.")
        return self


class ServingConfig(Frozen):
    """The stack file of serving."""

    images: Images
    gateway: GatewayConfig
    engines: dict[ModelClass, EngineConfig]
    twins: bool = False
    """Serve the environment's twins in place of its models: for drills, and where a model is too much. `local` only."""
    pools: PoolsConfig = PoolsConfig()
    cache: CacheConfig = CacheConfig()
    load_balancer: LoadBalancerConfig = LoadBalancerConfig()
    drills: DrillsConfig = DrillsConfig()
