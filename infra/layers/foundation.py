"""`<env>.foundation`: what survives a region. Keys, buckets, tables and secrets, each in every region of the environment."""

from __future__ import annotations

import pulumi

from infra.components.artifacts.encrypted_bucket import EncryptedBucket, EncryptedBucketArgs
from infra.components.artifacts.replication import ReplicatedBuckets, ReplicatedBucketsArgs
from infra.components.credentials.replicated_secret import ReplicatedSecret, ReplicatedSecretArgs
from infra.components.keys.multi_region_key import MultiRegionKey, MultiRegionKeyArgs
from infra.components.ledger.global_table import GlobalTable, GlobalTableArgs
from infra.config import Program
from infra.providers import aws_provider
from infra.stack_config import FoundationConfig
from infra.stackref import FoundationOutputs, export

TABLES = ("registry", "tenants", "ledger", "idempotency", "failover", "conversations", "batches")
SECRETS = {
    "key-pepper": "Keys the HMAC under which API keys are stored.",
    "cache-salt": "Keys the HMAC that gives each tenant its prefix-cache salt.",
    "admin-key": "Bearer token of the admin API.",
}


def build(program: Program[FoundationConfig]) -> None:
    """Declares the stack and exports FoundationOutputs."""
    environment, names, config = program.environment, program.names, program.config
    home = environment.home_region
    codes = {region: program.catalog.regions[region].code for region in environment.regions}
    providers = {region: aws_provider(f"aws-{region}", region, environment.account_id) for region in environment.regions}
    at_home = pulumi.ResourceOptions(provider=providers[home])

    key = MultiRegionKey(
        "data-key",
        MultiRegionKeyArgs(names.globally("data"), environment.account_id, home, config.kms_deletion_window_days),
        program.stack,
        providers,
        at_home,
    )

    def bucket(region: str, what: str, lock_days: int) -> EncryptedBucket:
        args = EncryptedBucketArgs(
            names.regionally(codes[region], what), key.arns[region], config.noncurrent_version_days, lock_days
        )
        return EncryptedBucket(f"{what}-{region}", args, program.stack, pulumi.ResourceOptions(provider=providers[region]))

    artifacts = {region: bucket(region, "artifacts", lock_days=0) for region in environment.regions}
    archives = {region: bucket(region, "archive", config.archive_retention_days) for region in environment.regions}
    ReplicatedBuckets(
        "artifact-replication",
        ReplicatedBucketsArgs(names.globally("artifact-replication"), home, artifacts, key.arns),
        program.stack,
        providers,
        at_home,
    )
    tables = {
        what: GlobalTable(what, GlobalTableArgs(names.globally(what), home, key.arns), program.stack, at_home) for what in TABLES
    }
    secrets = {
        what: ReplicatedSecret(
            what, ReplicatedSecretArgs(names.secret(what), description, home, key.arns), program.stack, at_home
        )
        for what, description in SECRETS.items()
    }
    export(
        FoundationOutputs,
        {
            "tables": {what: table.table_name for what, table in tables.items()},
            "secrets": {what.replace("-", "_"): secret.secret_name for what, secret in secrets.items()},
            "regions": {
                region: {
                    "artifact_bucket": artifacts[region].bucket_name,
                    "archive_bucket": archives[region].bucket_name,
                    "body_bucket": "INTERIM",
                    "state_mirror_bucket": "INTERIM",
                    "kms_key_arn": key.arns[region],
                    "image_repository": "INTERIM",
                }
                for region in environment.regions
            },
            "permissions_boundary_arn": "INTERIM",
        },
    )
