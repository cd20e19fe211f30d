"""An AWS account to ask: moto's, with answers of our own where moto has none, and refusals where a test wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from infra import versions
from infra.operations.preflight import NODE_IMAGES

MOTO_ACCOUNT = "123456789012"
NOW = datetime(2026, 11, 24, tzinfo=UTC)
SUPPORTED_UNTIL = datetime(2027, 8, 1, tzinfo=UTC)
ZONES = {"p4d.24xlarge": "abc", "p4de.24xlarge": "ab", "m7i.2xlarge": "abc", "c7i.4xlarge": "abc"}


def reservation(identifier: str, instance_type: str, zone: str, count: int, **changes: Any) -> dict[str, Any]:
    known = {
        "CapacityReservationId": identifier,
        "InstanceType": instance_type,
        "AvailabilityZone": zone,
        "TotalInstanceCount": count,
        "State": "active",
    }
    return {**known, **changes}


def reservations() -> list[dict[str, Any]]:
    """As the stack file of prod.cluster.us-east-2 has them."""
    p4d = [reservation(f"cr-010d000000000000{n}", "p4d.24xlarge", f"us-east-2{z}", 2) for n, z in ((1, "a"), (2, "b"), (3, "c"))]
    return p4d + [reservation(f"cr-010e000000000000{n}", "p4de.24xlarge", f"us-east-2{z}", 5) for n, z in ((1, "a"), (2, "b"))]


@dataclass
class Account:
    """What AWS would answer. moto knows STS and the tagging API; EC2's capacity, quotas and EKS's versions are given here."""

    quotas: dict[str, float] = field(default_factory=dict)
    """By code; any other is plenty."""
    zones: Mapping[str, str] = field(default_factory=lambda: dict(ZONES))
    """Letters of the zones that offer a type."""
    reservations: list[dict[str, Any]] = field(default_factory=reservations)
    supported_until: datetime = SUPPORTED_UNTIL
    withdrawn: set[str] = field(default_factory=set)
    """Add-ons and variants of node images whose pinned version AWS no longer has."""
    refused: set[str] = field(default_factory=set)
    """Operations that the caller may not call."""
    called: list[str] = field(default_factory=list)

    def answer(self, operation: str, parameters: Mapping[str, Any]) -> Any:
        """The answer, or None where moto has one."""
        self.called.append(operation)
        if operation in self.refused:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not you"}}, operation)
        match operation:
            case "GetServiceQuota":
                return {"Quota": {"Value": self.quotas.get(parameters["QuotaCode"], 1e6)}}
            case "DescribeInstanceTypeOfferings":
                wanted = parameters["Filters"][0]["Values"]
                found = [(kind, f"us-east-2{letter}") for kind, letters in self.zones.items() for letter in letters]
                return {"InstanceTypeOfferings": [{"InstanceType": k, "Location": z} for k, z in found if k in wanted]}
            case "DescribeCapacityReservations":
                (wanted,) = parameters["Filters"][0]["Values"]
                return {"CapacityReservations": [r for r in self.reservations if r["CapacityReservationId"] == wanted]}
            case "DescribeClusterVersions":
                return {"clusterVersions": [{"endOfStandardSupportDate": self.supported_until}]}
            case "DescribeAddonVersions":
                addon, version = parameters["addonName"], parameters["kubernetesVersion"]
                pinned = [] if addon in self.withdrawn else [versions.ADDONS[addon][version]]
                return {"addons": [{"addonVersions": [{"addonVersion": item} for item in ("v9.9.9-eksbuild.1", *pinned)]}]}
            case "GetParameters":
                (name,) = parameters["Names"]
                known = {versions.node_image_parameter("1.36", kind) for kind in NODE_IMAGES if kind not in self.withdrawn}
                return {"Parameters": [{"Name": name, "Value": "ami-1"}] if name in known else []}
        return None
