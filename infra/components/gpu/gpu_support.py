"""What a GPU node needs besides its image: the plugin that offers its GPUs to pods, and the exporter that measures them.

Both take devices and folders of the node, which no Pod Security level but `privileged` allows; so they have a namespace of
their own, with nothing else in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi_kubernetes.core import v1 as core

from infra import versions
from infra.components.chart import chart
from infra.components.component import Component
from infra.components.workloads import pods
from infra.instances import GpuKind
from infra.naming import StackName
from infra.scheduling import GPU, GPU_TAINT, SPOT_TAINT, toleration

NAMESPACE = "gpu"
ON_GPU_NODES: Mapping[str, Any] = {
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": GPU, "operator": "In", "values": sorted(map(str, GpuKind))}]}]
            }
        }
    },
    "tolerations": [toleration(GPU_TAINT), toleration(SPOT_TAINT)],
}


class GpuSupport(Component):
    """NVIDIA's device plugin and DCGM exporter, on GPU nodes alone. The exporter is scraped by `ScrapeTargets`."""

    def __init__(self, name: str, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gpu:GpuSupport", name, stack, opts)
        labels = {**pods.labels(stack, name, NAMESPACE), "pod-security.kubernetes.io/enforce": "privileged"}
        namespace = core.Namespace(NAMESPACE, metadata={"name": NAMESPACE, "labels": labels}, opts=self.child(protect=True))
        chart(
            versions.DEVICE_PLUGIN,
            NAMESPACE,
            # GPU nodes carry labels of ours: no second thing has to discover what they are.
            {**ON_GPU_NODES, "gfd": {"enabled": False}, "nfd": {"enabled": False}},
            self.child(depends_on=[namespace]),
        )
        chart(
            versions.DCGM_EXPORTER,
            NAMESPACE,
            {**ON_GPU_NODES, "serviceMonitor": {"enabled": False}, "kubeletPath": "/var/lib/kubelet/pod-resources"},
            self.child(depends_on=[namespace]),
        )
        self.register_outputs({})
