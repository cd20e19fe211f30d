"""Every version that the program pins, with where it comes from. Nothing else in `infra/` names one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

KUBERNETES = "1.36"
"""Newest that Karpenter's matrix lists (Karpenter 1.13 and later, read November 2026)."""
KUBERNETES_FLOOR = "1.35"
KUBERNETES_SUPPORT_ENDS: Mapping[str, date] = {"1.35": date(2027, 3, 27)}
"""Last day of EKS standard support (endoflife.date, read November 2026). `flotilla preflight` asks AWS for those not here."""
SUPPORT_MARGIN_DAYS = 60
"""Time in which people can be expected to upgrade."""

NodeImage = Literal["standard", "nvidia"]
"""Variants of AL2023's node image; the second has NVIDIA's driver."""
NODE_AMIS: Mapping[str, str] = {"1.36": "1.36.3-20260911", "1.35": "1.35.7-20260911"}
"""Release of the AL2023 node images by Kubernetes version, NVIDIA's variant too: one never moves under a running fleet.

Driver 580.178.04, RAID 0 of the instance store and EFA were seen to work on it (awslabs/awsome-distributed-ai, its compatibility
table of September 2026).
"""

ADDONS: Mapping[str, Mapping[str, str]] = {
    "vpc-cni": {"1.36": "v1.22.4-eksbuild.3", "1.35": "v1.22.4-eksbuild.3"},
    "kube-proxy": {"1.36": "v1.36.0-eksbuild.25", "1.35": "v1.35.3-eksbuild.29"},
    "eks-pod-identity-agent": {"1.36": "v1.3.10-eksbuild.3", "1.35": "v1.3.10-eksbuild.3"},
    "coredns": {"1.36": "v1.14.3-eksbuild.23", "1.35": "v1.13.2-eksbuild.31"},
    "aws-ebs-csi-driver": {"1.36": "v1.66.0-eksbuild.1", "1.35": "v1.66.0-eksbuild.1"},
    "eks-node-monitoring-agent": {"1.36": "v1.7.2-eksbuild.1", "1.35": "v1.7.2-eksbuild.1"},
    "metrics-server": {"1.36": "v0.9.0-eksbuild.11", "1.35": "v0.9.0-eksbuild.11"},
}
"""EKS add-ons by name and Kubernetes version.

AWS publishes the list by API alone (`aws eks describe-addon-versions --kubernetes-version 1.36`). Each of these stands in public
configurations of live clusters of that version, read November 2026; for 1.35 the last two were seen on 1.36 only.
`flotilla preflight` asks AWS for all of them.
"""


def node_image_alias(kubernetes_version: str) -> str:
    """The same image as Karpenter names it: "1.36" gives "al2023@v20260911"."""
    return f"al2023@v{NODE_AMIS[kubernetes_version].rpartition('-')[2]}"


def node_image_parameter(kubernetes_version: str, variant: NodeImage) -> str:
    """The SSM parameter that holds the image's identifier in a region, where AWS has it there (the path is Karpenter 1.14's)."""
    day = NODE_AMIS[kubernetes_version].rpartition("-")[2]
    image = f"amazon-eks-node-al2023-x86_64-{variant}-{kubernetes_version}-v{day}"
    return f"/aws/service/eks/optimized-ami/{kubernetes_version}/amazon-linux-2023/x86_64/{variant}/{image}/image_id"


CACHE_ENGINES: dict[str, tuple[str, str]] = {
    "valkey": ("8.0", "default.valkey8"),
    "redis": ("7.1", "default.redis7"),
}
"""ElastiCache engine version and its parameter group."""


@dataclass(frozen=True)
class Chart:
    """A Helm chart, pinned."""

    name: str
    version: str
    repository: str
    """Address of an OCI registry (`oci://…`, then `name` is not needed to find it) or of a chart repository."""
    digest: str | None
    """Of the OCI artefact or archive where it is known."""
    note: str
    """What it must agree with."""


KARPENTER = Chart(
    "karpenter",
    "1.14.1",
    "oci://public.ecr.aws/karpenter/karpenter",
    None,
    "Kubernetes up to 1.36; its definitions of NodePool and EC2NodeClass are those that tests apply ours to.",
)
LOAD_BALANCER_CONTROLLER = Chart(
    "aws-load-balancer-controller",
    "3.5.0",
    "https://aws.github.io/eks-charts",
    "sha256:45051f634b33e10baccb3354d0681b7de787c60445e599fa276e0c9aedd4ccd5",
    "Controller of the same version.",
)
KEDA = Chart("keda", "2.21.0", "https://kedacore.github.io/charts", None, "Operator of the same version.")
DEVICE_PLUGIN = Chart(
    "nvidia-device-plugin",
    "0.19.3",
    "https://nvidia.github.io/k8s-device-plugin",
    "sha256:8f01067500e712508fe55fe060b6f895814dc7efc1cb96323db2ce4f777f6e96",
    "AL2023's NVIDIA image has the driver and the toolkit, and no plugin.",
)
DCGM_EXPORTER = Chart(
    "dcgm-exporter", "4.8.3", "https://nvidia.github.io/dcgm-exporter/helm-charts", None, "Driver 525 or later."
)
PROMETHEUS = Chart(
    "kube-prometheus-stack",
    "88.4.0",
    "https://prometheus-community.github.io/helm-charts",
    None,
    "Prometheus operator 0.93.",
)
CHARTS = (KARPENTER, LOAD_BALANCER_CONTROLLER, KEDA, DEVICE_PLUGIN, DCGM_EXPORTER, PROMETHEUS)
"""All of them, as public configurations of live clusters have them, read November 2026; a digest where one had the archive's."""
