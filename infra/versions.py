"""Every version that the program pins, with where it comes from. Nothing else in `infra/` names one.

EKS add-ons are not here: each takes the default version of its cluster's Kubernetes version, which EKS keeps compatible.
"""

from __future__ import annotations

KUBERNETES = "1.36"
"""Newest that Karpenter's matrix lists (Karpenter 1.13 and later, read November 2026)."""
KUBERNETES_FLOOR = "1.35"
"""EKS standard support of 1.34 ends on 2 December 2026, of 1.35 on 27 March 2027 (endoflife.date, read November 2026)."""

CACHE_ENGINES: dict[str, tuple[str, str]] = {
    "valkey": ("8.0", "default.valkey8"),
    "redis": ("7.1", "default.redis7"),
}
"""ElastiCache engine version and its parameter group."""
