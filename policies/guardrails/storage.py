"""What holds data: buckets, tables, keys, images, caches. Nothing here may be public, plain, or lost by one mistake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from policies.guardrails.estate import Estate, statements
from policies.guardrails.rule import Rulebook
from policies.resources import Declared, at, listed

BUCKET = "aws:s3/bucket:Bucket"
TABLE = "aws:dynamodb/table:Table"
KEY = "aws:kms/key:Key"
REPOSITORY = "aws:ecr/repository:Repository"
REPLICATION = "aws:s3/bucketReplicationConfig:BucketReplicationConfig"
CACHE = "aws:elasticache/replicationGroup:ReplicationGroup"
MIN_KEY_WINDOW_DAYS = 7
RTC_MINUTES = 15
"""The only value that S3 Replication Time Control takes (S3 documentation, read November 2026)."""

book = Rulebook()


@book.rule("bucket-versioned", BUCKET, remedy="declare a BucketVersioning with status Enabled for it")
def bucket_versioned(bucket: Declared, estate: Estate) -> Iterator[str]:
    """A bucket keeps earlier versions.

    An overwrite or a deletion can be undone, and S3 replicates versioned buckets only.
    """
    found = estate.companions(bucket, "aws:s3/bucketVersioning:BucketVersioning", "bucket")
    if not any(item.at("versioningConfiguration", "status") == "Enabled" for item in found):
        yield "keeps no versions"


@book.rule("bucket-private", BUCKET, remedy="declare a BucketPublicAccessBlock with all four switches on")
def bucket_private(bucket: Declared, estate: Estate) -> Iterator[str]:
    """Public access to a bucket is blocked in all four ways."""
    blocks = estate.companions(bucket, "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock", "bucket")
    if not blocks:
        yield "nothing blocks public access"
    for block in blocks:
        for switch in ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"):
            if block.at(switch) is not True:
                yield f"`{switch}` is {block.at(switch)}, must be true"


@book.rule("bucket-encrypted", BUCKET, remedy="declare server-side encryption with aws:kms and a key of ours")
def bucket_encrypted(bucket: Declared, estate: Estate) -> Iterator[str]:
    """A bucket is encrypted with a key of ours.

    Whoever may read the bucket must also be allowed the key, so one policy that is too wide gives nothing away.
    """
    kind = "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"
    defaults = [
        at(rule, "applyServerSideEncryptionByDefault")
        for item in estate.companions(bucket, kind, "bucket")
        for rule in listed(item.at("rules"))
    ]
    if not any(at(default, "sseAlgorithm") == "aws:kms" and at(default, "kmsMasterKeyId") for default in defaults):
        yield "is not encrypted with a key of ours"


@book.rule("bucket-tls-only", BUCKET, remedy="deny every action where aws:SecureTransport is false, in its policy")
def bucket_tls_only(bucket: Declared, estate: Estate) -> Iterator[str]:
    """A bucket refuses unencrypted requests."""
    policies = estate.companions(bucket, "aws:s3/bucketPolicy:BucketPolicy", "bucket")
    if not any(_denies_plain_http(statement) for policy in policies for statement in statements(policy.at("policy"))):
        yield "answers over plain HTTP"


@book.rule("bucket-policy-closed", "aws:s3/bucketPolicy:BucketPolicy", remedy="name the principals that may")
def bucket_policy_closed(policy: Declared, _estate: Estate) -> Iterator[str]:
    """A bucket policy allows nothing to everybody."""
    for statement in statements(policy.at("policy")):
        if statement.get("Effect") == "Allow" and _is_anybody(statement.get("Principal")):
            yield f"allows {', '.join(map(str, listed(statement.get('Action'))))} to everybody"


@book.rule("bucket-without-acls", BUCKET, remedy="declare BucketOwnershipControls with BucketOwnerEnforced")
def bucket_without_acls(bucket: Declared, estate: Estate) -> Iterator[str]:
    """A bucket has no access control lists; policies alone decide."""
    found = estate.companions(bucket, "aws:s3/bucketOwnershipControls:BucketOwnershipControls", "bucket")
    if not any(item.at("rule", "objectOwnership") == "BucketOwnerEnforced" for item in found):
        yield "may have access control lists"


@book.rule(
    "bucket-lifecycle", BUCKET, remedy="declare a BucketLifecycleConfiguration that ends unfinished uploads and old versions"
)
def bucket_lifecycle(bucket: Declared, estate: Estate) -> Iterator[str]:
    """Unfinished uploads and old versions of a bucket end some day, and so does their bill."""
    kind = "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration"
    if not estate.companions(bucket, kind, "bucket"):
        yield "keeps unfinished uploads and old versions for ever"


@book.rule("bucket-replicated", BUCKET, remedy="declare a BucketReplicationConfig from it to the other region")
def bucket_replicated(bucket: Declared, estate: Estate) -> Iterator[str]:
    """Where there are several regions, a bucket is copied to another one.

    Weights, usage and state must be there when a region is lost.
    """
    if estate.is_multi_region and not estate.companions(bucket, REPLICATION, "bucket"):
        yield "exists in one region only"


@book.rule("replication-kept-in-time", REPLICATION, remedy="set replicationTime and metrics, both Enabled with 15 minutes")
def replication_kept_in_time(replication: Declared, _estate: Estate) -> Iterator[str]:
    """Replication has a time target and is measured.

    S3 takes the two together only; without them nobody knows how much a lost region takes along.
    """
    for rule in listed(replication.at("rules")):
        if at(rule, "status") != "Enabled":
            yield f"rule {at(rule, 'id')} is {at(rule, 'status')}"
        for part, minutes in (("replicationTime", ("time", "minutes")), ("metrics", ("eventThreshold", "minutes"))):
            if at(rule, "destination", part, "status") != "Enabled" or at(rule, "destination", part, *minutes) != RTC_MINUTES:
                yield f"rule {at(rule, 'id')}: `destination.{part}` is not Enabled at {RTC_MINUTES} minutes"


@book.rule("replication-keeps-deleted", REPLICATION, remedy="set deleteMarkerReplication to Disabled")
def replication_keeps_deleted(replication: Declared, _estate: Estate) -> Iterator[str]:
    """A deletion in one region does not reach the copy in another."""
    for rule in listed(replication.at("rules")):
        if at(rule, "deleteMarkerReplication", "status") != "Disabled":
            yield f"rule {at(rule, 'id')} replicates delete markers"


@book.rule(
    "object-lock-holds", "aws:s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration", remedy="set a default retention"
)
def object_lock_holds(lock: Declared, _estate: Estate) -> Iterator[str]:
    """A locked bucket has a default retention: a lock without one locks nothing."""
    retention = lock.at("rule", "defaultRetention")
    if not at(retention, "mode") or not (at(retention, "days") or at(retention, "years")):
        yield "locks nothing by default"


@book.rule("bucket-kept", BUCKET, remedy="leave forceDestroy out")
def bucket_kept(bucket: Declared, _estate: Estate) -> Iterator[str]:
    """A bucket that holds something cannot be destroyed along with it."""
    if bucket.at("forceDestroy"):
        yield "`forceDestroy` deletes everything in it without asking"


@book.rule("table-recoverable", TABLE, remedy="enable pointInTimeRecovery, on replicas too")
def table_recoverable(table: Declared, _estate: Estate) -> Iterator[str]:
    """A table and each of its replicas can be put back to any second of the last weeks."""
    if table.at("pointInTimeRecovery", "enabled") is not True:
        yield "cannot be put back to an earlier state"
    for replica in listed(table.at("replicas")):
        if at(replica, "pointInTimeRecovery") is not True:
            yield f"its replica in {at(replica, 'regionName')} cannot be put back to an earlier state"


@book.rule("table-encrypted", TABLE, remedy="enable serverSideEncryption with a key of ours")
def table_encrypted(table: Declared, _estate: Estate) -> Iterator[str]:
    """A table is encrypted with a key of ours."""
    if table.at("serverSideEncryption", "enabled") is not True or not table.at("serverSideEncryption", "kmsKeyArn"):
        yield "is not encrypted with a key of ours"


@book.rule("table-kept", TABLE, remedy="enable deletionProtectionEnabled, on replicas too")
def table_kept(table: Declared, _estate: Estate) -> Iterator[str]:
    """A table cannot be deleted in one step."""
    if table.at("deletionProtectionEnabled") is not True:
        yield "can be deleted in one step"


@book.rule("table-replicated", TABLE, remedy="add a replica in every other region of the environment")
def table_replicated(table: Declared, estate: Estate) -> Iterator[str]:
    """A table has a replica in every other region of its environment."""
    there = {at(replica, "regionName") for replica in listed(table.at("replicas"))}
    missing = len(estate.scope.regions) - 1 - len(there & set(estate.scope.regions))
    if missing > 0:
        yield f"lacks a replica in {missing} of {len(estate.scope.regions) - 1} other regions"


@book.rule("key-rotates", KEY, remedy="set enableKeyRotation")
def key_rotates(key: Declared, _estate: Estate) -> Iterator[str]:
    """A key is rotated by AWS each year."""
    if key.at("enableKeyRotation") is not True:
        yield "is never rotated"


@book.rule("key-deletion-takes-time", KEY, "aws:kms/replicaKey:ReplicaKey", remedy="set deletionWindowInDays to 30")
def key_deletion_takes_time(key: Declared, estate: Estate) -> Iterator[str]:
    """A key's deletion can be called off for longer than the least that AWS allows: all it encrypted goes with it."""
    days = key.at("deletionWindowInDays")
    if days is not None and days <= MIN_KEY_WINDOW_DAYS and not estate.scope.is_on_this_machine:
        yield f"is gone {days} days after a deletion"


@book.rule("key-policy-closed", KEY, "aws:kms/replicaKey:ReplicaKey", remedy="name the principals that may")
def key_policy_closed(key: Declared, _estate: Estate) -> Iterator[str]:
    """A key's policy allows nothing to everybody, unless a condition narrows it."""
    for statement in statements(key.at("policy")):
        if statement.get("Effect") == "Allow" and _is_anybody(statement.get("Principal")) and not statement.get("Condition"):
            yield "anybody may use it"


@book.rule("images-unchangeable", REPOSITORY, remedy="set imageTagMutability to IMMUTABLE")
def images_unchangeable(repository: Declared, _estate: Estate) -> Iterator[str]:
    """A pushed image cannot be replaced under its tag."""
    if repository.at("imageTagMutability") != "IMMUTABLE":
        yield "tags can be moved"


@book.rule("images-scanned", REPOSITORY, remedy="set imageScanningConfiguration.scanOnPush")
def images_scanned(repository: Declared, estate: Estate) -> Iterator[str]:
    """Images are scanned for known weaknesses when they are pushed, by the repository or by the registry."""
    if repository.at("imageScanningConfiguration", "scanOnPush") is True:
        return
    kind = "aws:ecr/registryScanningConfiguration:RegistryScanningConfiguration"
    if not any(scanning.provider == repository.provider for scanning in estate.of_type(kind)):
        yield "images are not scanned in its region"


@book.rule("images-encrypted", REPOSITORY, remedy="set encryptionConfigurations to KMS with a key of ours")
def images_encrypted(repository: Declared, _estate: Estate) -> Iterator[str]:
    """Images are encrypted with a key of ours."""
    if not any(
        at(item, "encryptionType") == "KMS" and at(item, "kmsKey") for item in listed(repository.at("encryptionConfigurations"))
    ):
        yield "images are not encrypted with a key of ours"


@book.rule("secret-encrypted", "aws:secretsmanager/secret:Secret", remedy="set kmsKeyId, and the replicas' too")
def secret_encrypted(secret: Declared, _estate: Estate) -> Iterator[str]:
    """A secret and its replicas are encrypted with a key of ours."""
    if not secret.at("kmsKeyId"):
        yield "is encrypted with AWS's own key"
    for replica in listed(secret.at("replicas")):
        if not at(replica, "kmsKeyId"):
            yield f"its replica in {at(replica, 'region')} is encrypted with AWS's own key"


@book.rule("cache-encrypted", CACHE, remedy="enable atRestEncryptionEnabled and transitEncryptionEnabled")
def cache_encrypted(cache: Declared, estate: Estate) -> Iterator[str]:
    """A cache is encrypted at rest and on the way."""
    for switch in ("atRestEncryptionEnabled", "transitEncryptionEnabled"):
        if cache.at(switch) is not True and not estate.scope.is_on_this_machine:
            yield f"`{switch}` is {cache.at(switch)}, must be true"


@book.rule("cache-survives-a-zone", CACHE, remedy="give it replicas, multiAzEnabled and automaticFailoverEnabled")
def cache_survives_a_zone(cache: Declared, estate: Estate) -> Iterator[str]:
    """Where regions are held to be lost, a cache survives the loss of a zone.

    Limits are counted in it; without it each gateway falls back to a share of its own.
    """
    if estate.is_multi_region and not estate.scope.is_on_this_machine:
        for switch in ("multiAzEnabled", "automaticFailoverEnabled"):
            if cache.at(switch) is not True:
                yield f"`{switch}` is {cache.at(switch)}, must be true"


def _denies_plain_http(statement: Any) -> bool:
    secure = at(statement, "Condition", "Bool", "aws:SecureTransport")
    return at(statement, "Effect") == "Deny" and str(secure).lower() == "false" and _is_anybody(at(statement, "Principal"))


def _is_anybody(principal: Any) -> bool:
    return principal == "*" or "*" in listed(at(principal, "AWS"))
