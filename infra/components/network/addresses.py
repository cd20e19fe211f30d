"""How a region's /16 is cut: pods take addresses from the private subnets, one each, so those get three quarters of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ZoneSubnets:
    """The subnets of one availability zone."""

    zone: str
    private: ipaddress.IPv4Network
    """A /18: 16,379 pods and nodes."""
    public: ipaddress.IPv4Network
    """A /20 for load balancers and NAT."""


def plan_subnets(vpc: ipaddress.IPv4Network, zones: Sequence[str]) -> tuple[ZoneSubnets, ...]:
    """The subnets of up to three zones: 10.16.0.0/16 gives the first 10.16.0.0/18 and 10.16.192.0/20."""
    *private, last = vpc.subnets(new_prefix=vpc.prefixlen + 2)
    public = last.subnets(new_prefix=vpc.prefixlen + 4)
    return tuple(ZoneSubnets(zone, own, shared) for zone, own, shared in zip(zones, private, public, strict=False))
