"""A table that every region can read and write, with string keys `pk` and `sk`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.naming import StackName


@dataclass(frozen=True)
class GlobalTableArgs:
    """`kms_key_arns` by region; the table has a replica in each but the home region, where it is declared."""

    table: str
    home_region: str
    kms_key_arns: Mapping[str, pulumi.Output[str]]
    expires_by: str = ""
    """Attribute with the Unix second from which DynamoDB may remove an item; empty for a table that keeps everything."""


class GlobalTable(Component):
    """A DynamoDB global table: on demand, encrypted with our key, recoverable to any second of the last 35 days.

    Replication is asynchronous and the last writer wins, so both regions' conditional puts can succeed at once: whoever needs
    exactness writes in one region.
    """

    def __init__(self, name: str, args: GlobalTableArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ledger:GlobalTable", name, stack, opts)
        self.table_name = args.table
        self.table = aws.dynamodb.Table(
            self.part("table"),
            name=args.table,
            billing_mode="PAY_PER_REQUEST",
            hash_key="pk",
            range_key="sk",
            attributes=[{"name": "pk", "type": "S"}, {"name": "sk", "type": "S"}],
            stream_enabled=True,
            stream_view_type="NEW_AND_OLD_IMAGES",
            server_side_encryption={"enabled": True, "kms_key_arn": args.kms_key_arns[args.home_region]},
            point_in_time_recovery={"enabled": True},
            deletion_protection_enabled=True,
            ttl={"attribute_name": args.expires_by, "enabled": True} if args.expires_by else None,
            replicas=[
                {
                    "region_name": region,
                    "kms_key_arn": args.kms_key_arns[region],
                    "point_in_time_recovery": True,
                    "deletion_protection_enabled": True,
                    "propagate_tags": True,
                }
                for region in sorted(args.kms_key_arns)
                if region != args.home_region
            ],
            tags=self.tags(),
            opts=self.child(protect=True),
        )
        self.register_outputs({"table": self.table.name})
