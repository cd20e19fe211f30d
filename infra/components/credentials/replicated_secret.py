"""A random string, made once, readable in every region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.naming import StackName

SECRET_CHARS = 48
"""Letters and digits: 285 bits."""


@dataclass(frozen=True)
class ReplicatedSecretArgs:
    """`kms_key_arns` by region; the secret has a replica in each but the home region."""

    secret: str
    description: str
    home_region: str
    kms_key_arns: Mapping[str, pulumi.Output[str]]


class ReplicatedSecret(Component):
    """A Secrets Manager secret with replicas, whose value AWS makes at first and nothing here ever changes."""

    def __init__(
        self, name: str, args: ReplicatedSecretArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("credentials:ReplicatedSecret", name, stack, opts)
        self.secret_name = args.secret
        secret = aws.secretsmanager.Secret(
            self.part("secret"),
            name=args.secret,
            description=args.description,
            kms_key_id=args.kms_key_arns[args.home_region],
            replicas=[
                {"region": region, "kms_key_id": args.kms_key_arns[region]}
                for region in sorted(args.kms_key_arns)
                if region != args.home_region
            ],
            tags=self.tags(),
            opts=self.child(protect=True),
        )
        value = aws.secretsmanager.get_random_password_output(
            password_length=SECRET_CHARS, exclude_punctuation=True, opts=pulumi.InvokeOutputOptions(parent=self)
        ).random_password
        # Every run makes a new value and all but the first are ignored: replacing the pepper would void every key.
        aws.secretsmanager.SecretVersion(
            self.part("value"),
            secret_id=secret.id,
            secret_string=pulumi.Output.secret(value),
            opts=self.child(ignore_changes=["secret_string"], protect=True),
        )
        self.register_outputs({})
