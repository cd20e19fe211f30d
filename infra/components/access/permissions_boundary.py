"""What no role of an environment can do, whatever policy it is given: one boundary that every role carries.

A role's rights are what its own policies and the boundary both allow. So a mistake in a policy, or someone who can write one,
gains nothing beyond the environment's regions, its own data, and its own roles; and nothing that runs can take away what
protects the data: versions, locks, keys, backups. Deployments can; their roles are not made here (`infra/bootstrap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.naming import Names, StackName

SERVICES = (
    "acm", "aps", "arc-zonal-shift", "autoscaling", "cloudwatch", "ec2", "ec2messages", "ecr", "eks", "eks-auth",
    "elasticloadbalancing", "kms", "logs", "pricing", "sqs", "ssm", "ssmmessages", "sts", "wafv2",
)  # fmt: skip
"""Services whose resources have names that we do not choose, or none."""
GLOBAL_SERVICES = ("iam", "pricing", "route53", "sts")
"""Answered in one region for all."""
DRILLS = ("elasticache:DescribeReplicationGroups", "elasticache:InterruptClusterAzPower", "tag:GetResources")
"""What experiments of AWS FIS need beyond `SERVICES`; no role but theirs has it."""
PROTECTIONS = (
    "dynamodb:DeleteBackup",
    "dynamodb:DeleteTable",
    "dynamodb:DeleteTableReplica",
    "dynamodb:UpdateContinuousBackups",
    "ecr:DeleteRepository",
    "ecr:PutImageTagMutability",
    "kms:DisableKey",
    "kms:PutKeyPolicy",
    "kms:ScheduleKeyDeletion",
    "s3:BypassGovernanceRetention",
    "s3:DeleteBucket",
    "s3:DeleteBucketPolicy",
    "s3:DeleteObjectVersion",
    "s3:PutBucketObjectLockConfiguration",
    "s3:PutBucketPolicy",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketVersioning",
    "s3:PutEncryptionConfiguration",
    "s3:PutLifecycleConfiguration",
    "s3:PutReplicationConfiguration",
    "secretsmanager:DeleteSecret",
)
"""What takes data away for good, or what protects it."""


@dataclass(frozen=True)
class Scope:
    """An environment as its boundary sees it."""

    names: Names
    account_id: str
    regions: Sequence[str]


def boundary_document(scope: Scope) -> str:
    """The boundary as a policy document. A managed policy holds at most 6,144 characters (IAM quota, read November 2026)."""
    account, names = scope.account_id, scope.names
    own_roles = f"arn:aws:iam::{account}:role/{names.globally('*')}"
    kept_here: iam.Statement = {
        "Sid": "StayInRegions",
        "Effect": "Deny",
        "NotAction": [f"{service}:*" for service in GLOBAL_SERVICES],
        "Resource": "*",
        "Condition": {"StringNotEquals": {"aws:RequestedRegion": sorted(scope.regions)}},
    }
    kept_safe: iam.Statement = {"Sid": "KeepProtections", "Effect": "Deny", "Action": list(PROTECTIONS), "Resource": "*"}
    statements = [
        iam.allow("Services", [f"{service}:*" for service in SERVICES], ["*"]),
        iam.allow(
            "OwnData",
            ["dynamodb:*", "s3:*", "secretsmanager:*"],
            [
                iam.bucket_arn(names.globally("*")),
                iam.table_arn("*", account, names.globally("*")),
                iam.secret_arn("*", account, names.secret("*")),
            ],
        ),
        iam.allow("Drills", DRILLS, ["*"]),
        iam.allow("ReadRolesAndZones", ["iam:Get*", "iam:List*", "route53:Get*", "route53:List*"], ["*"]),
        iam.allow("PassOwnRoles", ["iam:PassRole"], [own_roles]),
        iam.allow(
            "InstanceProfiles",
            [f"iam:{verb}InstanceProfile" for verb in ("Create", "Delete", "Tag", "AddRoleTo", "RemoveRoleFrom")],
            [f"arn:aws:iam::{account}:instance-profile/*", own_roles],
        ),
        iam.allow("ServiceRoles", ["iam:CreateServiceLinkedRole"], [f"arn:aws:iam::{account}:role/aws-service-role/*"]),
        kept_here,
        kept_safe,
    ]
    return iam.compact_json({"Version": "2012-10-17", "Statement": statements})


class PermissionsBoundary(Component):
    """The managed policy that bounds every role of the environment."""

    def __init__(self, name: str, scope: Scope, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("access:PermissionsBoundary", name, stack, opts)
        self.policy = aws.iam.Policy(
            self.part("policy"),
            name=scope.names.globally("boundary"),
            description="Every role of this environment carries it",
            policy=boundary_document(scope),
            tags=self.tags(),
            opts=self.child(protect=True),
        )
        self.register_outputs({})
