"""Types that hold what cannot be made again: each resource of one is protected, and no change of ours may replace it."""

from __future__ import annotations

PROTECTED_TYPES = (
    "aws:s3/bucket:Bucket",
    "aws:kms/key:Key",
    "aws:kms/replicaKey:ReplicaKey",
    "aws:dynamodb/table:Table",
    "aws:secretsmanager/secret:Secret",
    "aws:secretsmanager/secretVersion:SecretVersion",
    "aws:eks/cluster:Cluster",
    "aws:route53/zone:Zone",
    "kubernetes:core/v1:Namespace",
)
