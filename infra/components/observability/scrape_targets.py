"""Which pods Prometheus asks, and what it adds to their answers: the labels by which scaling asks for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource

from infra.components.component import Component
from infra.components.gpu.gpu_support import NAMESPACE as GPU_NAMESPACE
from infra.components.workloads import pods
from infra.naming import ENGINE, GATEWAY, MONITORING, NAMESPACE, PROJECT, StackName

POD_LABELS = ("fleet", "model-class")
"""Of our pods, below `<project>.dev/`; their series have them as `fleet` and `model_class`."""


class ScrapeTargets(Component):
    """PodMonitors of gateways with their shippers, engines with their supervisors, and GPUs."""

    def __init__(self, name: str, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observability:ScrapeTargets", name, stack, opts)
        component = f"{PROJECT}.dev/component"
        self._create(GATEWAY, NAMESPACE, {component: GATEWAY}, ("ops", "shipper"))
        # vLLM's own series come from the port that takes requests, the supervisor's from the other.
        self._create(ENGINE, NAMESPACE, {component: ENGINE}, ("http", "ops"))
        self._create("gpus", GPU_NAMESPACE, pods.selector("dcgm-exporter"), ("metrics",))
        self.register_outputs({})

    def _create(self, name: str, namespace: str, pod_labels: dict[str, str], ports: Sequence[str]) -> None:
        CustomResource(
            name,
            api_version="monitoring.coreos.com/v1",
            kind="PodMonitor",
            metadata={"name": name, "namespace": MONITORING, "labels": pods.labels(self.stack, self._name, name)},
            spec={
                "namespaceSelector": {"matchNames": [namespace]},
                "selector": {"matchLabels": pod_labels},
                "podMetricsEndpoints": [{"port": port, "relabelings": [_added(label) for label in POD_LABELS]} for port in ports],
            },
            opts=self.child(),
        )


def _added(label: str) -> dict[str, Any]:
    """Takes a pod's label over into its series; a pod without it adds none."""
    source = re.sub(r"\W", "_", f"{PROJECT}.dev/{label}")
    return {"sourceLabels": [f"__meta_kubernetes_pod_label_{source}"], "targetLabel": label.replace("-", "_")}
