"""`<env>.foundation`: what survives a region. Keys, buckets, tables, secrets and images, each in every region of the environment;
and what there is once an account: the boundary of all roles, the roles of people, the alarm on the bill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from infra import iam
from infra.components.access import duties
from infra.components.access.duty_role import DutyRole, DutyRoleArgs
from infra.components.access.permissions_boundary import PermissionsBoundary, Scope
from infra.components.artifacts.encrypted_bucket import EncryptedBucket, EncryptedBucketArgs
from infra.components.artifacts.replication import ReplicatedBuckets, ReplicatedBucketsArgs
from infra.components.costs.budget_alarm import BudgetAlarm
from infra.components.credentials.replicated_secret import ReplicatedSecret, ReplicatedSecretArgs
from infra.components.images.image_registry import ImageRegistry, ImageRegistryArgs
from infra.components.keys.multi_region_key import MultiRegionKey, MultiRegionKeyArgs
from infra.components.ledger.global_table import GlobalTable, GlobalTableArgs
from infra.config import Program
from infra.naming import IMAGE_REPOSITORY
from infra.providers import aws_provider
from infra.stack_config import FoundationConfig
from infra.stackref import FoundationOutputs, export

EXPIRES_BY = {"idempotency": "expires_at", "conversations": "expires_at"}
"""Tables whose items go by themselves, and by which attribute: `EXPIRES_AT` of the gateway's modules that write them."""
TABLES = ("registry", "tenants", "ledger", "idempotency", "failover", "prompts", "conversations", "batches")
SECRETS = {
    "key-pepper": "Keys the HMAC under which API keys are stored.",
    "cache-salt": "Keys the HMAC that gives each tenant its prefix-cache salt.",
    "admin-key": "Bearer token of the admin API.",
}


@dataclass(frozen=True)
class Keeping:
    """How one kind of object is kept: the bucket's name, for how long nobody may delete it, and when it goes by itself."""

    bucket: str
    lock_days: int = 0
    expire_days: int = 0


def build(program: Program[FoundationConfig]) -> None:
    """Declares the stack and exports FoundationOutputs."""
    environment, names, config = program.environment, program.names, program.config
    home = environment.home_region
    providers = {region: aws_provider(f"aws-{region}", region, environment.account_id) for region in environment.regions}
    at_home = pulumi.ResourceOptions(provider=providers[home])

    boundary = PermissionsBoundary("boundary", Scope(names, environment.account_id, environment.regions), program.stack, at_home)
    key = MultiRegionKey(
        "data-key",
        MultiRegionKeyArgs(names.globally("data"), environment.account_id, home, config.kms_deletion_window_days),
        program.stack,
        providers,
        at_home,
    )
    buckets: dict[str, dict[str, EncryptedBucket]] = {}
    for what, keeping in _keepings(config).items():
        buckets[what] = {
            region: EncryptedBucket(
                f"{keeping.bucket}-{region}",
                EncryptedBucketArgs(
                    names.regionally(program.catalog.regions[region].code, keeping.bucket),
                    key.arns[region],
                    config.noncurrent_version_days,
                    keeping.lock_days,
                    keeping.expire_days,
                ),
                program.stack,
                pulumi.ResourceOptions(provider=providers[region]),
            )
            for region in environment.regions
        }
        ReplicatedBuckets(
            f"{what}-replication",
            ReplicatedBucketsArgs(names.globally(f"{what}-replication"), home, buckets[what], key.arns, boundary.policy.arn),
            program.stack,
            providers,
            at_home,
        )
    tables = {
        what: GlobalTable(
            what, GlobalTableArgs(names.globally(what), home, key.arns, EXPIRES_BY.get(what, "")), program.stack, at_home
        )
        for what in TABLES
    }
    secrets = {
        what: ReplicatedSecret(
            what, ReplicatedSecretArgs(names.secret(what), description, home, key.arns), program.stack, at_home
        )
        for what, description in SECRETS.items()
    }
    images = ImageRegistry(
        "images",
        ImageRegistryArgs(
            names.repository(IMAGE_REPOSITORY),
            names.globally("image-templates"),
            environment.account_id,
            home,
            config.images_kept,
            key.arns,
            boundary.policy.arn,
        ),
        program.stack,
        providers,
        at_home,
    )
    _create_duties(program, _stores(program, buckets, key), boundary, at_home)
    if config.budget:
        BudgetAlarm("budget", names.globally("monthly"), config.budget, program.stack, at_home)
    export(
        FoundationOutputs,
        {
            "tables": {what: table.table_name for what, table in tables.items()},
            "secrets": {what.replace("-", "_"): secret.secret_name for what, secret in secrets.items()},
            "regions": {
                region: {
                    **{f"{what.replace('-', '_')}_bucket": copies[region].bucket_name for what, copies in buckets.items()},
                    "kms_key_arn": key.arns[region],
                    "image_repository": images.addresses[region],
                }
                for region in environment.regions
            },
            "permissions_boundary_arn": boundary.policy.arn,
        },
    )


def _keepings(config: FoundationConfig) -> dict[str, Keeping]:
    """Every kind of object. Locked is what proves something: a bill, or what was deployed."""
    return {
        "artifact": Keeping("artifacts"),
        "archive": Keeping("archive", lock_days=config.archive_retention_days),
        "state-mirror": Keeping("state-mirror", lock_days=config.state_mirror_retention_days),
        "body": Keeping("bodies", expire_days=config.body_days),
    }


def _stores(
    program: Program[FoundationConfig], buckets: Mapping[str, Mapping[str, EncryptedBucket]], key: MultiRegionKey
) -> duties.Stores:
    regions, account, names = sorted(program.environment.regions), program.environment.account_id, program.names
    return duties.Stores(
        tables={what: [iam.table_arn(region, account, names.globally(what)) for region in regions] for what in TABLES},
        buckets={what: [copies[region].bucket_arn for region in regions] for what, copies in buckets.items()},
        repositories=[iam.repository_arn(region, account, names.repository(IMAGE_REPOSITORY)) for region in regions],
        keys=[key.arns[region] for region in regions],
    )


def _create_duties(
    program: Program[FoundationConfig], stores: duties.Stores, boundary: PermissionsBoundary, at_home: pulumi.ResourceOptions
) -> None:
    """The roles that somebody may take."""
    config = program.config.duties
    for duty, principals, policy in (
        ("publisher", config.publishers, duties.publisher_policy),
        ("responder", config.responders, duties.responder_policy),
        ("auditor", config.auditors, duties.auditor_policy),
    ):
        if principals:
            args = DutyRoleArgs(
                program.names.globally(duty),
                program.environment.account_id,
                principals,
                policy(stores),
                boundary.policy.arn,
            )
            DutyRole(duty, args, program.stack, at_home)
