"""Every name that this project gives, physical or logical, is made here.

Stacks are `<environment>.<layer>[.<region>]`. Logical names carry neither environment nor region, so a region is a copy and never
a rename; only the foundation, which spans regions, keys its copies by region. Physical names are
`<prefix>-<environment>[-<region code>]-<what>`: the prefix is the deployer's, because S3 names are shared with the whole world.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from infra.errors import ConfigError

PROJECT = "flotilla"
Layer = Literal["foundation", "cluster", "serving", "edge"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
REGIONAL: tuple[Layer, ...] = ("cluster", "serving")

LOCAL = "local"
"""The environment of one machine."""

NAMESPACE = "serving"
"""Where gateways and engines run."""
GATEWAY = "gateway"
"""StatefulSet, Service and service account of the gateways."""
ENGINE = "engine"
"""Service account of the engines; their Deployments and Services are `engine-<class>`."""


@dataclass(frozen=True)
class ServiceAccount:
    """Who a controller's pods are in Kubernetes; the cluster stack gives it a role, the serving stack's chart makes it."""

    namespace: str
    name: str


KARPENTER = ServiceAccount("kube-system", "karpenter")
LOAD_BALANCER_CONTROLLER = ServiceAccount("kube-system", "aws-load-balancer-controller")

MONITORING = "monitoring"
"""Namespace of Prometheus and what it needs."""
PROMETHEUS_URL = f"http://prometheus-operated.{MONITORING}.svc:9090"
"""The Service that the Prometheus operator makes in a namespace with a Prometheus."""
JOURNAL_STORAGE = f"{PROJECT}-journals"
"""StorageClass of the gateways' journals."""

IMAGE_REPOSITORY = "serving"
"""The registry's repository of serving images, gateways' and engines', in every region."""

LOAD_BALANCER = "api"
"""Ends the name of a region's load balancer and of its target group."""

REGION_HEALTH_PATH = "/region"
"""Where a gateway says whether its region should receive traffic, and why not."""
CONTROL_PATH = "/controls"
"""Where a gateway tells health checks whether another region has been evacuated: `/controls/<region>`."""

_PART = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class StackName:
    """A stack: what it describes and where."""

    environment: str
    layer: Layer
    region: str = ""
    """Empty for the layers that span regions."""

    def __str__(self) -> str:
        return ".".join(filter(None, (self.environment, self.layer, self.region)))

    def upstream(self, known: Iterable[StackName]) -> list[StackName]:
        """Those of `known` whose outputs this stack may read, directly or not. Regions never refer to each other."""
        earlier = LAYERS[: LAYERS.index(self.layer)]
        return [
            stack
            for stack in known
            if stack.environment == self.environment
            and stack.layer in earlier
            and (not self.region or not stack.region or stack.region == self.region)
        ]

    @property
    def reference(self) -> str:
        """Fully qualified name for a StackReference; an S3 or file backend calls its organisation literally so."""
        return f"organization/{PROJECT}/{self}"


def parse_stack(name: str) -> StackName:
    """The stack called `name`: `prod.cluster.us-west-2` is layer `cluster` of `prod` in `us-west-2`.

    Raises:
        ConfigError: it is no such name.
    """
    environment, _, rest = name.partition(".")
    layer_name, _, region = rest.partition(".")
    layer = next((layer for layer in LAYERS if layer == layer_name), None)
    shape = "stacks are named <environment>.<layer>[.<region>], such as local.serving.us-east-2"
    if layer is None:
        raise ConfigError(f"{name}: no layer {layer_name!r}; layers are {', '.join(LAYERS)}", shape)
    if not _PART.fullmatch(environment) or (region and not _PART.fullmatch(region)):
        raise ConfigError(f"{name}: environment and region are lower-case words", shape)
    if (layer in REGIONAL) != bool(region):
        raise ConfigError(
            f"{name}: layer {layer} {'needs a region' if layer in REGIONAL else 'spans regions and takes none'}", shape
        )
    return StackName(environment, layer, region)


@dataclass(frozen=True)
class Names:
    """Physical names within one environment."""

    prefix: str
    environment: str

    def globally(self, what: str) -> str:
        """Name of something that exists once for all regions, such as a global table."""
        return f"{self.prefix}-{self.environment}-{what}"

    def regionally(self, region_code: str, what: str) -> str:
        """Name of something that exists once a region, such as a bucket."""
        return f"{self.prefix}-{self.environment}-{region_code}-{what}"

    def secret(self, what: str) -> str:
        """Name of a secret; the slashes let a policy speak of them all."""
        return f"{self.prefix}/{self.environment}/{what}"

    def repository(self, what: str) -> str:
        """Name of a repository of images; templates and rules of the registry go by what is before its last slash."""
        return f"{self.prefix}/{self.environment}/{what}"
