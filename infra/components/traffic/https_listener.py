"""Port 443 of a region's load balancer.

The serving stack makes the load balancer and its targets; the listener waits for a certificate, which waits for the zone, which
spans regions: so it is here. Until it is there a region serves nobody, and without it nobody is served in plain text.
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.components.traffic.regional_records import HTTPS_PORT
from infra.naming import StackName
from infra.stackref import ServingOutputs

TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-Res-2021-06"
"""TLS 1.3, and 1.2 with forward secrecy and authenticated ciphers alone (ELB documentation, read November 2026)."""


class HttpsListener(Component):
    """Hands what comes over TLS to the region's gateways."""

    def __init__(
        self,
        name: str,
        serving: pulumi.Output[ServingOutputs],
        certificate_arn: pulumi.Input[str],
        stack: StackName,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("traffic:HttpsListener", name, stack, opts)
        aws.lb.Listener(
            self.part("https"),
            load_balancer_arn=serving.apply(lambda known: known.load_balancer_arn),
            port=HTTPS_PORT,
            protocol="HTTPS",
            ssl_policy=TLS_POLICY,
            certificate_arn=certificate_arn,
            default_actions=[{"type": "forward", "target_group_arn": serving.apply(lambda known: known.target_group_arn)}],
            tags=self.tags(),
            opts=self.child(),
        )
        self.register_outputs({})
