"""Every version that the program pins, with where it comes from. Nothing else in `infra/` names one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

KUBERNETES = "1.36"
"""Newest that Karpenter's matrix lists (Karpenter 1.13 and later, read November 2026)."""
KUBERNETES_FLOOR = "1.35"
KUBERNETES_SUPPORT_ENDS: Mapping[str, date] = {"1.35": date(2027, 3, 27)}
"""Last day of EKS standard support (endoflife.date, read November 2026). `flotilla preflight` asks AWS for those not here."""
SUPPORT_MARGIN_DAYS = 60
"""Time in which people can be expected to upgrade."""

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
