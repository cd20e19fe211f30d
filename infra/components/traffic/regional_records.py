"""`api.<domain>`: the nearest region whose gateways say that they are ready.

A region that fails its checks is taken out by Route 53's data plane alone; no control plane takes part in a failover.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.naming import StackName

CHECK_PERIOD_S = 10
"""The shorter of the two periods that Route 53 offers."""
CHECK_FAILURES = 3
RECORD_TTL_S = 30


@dataclass(frozen=True)
class RegionalEndpoint:
    """Where a region's gateways answer, and the path that says whether they are ready."""

    address: str
    health_path: str


@dataclass(frozen=True)
class RegionalRecordsArgs:
    """`endpoints` by region."""

    domain: str
    endpoints: Mapping[str, pulumi.Output[RegionalEndpoint]]


class RegionalRecords(Component):
    """The zone, and a health check and a latency record for each region."""

    def __init__(
        self, name: str, args: RegionalRecordsArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("traffic:RegionalRecords", name, stack, opts)
        self.api_domain = f"api.{args.domain}"
        zone = aws.route53.Zone(
            self.part("zone"), name=args.domain, comment="Flotilla", tags=self.tags(), opts=self.child(protect=True)
        )
        for region, endpoint in sorted(args.endpoints.items()):
            check = aws.route53.HealthCheck(
                self.part(f"check-{region}"),
                type="HTTPS",
                fqdn=endpoint.apply(lambda known: known.address),
                port=443,
                resource_path=endpoint.apply(lambda known: known.health_path),
                request_interval=CHECK_PERIOD_S,
                failure_threshold=CHECK_FAILURES,
                measure_latency=True,
                tags=self.tags(Name=f"{args.domain} {region}"),
                opts=self.child(),
            )
            aws.route53.Record(
                self.part(f"api-{region}"),
                zone_id=zone.zone_id,
                name=self.api_domain,
                type="CNAME",
                ttl=RECORD_TTL_S,
                records=[endpoint.apply(lambda known: known.address)],
                set_identifier=region,
                latency_routing_policies=[{"region": region}],
                health_check_id=check.id,
                opts=self.child(),
            )
        self.register_outputs({})
