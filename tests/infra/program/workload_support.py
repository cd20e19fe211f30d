"""Reading workloads out of a recorded serving stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from infra.embedded.graph import Graph, Resource

DEPLOYMENT, STATEFUL_SET = "kubernetes:apps/v1:Deployment", "kubernetes:apps/v1:StatefulSet"
CONFIG_MAP = "kubernetes:core/v1:ConfigMap"
SCALED_OBJECT = "kubernetes:keda.sh/v1alpha1:ScaledObject"
SERVICE, NETWORK_POLICY = "kubernetes:core/v1:Service", "kubernetes:networking.k8s.io/v1:NetworkPolicy"
LOCAL, STAGING, PROD = "local.serving.us-east-2", "staging.serving.us-east-2", "prod.serving.us-east-2"


def named(graph: Graph, *types: str) -> dict[str, Resource]:
    """Resources of these types by name."""
    return {resource.name: resource for resource in graph.of_type(*types)}


def workloads(graph: Graph) -> dict[str, Resource]:
    """Deployments and StatefulSets by name."""
    return named(graph, DEPLOYMENT, STATEFUL_SET)


def labels(workload: Resource) -> dict[str, str]:
    """Labels of a workload's pods."""
    return workload.inputs["spec"]["template"]["metadata"]["labels"]  # type: ignore[no-any-return]


def pod(workload: Resource) -> dict[str, Any]:
    """Specification of a workload's pods."""
    return workload.inputs["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def containers(found: Iterable[Resource]) -> Iterator[tuple[Resource, dict[str, Any]]]:
    """Every container, with its workload."""
    for workload in found:
        for container in pod(workload)["containers"]:
            yield workload, container


def environment(container: dict[str, Any]) -> dict[str, Any]:
    """A container's environment."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def document(graph: Graph, name: str) -> str:
    """The settings document in the ConfigMap called `name`."""
    (text,) = named(graph, "kubernetes:core/v1:ConfigMap")[name].inputs["data"].values()
    return str(text)
