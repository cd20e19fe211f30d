"""Policy documents, ARNs, and nothing that needs an answer from AWS: names are ours, so ARNs follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi

Statement = dict[str, Any]
"""A statement of a policy; its leaves may be Outputs."""


def allow(
    sid: str,
    actions: Sequence[str],
    resources: Sequence[pulumi.Input[str]],
    condition: Mapping[str, Mapping[str, Any]] | None = None,
) -> Statement:
    """Allows `actions` on `resources`."""
    statement: Statement = {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": list(resources)}
    return {**statement, "Condition": dict(condition)} if condition else statement


def trust(
    service: str, actions: Sequence[str] = ("sts:AssumeRole",), condition: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The document that lets an AWS service take a role."""
    statement: Statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": list(actions)}
    return compact_json(
        {"Version": "2012-10-17", "Statement": [{**statement, "Condition": dict(condition)} if condition else statement]}
    )


def trust_within(account_id: str, principals: Sequence[str]) -> str:
    """The document that lets `principals` of the account take a role: ARNs, in which `*` stands for anything.

    They are a condition rather than the principal: IAM refuses a principal that does not exist yet, and one that was deleted and
    made again would be locked out.
    """
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": account_root(account_id)},
        "Action": "sts:AssumeRole",
        "Condition": {"ArnLike": {"aws:PrincipalArn": sorted(principals)}},
    }
    return compact_json({"Version": "2012-10-17", "Statement": [statement]})


def document(*statements: Statement) -> pulumi.Output[str]:
    """A policy document as JSON."""
    return pulumi.Output.json_dumps({"Version": "2012-10-17", "Statement": list(statements)})


def plain_document(*statements: Statement) -> str:
    """A policy document as JSON, of statements that hold no Outputs."""
    return compact_json({"Version": "2012-10-17", "Statement": list(statements)})


def compact_json(value: Any) -> str:
    """Compact JSON of plain values."""
    return json.dumps(value, separators=(",", ":"))


def bucket_arn(bucket: str) -> str:
    """ARN of a bucket."""
    return f"arn:aws:s3:::{bucket}"


def table_arn(region: str, account_id: str, table: str) -> str:
    """ARN of a table's replica in `region`."""
    return f"arn:aws:dynamodb:{region}:{account_id}:table/{table}"


def secret_arn(region: str, account_id: str, secret: str) -> str:
    """Pattern of a secret's ARN in `region`: AWS ends it with a hyphen and six characters of its own."""
    return f"arn:aws:secretsmanager:{region}:{account_id}:secret:{secret}-??????"


def repository_arn(region: str, account_id: str, repository: str) -> str:
    """ARN of a repository of images."""
    return f"arn:aws:ecr:{region}:{account_id}:repository/{repository}"


def repository_address(region: str, account_id: str, repository: str) -> str:
    """Where a repository's images are pulled from, without tag or digest."""
    return f"{account_id}.dkr.ecr.{region}.amazonaws.com/{repository}"


def role_arn(account_id: str, role: str) -> str:
    """ARN of a role."""
    return f"arn:aws:iam::{account_id}:role/{role}"


def queue_arn(region: str, account_id: str, queue: str) -> str:
    """ARN of a queue."""
    return f"arn:aws:sqs:{region}:{account_id}:{queue}"


def cluster_arn(region: str, account_id: str, cluster: str) -> str:
    """ARN of an EKS cluster."""
    return f"arn:aws:eks:{region}:{account_id}:cluster/{cluster}"


def account_root(account_id: str) -> str:
    """The account itself as a principal."""
    return f"arn:aws:iam::{account_id}:root"


def key_policy(account_id: str) -> str:
    """The policy of a KMS key whose rights IAM gives."""
    statement = {
        "Sid": "IamDecides",
        "Effect": "Allow",
        "Principal": {"AWS": account_root(account_id)},
        "Action": "kms:*",
        "Resource": "*",
    }
    return compact_json({"Version": "2012-10-17", "Statement": [statement]})
