"""What people and pipelines may do besides deploying: publish, respond, audit. Pure documents; `DutyRole` gives them to roles.

A responder's role is there before it is needed, and writes data alone: in a lost region's hour IAM's control plane may be lost
too, and `flotilla failover` needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi

from infra import iam

READ_ITEMS = ("dynamodb:GetItem", "dynamodb:Query", "dynamodb:BatchGetItem")
WRITE_ITEMS = ("dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:ConditionCheckItem")
PUSH_IMAGE = (
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:CompleteLayerUpload",
    "ecr:DescribeImages",
    "ecr:InitiateLayerUpload",
    "ecr:PutImage",
    "ecr:UploadLayerPart",
)


@dataclass(frozen=True)
class Stores:
    """What the foundation keeps, by what it is; ARNs of every region."""

    tables: Mapping[str, Sequence[str]]
    buckets: Mapping[str, Sequence[str]]
    repositories: Sequence[str]
    keys: Sequence[pulumi.Input[str]]


def publisher_policy(stores: Stores) -> pulumi.Output[str]:
    """Pushes images, adds releases, moves the registry's aliases. Releases are immutable: it can delete none."""
    return iam.document(
        iam.allow("Login", ["ecr:GetAuthorizationToken"], ["*"]),
        iam.allow("PushImages", PUSH_IMAGE, stores.repositories),
        *_objects("Releases", stores.buckets["artifact"], writes=True),
        iam.allow("Registry", (*READ_ITEMS, *WRITE_ITEMS), stores.tables["registry"]),
        iam.allow("UseKeys", ["kms:Decrypt", "kms:GenerateDataKey"], stores.keys),
    )


def responder_policy(stores: Stores) -> pulumi.Output[str]:
    """Evacuates a region and brings it back: writes the failover controls, in any region, and reads what was last deployed."""
    return iam.document(
        iam.allow("Controls", (*READ_ITEMS, *WRITE_ITEMS), stores.tables["failover"]),
        iam.allow("ReadRegistry", READ_ITEMS, stores.tables["registry"]),
        *_objects("StateMirror", stores.buckets["state-mirror"]),
        *_objects("Releases", stores.buckets["artifact"]),
        iam.allow("ReadMetrics", ["cloudwatch:GetMetricData"], ["*"]),
        iam.allow("UseKeys", ["kms:Decrypt"], stores.keys),
    )


def auditor_policy(stores: Stores) -> pulumi.Output[str]:
    """Reads usage where it is summed and where it is proven, and nothing else."""
    return iam.document(
        iam.allow("ReadLedger", (*READ_ITEMS, "dynamodb:Scan"), stores.tables["ledger"]),
        *_objects("Archive", stores.buckets["archive"]),
        iam.allow("UseKeys", ["kms:Decrypt"], stores.keys),
    )


def _objects(what: str, buckets: Sequence[str], *, writes: bool = False) -> tuple[iam.Statement, iam.Statement]:
    actions = ["s3:GetObject", "s3:GetObjectVersion", *(["s3:PutObject"] if writes else [])]
    return (
        iam.allow(f"List{what}", ["s3:ListBucket"], buckets),
        iam.allow(f"{'Write' if writes else 'Read'}{what}", actions, [f"{bucket}/*" for bucket in buckets]),
    )
