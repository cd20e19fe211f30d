"""A recorded stack as the manifests that its provider would send to a cluster.

Helm charts are the one thing left out: their children exist only where the Pulumi engine renders them, so a graph knows no more
of a chart than name, version and values. A value that AWS makes (a load balancer's ARN, a cache's address) is a text
that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infra.embedded.graph import Graph, Resource, substitute

PREFIX = "kubernetes:"
IDENTIFIERS = {"aws:ec2/subnet:Subnet": "subnet", "aws:ec2/securityGroup:SecurityGroup": "sg"}
CHARTS = ("kubernetes:helm.sh/v4:Chart",)


@dataclass(frozen=True)
class Declared:
    """A Kubernetes object, and the resource that declares it."""

    resource: Resource
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def declared(*graphs: Graph) -> list[Declared]:
    """Every Kubernetes object of `graphs`, in the order in which they are created."""
    return [Declared(resource, manifest_of(resource)) for graph in graphs for resource in _objects(graph)]


def manifest_of(resource: Resource) -> dict[str, Any]:
    """The object that a resource declares; its name is the resource's where it gives none."""
    inputs: dict[str, Any] = substitute(dict(resource.inputs), _unknown)
    version = resource.type.removeprefix(PREFIX).rpartition(":")[0].removeprefix("core/")
    made = {"apiVersion": version, "kind": resource.type.rpartition(":")[2], **inputs}
    made["metadata"] = {"name": resource.name, **made.get("metadata", {})}
    return made


def _objects(graph: Graph) -> Iterator[Resource]:
    for resource in graph.resources:
        if resource.custom and resource.type.startswith(PREFIX) and resource.type not in CHARTS:
            yield resource


def _unknown(urn: str, name: str) -> str:
    """Stands for what AWS computes: for an identifier, which definitions check the form of, one of that form."""
    kind = "sg" if name.endswith("ecurityGroupId") else IDENTIFIERS.get(urn.rpartition("::")[0].rpartition("$")[2])
    if kind and (name == "id" or kind == "sg"):
        return f"{kind}-{hashlib.sha256(urn.encode()).hexdigest()[:17]}"
    return f"{name}-of-{urn.rpartition('::')[2]}"
