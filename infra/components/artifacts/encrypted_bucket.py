"""A bucket that keeps what it is given: versioned, encrypted with our key, private, reachable by TLS only."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.naming import StackName

ABORT_UPLOAD_DAYS = 7
"""Parts of an upload that never finished are billed until removed."""


@dataclass(frozen=True)
class EncryptedBucketArgs:
    """`lock_days` above 0 forbids to delete or overwrite a version for so long, except to those who may bypass governance.
    `expire_days` above 0 removes what is older."""

    bucket: str
    kms_key_arn: pulumi.Input[str]
    noncurrent_version_days: int
    lock_days: int = 0
    expire_days: int = 0


class EncryptedBucket(Component):
    """An S3 bucket with everything that ours have in common."""

    def __init__(
        self, name: str, args: EncryptedBucketArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("artifacts:EncryptedBucket", name, stack, opts)
        self.bucket_name = args.bucket
        self.bucket_arn = iam.bucket_arn(args.bucket)
        self.is_locked = args.lock_days > 0
        self.bucket = aws.s3.Bucket(
            self.part("bucket"),
            bucket=args.bucket,
            object_lock_enabled=self.is_locked,
            tags=self.tags(),
            opts=self.child(protect=True),
        )
        self.versioning = aws.s3.BucketVersioning(
            self.part("versioning"), bucket=self.bucket.bucket, versioning_configuration={"status": "Enabled"}, opts=self.child()
        )
        self._create_encryption(args.kms_key_arn)
        self._create_access_rules()
        self._create_lifecycle(args)
        self.register_outputs({"bucket": self.bucket.bucket})

    def _create_encryption(self, kms_key_arn: pulumi.Input[str]) -> None:
        aws.s3.BucketServerSideEncryptionConfiguration(
            self.part("encryption"),
            bucket=self.bucket.bucket,
            rules=[
                {
                    "apply_server_side_encryption_by_default": {"sse_algorithm": "aws:kms", "kms_master_key_id": kms_key_arn},
                    "bucket_key_enabled": True,
                }
            ],
            opts=self.child(),
        )

    def _create_access_rules(self) -> None:
        block = aws.s3.BucketPublicAccessBlock(
            self.part("public-access"),
            bucket=self.bucket.bucket,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=self.child(),
        )
        aws.s3.BucketOwnershipControls(
            self.part("ownership"), bucket=self.bucket.bucket, rule={"object_ownership": "BucketOwnerEnforced"}, opts=self.child()
        )
        tls_only: iam.Statement = {
            "Sid": "TlsOnly",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [self.bucket_arn, f"{self.bucket_arn}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
        # S3 refuses a policy that arrives together with the block.
        aws.s3.BucketPolicy(
            self.part("policy"), bucket=self.bucket.bucket, policy=iam.document(tls_only), opts=self.child(depends_on=[block])
        )

    def _create_lifecycle(self, args: EncryptedBucketArgs) -> None:
        aws.s3.BucketLifecycleConfiguration(
            self.part("lifecycle"),
            bucket=self.bucket.bucket,
            rules=_lifecycle_rules(args),
            opts=self.child(depends_on=[self.versioning]),
        )
        if self.is_locked:
            aws.s3.BucketObjectLockConfiguration(
                self.part("object-lock"),
                bucket=self.bucket.bucket,
                rule={"default_retention": {"mode": "GOVERNANCE", "days": args.lock_days}},
                opts=self.child(depends_on=[self.versioning]),
            )


def _lifecycle_rules(args: EncryptedBucketArgs) -> list[aws.s3.BucketLifecycleConfigurationRuleArgsDict]:
    rules: list[aws.s3.BucketLifecycleConfigurationRuleArgsDict] = [
        {
            "id": "noncurrent-versions",
            "status": "Enabled",
            "filter": {"prefix": ""},
            "noncurrent_version_expiration": {"noncurrent_days": args.noncurrent_version_days},
            "abort_incomplete_multipart_upload": {"days_after_initiation": ABORT_UPLOAD_DAYS},
        }
    ]
    if args.expire_days:
        rules.append({"id": "expiry", "status": "Enabled", "filter": {"prefix": ""}, "expiration": {"days": args.expire_days}})
    return rules
