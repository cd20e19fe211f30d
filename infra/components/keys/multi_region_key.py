"""One encryption key in every region, so that what is replicated can be read where it arrives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.naming import StackName


@dataclass(frozen=True)
class MultiRegionKeyArgs:
    """`alias` is the key's name in each region, without `alias/`."""

    alias: str
    account_id: str
    home_region: str
    deletion_window_days: int


class MultiRegionKey(Component):
    """A multi-Region KMS key in the home region, its replicas, and an alias for each."""

    def __init__(
        self,
        name: str,
        args: MultiRegionKeyArgs,
        stack: StackName,
        providers: Mapping[str, aws.Provider],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("keys:MultiRegionKey", name, stack, opts)
        home = providers[args.home_region]
        # Rights come from IAM policies, as everywhere else here; without this statement the key would be lost to all of them.
        policy = iam.key_policy(args.account_id)
        primary = aws.kms.Key(
            self.part("primary"),
            description=f"{args.alias}: encrypts what is stored",
            multi_region=True,
            enable_key_rotation=True,
            deletion_window_in_days=args.deletion_window_days,
            policy=policy,
            tags=self.tags(),
            opts=self.child(home, protect=True),
        )
        arns: dict[str, pulumi.Output[str]] = {args.home_region: primary.arn}
        key_ids: dict[str, pulumi.Output[str]] = {args.home_region: primary.key_id}
        for region in sorted(providers.keys() - {args.home_region}):
            replica = aws.kms.ReplicaKey(
                self.part(f"replica-{region}"),
                primary_key_arn=primary.arn,
                description=f"{args.alias}: encrypts what is stored",
                deletion_window_in_days=args.deletion_window_days,
                policy=policy,
                tags=self.tags(),
                opts=self.child(providers[region], protect=True),
            )
            arns[region], key_ids[region] = replica.arn, replica.key_id
        for region, key_id in key_ids.items():
            aws.kms.Alias(
                self.part(f"alias-{region}"), name=f"alias/{args.alias}", target_key_id=key_id, opts=self.child(providers[region])
            )
        self.arns: Mapping[str, pulumi.Output[str]] = arns
        """ARN of the key by region."""
        self.register_outputs({})
