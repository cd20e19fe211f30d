"""A certificate for every name below the domain, in each region's ACM, proven and renewed by one record in our zone.

The record follows from account and domain alone, so every region's certificate is proven by the same one, and a region that is
added adds none.
"""

from __future__ import annotations

from collections.abc import Mapping

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.naming import StackName

VALIDATION_TTL_S = 300


class Certificates(Component):
    """`arns` are given once the certificates are issued, by region. The record is read from the home region's."""

    def __init__(
        self,
        name: str,
        zone: aws.route53.Zone,
        domain: str,
        home_region: str,
        stack: StackName,
        providers: Mapping[str, aws.Provider],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("traffic:Certificates", name, stack, opts)
        requested = {
            region: aws.acm.Certificate(
                self.part(f"certificate-{region}"),
                domain_name=f"*.{domain}",
                validation_method="DNS",
                key_algorithm="EC_prime256v1",
                tags=self.tags(),
                opts=self.child(provider),
            )
            for region, provider in sorted(providers.items())
        }
        first = requested[home_region].domain_validation_options
        record = aws.route53.Record(
            self.part("validation"),
            zone_id=zone.zone_id,
            name=first.apply(lambda options: _text(options[0].resource_record_name)),
            type=first.apply(lambda options: _text(options[0].resource_record_type)),
            records=[first.apply(lambda options: _text(options[0].resource_record_value))],
            ttl=VALIDATION_TTL_S,
            opts=self.child(),
        )
        self.arns: Mapping[str, pulumi.Output[str]] = {
            region: aws.acm.CertificateValidation(
                self.part(f"issued-{region}"),
                certificate_arn=certificate.arn,
                validation_record_fqdns=[record.fqdn],
                opts=self.child(providers[region]),
            ).certificate_arn
            for region, certificate in requested.items()
        }
        self.register_outputs({})


def _text(value: str | None) -> str:
    """A property that is there for every certificate that DNS proves, whatever the SDK's types say."""
    assert value is not None
    return value
