"""The GPU instances that pools may be made of: what one node carries.

Sources: EC2 instance type pages and Karpenter's instance table, read November 2026. GPU memory is what the driver reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class GpuKind(StrEnum):
    """A GPU as EC2 sells it: p4d carries 8 × A100-40G, p4de 8 × A100-80G, g6 one L4."""

    A100_40G = "a100-40g"
    A100_80G = "a100-80g"
    L4_24G = "l4-24g"


GPU_MEMORY_GIB: Mapping[GpuKind, float] = {GpuKind.A100_40G: 40, GpuKind.A100_80G: 80, GpuKind.L4_24G: 22.5}
MAX_GPUS_PER_NODE = 8


@dataclass(frozen=True)
class InstanceShape:
    """What a node of an instance type offers."""

    gpu: GpuKind
    num_gpus: int
    num_vcpus: int
    memory_gib: int
    nvme_gib: int
    """Instance store, used as one RAID 0 volume."""
    num_network_cards: int = 1
    """Cards that carry EFA; 1 where the type has none worth using."""


INSTANCE_SHAPES: Mapping[str, InstanceShape] = {
    "p4d.24xlarge": InstanceShape(GpuKind.A100_40G, 8, 96, 1152, 7450, num_network_cards=4),
    "p4de.24xlarge": InstanceShape(GpuKind.A100_80G, 8, 96, 1152, 7450, num_network_cards=4),
    "g6.2xlarge": InstanceShape(GpuKind.L4_24G, 1, 8, 32, 419),
}
