"""Prometheus in the region, which scaling asks: the operator, the server, the state of Kubernetes' objects, and nothing else.

The chart's dashboards, its alert manager and its exporter for nodes are left out: nobody here reads them yet.
"""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi_kubernetes.core import v1 as core

from infra import versions
from infra.components.chart import chart
from infra.components.component import Component
from infra.components.controllers.cluster_controllers import ON_SYSTEM_NODES
from infra.components.workloads import pods
from infra.naming import MONITORING, StackName

RETENTION = "7d"
DISK_GIB = 50
SCRAPE_INTERVAL_S = 15
"""KEDA asks every 30 s (its default); so each answer rests on a new scrape."""


class Monitoring(Component):
    """Namespace and chart. Two servers scrape everything, each for itself, behind one Service: either may be lost."""

    def __init__(self, name: str, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observability:Monitoring", name, stack, opts)
        labels = {**pods.labels(stack, name, MONITORING), "pod-security.kubernetes.io/enforce": "baseline"}
        namespace = core.Namespace(MONITORING, metadata={"name": MONITORING, "labels": labels}, opts=self.child(protect=True))
        chart(versions.PROMETHEUS, MONITORING, _values(), self.child(depends_on=[namespace]))
        self.register_outputs({})


def _values() -> dict[str, Any]:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{DISK_GIB}Gi"}}}
    return {
        **{part: {"enabled": False} for part in ("alertmanager", "grafana", "nodeExporter")},
        "defaultRules": {"create": False},
        # EKS lets nobody ask these.
        **{part: {"enabled": False} for part in ("kubeControllerManager", "kubeEtcd", "kubeScheduler", "kubeProxy")},
        "kube-state-metrics": dict(ON_SYSTEM_NODES),
        # The webhooks' certificates come from jobs that run as hooks, and a chart that the engine renders runs none.
        "prometheusOperator": {**ON_SYSTEM_NODES, "admissionWebhooks": {"enabled": False}, "tls": {"enabled": False}},
        "prometheus": {
            "prometheusSpec": {
                **ON_SYSTEM_NODES,
                "replicas": 2,
                "podAntiAffinity": "hard",
                "retention": RETENTION,
                "scrapeInterval": f"{SCRAPE_INTERVAL_S}s",
                # Else it would read only monitors that carry the chart's own label.
                "podMonitorSelectorNilUsesHelmValues": False,
                "serviceMonitorSelectorNilUsesHelmValues": False,
                "ruleSelectorNilUsesHelmValues": False,
                "resources": {"requests": {"cpu": "500m", "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
                "storageSpec": {"volumeClaimTemplate": {"spec": claim}},
            }
        },
    }
