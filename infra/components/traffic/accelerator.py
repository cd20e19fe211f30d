"""Two fixed addresses for every region, `static.<domain>`: for clients whose firewalls know addresses and not names.

It is beside `api.<domain>` and not before it. Global Accelerator goes by its own checks of each load balancer, cannot read an
evacuation control, and is steered by a control plane in one region alone: a region that was evacuated, and whose gateways still
say that they are ready, keeps its traffic here. If none is well it answers with all, as Route 53 does.
"""

from __future__ import annotations

from collections.abc import Mapping

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.components.traffic.regional_records import HTTPS_PORT
from infra.naming import StackName
from infra.stackref import ServingOutputs


class Accelerator(Component):
    """A Global Accelerator before the load balancers of `serving`, by region, and its name in the zone."""

    def __init__(
        self,
        name: str,
        accelerator: str,
        domain: str,
        zone: aws.route53.Zone,
        serving: Mapping[str, pulumi.Output[ServingOutputs]],
        stack: StackName,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("traffic:Accelerator", name, stack, opts)
        self.domain = f"static.{domain}"
        # Protected: its addresses are in other people's firewalls, and are gone with it.
        front = aws.globalaccelerator.Accelerator(
            self.part("accelerator"), name=accelerator, ip_address_type="IPV4", tags=self.tags(), opts=self.child(protect=True)
        )
        listener = aws.globalaccelerator.Listener(
            self.part("listener"),
            accelerator_arn=front.arn,
            protocol="TCP",
            port_ranges=[{"from_port": HTTPS_PORT, "to_port": HTTPS_PORT}],
            opts=self.child(),
        )
        for region, outputs in sorted(serving.items()):
            aws.globalaccelerator.EndpointGroup(
                self.part(f"to-{region}"),
                listener_arn=listener.arn,
                endpoint_group_region=region,
                # The firewall counts requests by the address of the client, so that must be kept.
                endpoint_configurations=[
                    {
                        "endpoint_id": outputs.apply(lambda known: known.load_balancer_arn),
                        "client_ip_preservation_enabled": True,
                        "weight": 128,
                    }
                ],
                opts=self.child(),
            )
        aws.route53.Record(
            self.part("name"),
            zone_id=zone.zone_id,
            name=self.domain,
            type="A",
            aliases=[{"name": front.dns_name, "zone_id": front.hosted_zone_id, "evaluate_target_health": False}],
            opts=self.child(),
        )
        self.register_outputs({})
