"""What gateways and engines may do in AWS, and nothing else. Pure documents; `PodRole` gives them to pods."""

from __future__ import annotations

from dataclasses import dataclass

from infra import iam
from infra.stackref import FoundationOutputs
from policies.failover.items import REPORT, SHIPPED

READ_ITEMS = ("dynamodb:GetItem", "dynamodb:Query")
WRITE_ITEMS = ("dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem", "dynamodb:ConditionCheckItem")


@dataclass(frozen=True)
class Place:
    """Where a workload runs: its region, its account, and the home region, which takes the writes that must be exact."""

    region: str
    home_region: str
    account_id: str

    def tables(self, table: str) -> list[str]:
        """ARNs of a table here and at home."""
        return [iam.table_arn(region, self.account_id, table) for region in sorted({self.region, self.home_region})]


def gateway_policy(place: Place, foundation: FoundationOutputs) -> str:
    """Reads the registry, keeps tenants and keys, appends usage, keeps registered prompts, conversations and answers for
    idempotency keys, reads its secrets. It cannot delete usage, nor say that a region is evacuated: in the controls' table it
    writes its region's report alone."""
    data, tables = foundation.regions[place.region], foundation.tables
    secrets = [iam.secret_arn(place.region, place.account_id, name) for name in sorted(foundation.secrets.model_dump().values())]
    archive, bodies = iam.bucket_arn(data.archive_bucket), iam.bucket_arn(data.body_bucket)
    return iam.plain_document(
        iam.allow("ReadRegistry", READ_ITEMS, place.tables(tables.registry)),
        iam.allow("KeepTenants", (*READ_ITEMS, *WRITE_ITEMS, "dynamodb:Scan"), place.tables(tables.tenants)),
        iam.allow(
            "AppendUsage",
            (*READ_ITEMS, "dynamodb:BatchGetItem", "dynamodb:Scan", "dynamodb:PutItem"),
            place.tables(tables.ledger),
        ),
        iam.allow("ClaimKeys", READ_ITEMS + WRITE_ITEMS, place.tables(tables.idempotency)),
        iam.allow("KeepConversations", READ_ITEMS + WRITE_ITEMS, place.tables(tables.conversations)),
        iam.allow("ReadControls", READ_ITEMS, [iam.table_arn(place.region, place.account_id, tables.failover)]),
        iam.allow(
            "ReportRegion",
            ["dynamodb:PutItem"],
            [iam.table_arn(place.region, place.account_id, tables.failover)],
            {"ForAllValues:StringEquals": {"dynamodb:LeadingKeys": [REPORT, SHIPPED]}},
        ),
        iam.allow("ArchiveUsage", ["s3:GetObject", "s3:PutObject"], [f"{archive}/*"]),
        iam.allow("ListArchive", ["s3:ListBucket"], [archive]),
        iam.allow("KeepAnswers", ["s3:GetObject", "s3:PutObject"], [f"{bodies}/idempotency/*", f"{bodies}/conversations/*"]),
        *_read_releases(data.artifact_bucket),
        iam.allow("ReadSecrets", ["secretsmanager:GetSecretValue"], secrets),
        iam.allow("UseKey", ["kms:Decrypt", "kms:GenerateDataKey"], [data.kms_key_arn]),
        iam.allow("KeepPrompts", READ_ITEMS + WRITE_ITEMS, place.tables(tables.prompts)),
    )


def engine_policy(place: Place, foundation: FoundationOutputs) -> str:
    """Reads the registry and releases. An engine runs other people's prompts: it can write nothing."""
    data = foundation.regions[place.region]
    return iam.plain_document(
        iam.allow("ReadRegistry", READ_ITEMS, place.tables(foundation.tables.registry)),
        *_read_releases(data.artifact_bucket),
        iam.allow("UseKey", ["kms:Decrypt"], [data.kms_key_arn]),
    )


def _read_releases(bucket: str) -> tuple[iam.Statement, iam.Statement]:
    arn = iam.bucket_arn(bucket)
    return (
        iam.allow("ReadReleases", ["s3:GetObject"], [f"{arn}/releases/*"]),
        iam.allow("ListReleases", ["s3:ListBucket"], [arn], {"StringLike": {"s3:prefix": ["releases/*"]}}),
    )
