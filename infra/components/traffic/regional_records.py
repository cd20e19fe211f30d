"""`api.<domain>`: the nearest region that is well and that nobody has evacuated.

Health checks read both, so no control plane takes part in a failover. A region is well while its own gateways say so. It is
evacuated while another region's gateways say so: they serve the control that `flotilla failover` writes, and the check of it is
inverted. So a survivor that is lost itself, or that cannot be read, evacuates nobody, and a region that can no longer be
reached can still be taken out. If nobody is left, Route 53 answers with all.

The API's name is a CNAME with a time to live of its own: an alias to a load balancer is kept for 60 s by every resolver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.naming import StackName
from infra.stackref import ServingOutputs
from policies.failover.rotation import CHECK_FAILURES, CHECK_PERIOD_S, CONTROL_FAILURES, RECORD_TTL_S

HTTPS_PORT = 443


@dataclass(frozen=True)
class RegionalRecordsArgs:
    """`codes` and `serving` by region: short names, and what the region's serving stack exports."""

    domain: str
    codes: Mapping[str, str]
    serving: Mapping[str, pulumi.Output[ServingOutputs]]
    further_checks: Mapping[str, str]
    """Ids of health checks made elsewhere that a region must pass as well."""


class RegionalRecords(Component):
    """The zone; for each region a name of its own, its health checks, and a latency record."""

    def __init__(
        self, name: str, args: RegionalRecordsArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("traffic:RegionalRecords", name, stack, opts)
        self._args = args
        self.api_domain = f"api.{args.domain}"
        self.regional_domains = {region: f"{code}.{args.domain}" for region, code in args.codes.items()}
        """Where each region answers whatever its health, for checks, drills, and those who look for what is wrong."""
        self.zone = aws.route53.Zone(
            self.part("zone"), name=args.domain, comment="Flotilla", tags=self.tags(), opts=self.child(protect=True)
        )
        for region in sorted(args.serving):
            self._create_regional_name(region)
            self._create_api_record(region, self._create_health(region))
        self.register_outputs({})

    def _create_regional_name(self, region: str) -> None:
        serving = self._args.serving[region]
        aws.route53.Record(
            self.part(f"region-{region}"),
            zone_id=self.zone.zone_id,
            name=self.regional_domains[region],
            type="A",
            aliases=[
                {
                    "name": serving.apply(lambda known: known.load_balancer_dns_name),
                    "zone_id": serving.apply(lambda known: known.load_balancer_zone_id),
                    "evaluate_target_health": False,
                }
            ],
            opts=self.child(),
        )

    def _create_health(self, region: str) -> aws.route53.HealthCheck:
        """Healthy while the region is well and no other region says that it is evacuated."""
        well = self._create_check(f"check-{region}", region, lambda known: known.region_health_path, CHECK_FAILURES)
        kept = [
            self._create_check(
                f"control-{region}-at-{survivor}",
                survivor,
                lambda known: f"{known.control_path}/{region}",
                CONTROL_FAILURES,
                is_inverted=True,
            )
            for survivor in sorted(self._args.serving)
            if survivor != region
        ]
        children = [check.id for check in (well, *kept)]
        further = [self._args.further_checks[region]] if region in self._args.further_checks else []
        return aws.route53.HealthCheck(
            self.part(f"health-{region}"),
            type="CALCULATED",
            child_healthchecks=[*children, *further],
            child_health_threshold=len(children) + len(further),
            tags=self.tags(Name=f"{self._args.domain} {region}"),
            opts=self.child(),
        )

    def _create_check(
        self, what: str, asked: str, path: Callable[[ServingOutputs], str], failures: int, *, is_inverted: bool = False
    ) -> aws.route53.HealthCheck:
        """A question to the gateways of the region `asked`; 2xx and 3xx are a yes."""
        return aws.route53.HealthCheck(
            self.part(what),
            type="HTTPS",
            fqdn=self.regional_domains[asked],
            port=HTTPS_PORT,
            resource_path=self._args.serving[asked].apply(path),
            request_interval=CHECK_PERIOD_S,
            failure_threshold=failures,
            invert_healthcheck=is_inverted,
            tags=self.tags(Name=f"{self._args.domain} {what}"),
            opts=self.child(),
        )

    def _create_api_record(self, region: str, health: aws.route53.HealthCheck) -> None:
        aws.route53.Record(
            self.part(f"api-{region}"),
            zone_id=self.zone.zone_id,
            name=self.api_domain,
            type="CNAME",
            ttl=RECORD_TTL_S,
            records=[self.regional_domains[region]],
            set_identifier=region,
            latency_routing_policies=[{"region": region}],
            health_check_id=health.id,
            opts=self.child(),
        )
