"""What each layer's stack file may say: `config` of `stacks/Pulumi.<stack>.yaml`, below the namespace `flotilla:`, as types.

Defaults are those of production. Rules that need the catalog too are in `infra.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra import versions
from infra.naming import Layer
from serving.settings import ModelClass

HOST_IMAGE = "host:"
Image = Annotated[str, Field(pattern=r"^(host:\.venv(-engine)?|[a-z0-9./:_-]+@sha256:[0-9a-f]{64})$")]
"""An image by digest; `host:<environment>` runs the processes of that Python environment, on this machine only."""
Cpu = Annotated[str, Field(pattern=r"^\d+m?$")]
Memory = Annotated[str, Field(pattern=r"^\d+(Mi|Gi)$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FoundationConfig(_Frozen):
    """`<env>.foundation`: what survives a region."""

    archive_retention_days: Annotated[int, Field(ge=1, le=3650)] = 400
    """Usage segments cannot be deleted or overwritten before; a year of bills can be rebuilt."""
    noncurrent_version_days: Annotated[int, Field(ge=1, le=365)] = 30
    """An overwritten or deleted artifact can be had back this long."""
    kms_deletion_window_days: Annotated[int, Field(ge=7, le=30)] = 30


class SystemNodesConfig(_Frozen):
    """The nodes that carry everything but engines."""

    instance_types: Annotated[tuple[str, ...], Field(min_length=1)] = ("m7i.xlarge",)
    min_size: Annotated[int, Field(ge=1, le=100)] = 3
    max_size: Annotated[int, Field(ge=1, le=100)] = 9

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(f"`min_size` is {self.min_size}, must be at most `max_size` ({self.max_size}). Raise `max_size`.")
        return self


class ClusterConfig(_Frozen):
    """`<env>.cluster.<region>`: network and Kubernetes."""

    kubernetes_version: Annotated[str, Field(pattern=r"^1\.\d{2}$")] = versions.KUBERNETES
    admin_role_arns: Annotated[tuple[Annotated[str, Field(pattern=r"^arn:aws:iam::\d{12}:role/.+$")], ...], Field(min_length=1)]
    """Roles that administer the cluster. Creating it gives no rights, so without one nobody could."""
    system_nodes: SystemNodesConfig = SystemNodesConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted, floor = (int(version.partition(".")[2]) for version in (self.kubernetes_version, versions.KUBERNETES_FLOOR))
        if wanted < floor:
            raise ValueError(
                f"`kubernetes_version` is {self.kubernetes_version}, must be {versions.KUBERNETES_FLOOR} or later. Upgrade."
            )
        return self


class Resources(_Frozen):
    """What a container is given. Memory is requested and limited alike, so that no pod lives on another's."""

    cpu: Cpu
    """Requested; there is no limit, since a throttled token is a late token."""
    memory: Memory


class HostPorts(_Frozen):
    """Ports on this machine's 127.0.0.1, for `local` only."""

    http: Annotated[int, Field(ge=1024, le=65_535)]
    ops: Annotated[int, Field(ge=1024, le=65_535)]


class GatewayConfig(_Frozen):
    """The gateways of a region."""

    image: Image
    replicas: Annotated[int, Field(ge=1, le=1000)]
    resources: Resources = Resources(cpu="1", memory="1Gi")
    shipper_resources: Resources = Resources(cpu="100m", memory="256Mi")
    journal_gib: Annotated[int, Field(ge=1, le=1024)] = 20
    storage_class: str | None = None
    """StorageClass of the journal's claim; the cluster's default if left out."""
    usage_ships_after_s: Annotated[int, Field(ge=1, le=3600)] = 10
    """Usage is sealed for the archive and the ledger after this long; shorter is fresher, and makes more objects."""
    host_ports: HostPorts | None = None


class EngineConfig(_Frozen):
    """The engines of one model class in a region."""

    image: Image
    replicas: Annotated[int, Field(ge=0, le=1000)]
    resources: Resources
    model_cache_gib: Annotated[int, Field(ge=1, le=8000)]
    model_cache: Literal["node", "claim"] = "node"
    """`node` is the node's own disk, gone with the pod; `claim` is a volume that stays, for one replica."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model_cache == "claim" and self.replicas > 1:
            raise ValueError(
                f"`replicas` is {self.replicas}, must be at most 1 with a claim as model cache. Use `model_cache: node`."
            )
        return self


class CacheConfig(_Frozen):
    """The region's cache: limits and shared state that may be lost."""

    engine: Literal["valkey", "redis"] = "valkey"
    node_type: Annotated[str, Field(pattern=r"^cache\.[a-z0-9]+\.[a-z0-9]+$")] = "cache.m7g.large"
    num_replicas: Annotated[int, Field(ge=0, le=5)] = 2
    """Besides the primary, in other zones; none means no failover."""
    transit_encryption: bool = True


class ServingConfig(_Frozen):
    """`<env>.serving.<region>`: gateways, engines, cache."""

    gateway: GatewayConfig
    engines: dict[ModelClass, EngineConfig]
    cache: CacheConfig = CacheConfig()


class EdgeConfig(_Frozen):
    """`<env>.edge`: one name for all regions."""

    domain: Annotated[str, Field(pattern=r"^([a-z0-9-]+\.)+[a-z]{2,}$")]
    """Zone that this stack owns; the API answers at `api.<domain>`."""


LayerConfig = FoundationConfig | ClusterConfig | ServingConfig | EdgeConfig
LayerT = TypeVar("LayerT", bound=LayerConfig)
LAYER_CONFIGS: Mapping[Layer, type[LayerConfig]] = {
    "foundation": FoundationConfig,
    "cluster": ClusterConfig,
    "serving": ServingConfig,
    "edge": EdgeConfig,
}
