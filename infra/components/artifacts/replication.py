"""Every object in every region: each bucket of a kind replicates to each other one.

S3 copies no copy again, so all pairs are needed. Deletions stay where they happen: what is deleted in one region, by mistake or
by an intruder, must still be served by the other; who means it deletes in each. A release is promoted because its digests verify
there, not because it came. Locks travel with their objects, to buckets that have locks too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.artifacts.encrypted_bucket import EncryptedBucket
from infra.components.component import Component
from infra.naming import StackName

REPLICATION_TIME_MINUTES = 15
"""The only value that S3 Replication Time Control takes (AWS documentation, read November 2026)."""
READ_VERSION = ("s3:GetObjectVersionForReplication", "s3:GetObjectVersionAcl", "s3:GetObjectVersionTagging")
READ_LOCK = ("s3:GetObjectRetention", "s3:GetObjectLegalHold")
"""Without these S3 fails to replicate a locked object."""


@dataclass(frozen=True)
class ReplicatedBucketsArgs:
    """`buckets` and `kms_key_arns` by region; `role_name` is the role that S3 copies as, under `boundary_arn`."""

    role_name: str
    home_region: str
    buckets: Mapping[str, EncryptedBucket]
    kms_key_arns: Mapping[str, pulumi.Output[str]]
    boundary_arn: pulumi.Input[str]


class ReplicatedBuckets(Component):
    """Replication between all of `buckets`, with a time target, metrics and the role for it."""

    def __init__(
        self,
        name: str,
        args: ReplicatedBucketsArgs,
        stack: StackName,
        providers: Mapping[str, aws.Provider],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("artifacts:ReplicatedBuckets", name, stack, opts)
        self._args = args
        self._providers = providers
        if len(args.buckets) > 1:
            role = self._create_role()
            for region in sorted(args.buckets):
                self._create_rules(region, role)
        self.register_outputs({})

    def _create_role(self) -> aws.iam.Role:
        arguments, home = self._args, self._providers[self._args.home_region]
        role = aws.iam.Role(
            self.part("role"),
            name=arguments.role_name,
            assume_role_policy=iam.trust("s3.amazonaws.com"),
            permissions_boundary=arguments.boundary_arn,
            tags=self.tags(),
            opts=self.child(home),
        )
        buckets = [arguments.buckets[region].bucket_arn for region in sorted(arguments.buckets)]
        keys = [arguments.kms_key_arns[region] for region in sorted(arguments.buckets)]
        objects = [f"{arn}/*" for arn in buckets]
        is_locked = any(bucket.is_locked for bucket in arguments.buckets.values())
        aws.iam.RolePolicy(
            self.part("policy"),
            role=role.name,
            policy=iam.document(
                iam.allow("ReadRules", ["s3:GetReplicationConfiguration", "s3:ListBucket"], buckets),
                iam.allow(
                    "ReadSource",
                    READ_VERSION + (READ_LOCK if is_locked else ()),
                    objects,
                ),
                iam.allow("WriteReplica", ["s3:ReplicateObject", "s3:ReplicateTags"], objects),
                iam.allow("UseKeys", ["kms:Decrypt", "kms:Encrypt"], keys),
            ),
            opts=self.child(home),
        )
        return role

    def _create_rules(self, region: str, role: aws.iam.Role) -> None:
        others = [other for other in sorted(self._args.buckets) if other != region]
        versioned = [bucket.versioning for bucket in self._args.buckets.values()]
        aws.s3.BucketReplicationConfig(
            self.part(f"from-{region}"),
            bucket=self._args.buckets[region].bucket.bucket,
            role=role.arn,
            rules=[self._rule(other, priority) for priority, other in enumerate(others, start=1)],
            opts=self.child(self._providers[region], depends_on=versioned),
        )

    def _rule(self, destination: str, priority: int) -> aws.s3.BucketReplicationConfigRuleArgsDict:
        return {
            "id": f"to-{destination}",
            "priority": priority,
            "status": "Enabled",
            "filter": {"prefix": ""},
            "delete_marker_replication": {"status": "Disabled"},
            "source_selection_criteria": {
                "sse_kms_encrypted_objects": {"status": "Enabled"},
                "replica_modifications": {"status": "Enabled"},
            },
            "destination": {
                "bucket": self._args.buckets[destination].bucket.arn,
                "storage_class": "STANDARD",
                "encryption_configuration": {"replica_kms_key_id": self._args.kms_key_arns[destination]},
                # S3 takes these two together or not at all.
                "replication_time": {"status": "Enabled", "time": {"minutes": REPLICATION_TIME_MINUTES}},
                "metrics": {"status": "Enabled", "event_threshold": {"minutes": REPLICATION_TIME_MINUTES}},
            },
        }
