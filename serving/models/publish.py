"""Makes a release of a conversion and lets engines find it.

Order, and why: files first, each skipped if it is there already; then they are read back and hashed; then canaries; then the
manifest, so a manifest in a bucket says that all it names was there and right. Then every region that the bucket replicates
to is waited for and read back too. Only then does the registry name the release. Whatever is interrupted, the same command run
again finishes it.

Equal content has an equal `release_id`: publishing it again sends nothing and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from serving.errors import UserError
from serving.models.conversions import converted
from serving.models.convert import CANARIES_NAME, CONVERSION_NAME, FILES_NAME, Conversion
from serving.models.documents import FetchError, fetch_document, parse_manifest, reason
from serving.models.files import Progress, ReleaseFileError, describe_folder
from serving.models.manifest import MANIFEST_NAME, Canaries, Manifest, ReleaseFile, canaries_key, release_prefix
from serving.models.registry import (
    Alias,
    AliasNotFoundError,
    ReleaseRecord,
    WeightedRelease,
    list_releases,
    register_release,
    resolve,
    set_alias,
)
from serving.models.upload import missing_files, upload_files, wrong_files
from serving.target import LOCAL, Target

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REPLICA_TIMEOUT_S = 1200.0
"""S3 Replication Time Control replicates 99.99 % of objects within 15 minutes.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/replication-time-control.html"""
LOCAL_REPLICA_TIMEOUT_S = 60.0
REPLICA_POLL_S = 0.25

Report = Callable[[Progress], None]


class PublishError(UserError):
    """The release cannot be published; what was uploaded stays and is not sent again."""


class ReleaseRef(msgspec.Struct, frozen=True):
    """A published release, and what publishing it took this time."""

    model_class: str
    release_id: str
    alias_revision: int
    size_bytes: int
    uploaded_bytes: int
    """0 when everything was there already."""
    is_new: bool
    """It was not registered before."""
    regions: tuple[str, ...]
    """Where it is in the bucket, the region it was sent to first."""


def ensure_published(
    target: Target, region: str, model_class: str, *, source: str = "smollm2", on_progress: Report = lambda _: None
) -> ReleaseRef:
    """Converts `source` if that has not been done, publishes it to `region` as `model_class`, and registers it.

    Raises:
        UserError: the engine's environment is absent, a region is not up or does not answer, or another publisher was faster.
    """
    return publish(target, region, model_class, converted(source, on_progress), on_progress=on_progress)


def publish(
    target: Target, region: str, model_class: str, conversion: Path, *, on_progress: Report = lambda _: None
) -> ReleaseRef:
    """Publishes the finished conversion in `conversion` to `region` as `model_class`, and registers it.

    Raises:
        UserError: a region is not up or does not answer, a replica did not arrive, or another publisher was faster.
    """
    _, home = target.region(region)
    try:
        manifest, canaries = _described(conversion, model_class)
        registered = list_releases(target.aws_client("dynamodb", target.home_region), home.tables["registry"], model_class)
        is_new = all(record.release_id != manifest.release_id for record in registered)
        s3 = target.aws_client("s3", region)
        uploaded_bytes = _upload(s3, home.artifact_bucket, manifest, canaries, conversion / FILES_NAME, on_progress)
        timeout_s = LOCAL_REPLICA_TIMEOUT_S if target.environment == LOCAL else REPLICA_TIMEOUT_S
        replicas = _replica_regions(target, region, s3)
        for replica in replicas:
            bucket = target.regions[replica].artifact_bucket
            replica_s3 = target.aws_client("s3", replica)
            _await_replica(replica_s3, bucket, manifest, replica, is_new, timeout_s, on_progress)
        alias = _register(target, home.tables["registry"], manifest)
    except (ClientError, BotoCoreError) as error:
        raise PublishError(
            f"publishing {model_class} to {region}: {reason(error)}", "publish again: what arrived is kept"
        ) from error
    except (FetchError, ReleaseFileError) as error:
        raise PublishError(f"publishing {model_class} to {region}: {error}") from error
    size_bytes = sum(file.size_bytes for file in manifest.files)
    return ReleaseRef(model_class, manifest.release_id, alias.revision, size_bytes, uploaded_bytes, is_new, (region, *replicas))


def _described(conversion: Path, model_class: str) -> tuple[Manifest, Canaries]:
    try:
        made = msgspec.json.decode((conversion / CONVERSION_NAME).read_bytes(), type=Conversion)
        canaries = msgspec.json.decode((conversion / CANARIES_NAME).read_bytes(), type=Canaries)
    except (OSError, msgspec.MsgspecError) as error:
        raise PublishError(
            f"{conversion} is not a finished conversion: {error}", "remove the folder and publish again"
        ) from error
    files = describe_folder(conversion / FILES_NAME)
    manifest = Manifest(model_class, made.model_name, made.source, made.context_window_tokens, made.engine_args, files)
    return manifest, canaries


def _upload(s3: S3Client, bucket: str, manifest: Manifest, canaries: Canaries, folder: Path, on_progress: Report) -> int:
    """Bytes of files that had to be sent. When it returns, the manifest is in the bucket and true."""
    prefix = release_prefix(manifest.model, manifest.release_id)
    missing = missing_files(s3, bucket, prefix, manifest.files)
    upload_files(s3, bucket, prefix, folder, missing, on_progress)
    has_manifest = _has(s3, bucket, prefix + MANIFEST_NAME, manifest.encode())
    unverified = missing if has_manifest else manifest.files
    _check(wrong_files(s3, bucket, prefix, unverified, on_progress), bucket, prefix)
    _ensure_document(s3, bucket, canaries_key(manifest.model, manifest.release_id, canaries.key), msgspec.json.encode(canaries))
    _ensure_document(s3, bucket, prefix + MANIFEST_NAME, manifest.encode())
    return sum(file.size_bytes for file in missing)


def _has(s3: S3Client, bucket: str, key: str, document: bytes) -> bool:
    try:
        return fetch_document(s3, bucket, key) == document
    except FetchError as error:
        if isinstance(error.__cause__, ClientError) and error.__cause__.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return False
        raise


def _ensure_document(s3: S3Client, bucket: str, key: str, document: bytes) -> None:
    if not _has(s3, bucket, key, document):
        s3.put_object(Bucket=bucket, Key=key, Body=document, ContentType="application/json")


def _check(wrong: Sequence[ReleaseFile], bucket: str, prefix: str) -> None:
    if wrong:
        names = ", ".join(f"{prefix}{file.path}" for file in wrong)
        raise PublishError(f"s3://{bucket}: not the bytes that were sent: {names}", "remove these objects and publish again")


def _replica_regions(target: Target, region: str, s3: S3Client) -> tuple[str, ...]:
    """The target's other regions whose artifact bucket the one of `region` replicates to."""
    try:
        configuration = s3.get_bucket_replication(Bucket=target.regions[region].artifact_bucket)["ReplicationConfiguration"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ReplicationConfigurationNotFoundError":
            return ()
        raise
    buckets = {rule["Destination"]["Bucket"].rpartition(":")[2] for rule in configuration["Rules"] if rule["Status"] == "Enabled"}
    return tuple(name for name, other in target.regions.items() if name != region and other.artifact_bucket in buckets)


def _await_replica(
    s3: S3Client, bucket: str, manifest: Manifest, region: str, is_new: bool, timeout_s: float, on_progress: Report
) -> None:
    """Returns once the replica is whole. It is read back if the release `is_new` to the registry; one that is registered was."""
    prefix = release_prefix(manifest.model, manifest.release_id)
    deadline = time.monotonic() + timeout_s
    num_files = len(manifest.files) + 1
    while True:
        num_missing = len(missing_files(s3, bucket, prefix, manifest.files))
        num_missing += not _has(s3, bucket, prefix + MANIFEST_NAME, manifest.encode())
        on_progress(Progress("replicate", num_files - num_missing, num_files, "steps", region))
        if not num_missing:
            break
        if time.monotonic() > deadline:
            raise PublishError(
                f"{num_missing} of {num_files} objects of the release did not reach {region} within {timeout_s:.0f} s",
                f"S3 does not copy what was put before replication was set up: `flotilla release publish --region {region}`",
            )
        time.sleep(REPLICA_POLL_S)
    if is_new:
        _check(wrong_files(s3, bucket, prefix, manifest.files, on_progress), bucket, prefix)
    parse_manifest(
        fetch_document(s3, bucket, prefix + MANIFEST_NAME), manifest.model, manifest.release_id, f"s3://{bucket}/{prefix}"
    )


def _register(target: Target, table: str, manifest: Manifest) -> Alias:
    """The alias, which names the release now."""
    dynamodb = target.aws_client("dynamodb", target.home_region)
    now_ms = time.time_ns() // 1_000_000
    record = ReleaseRecord(
        model_class=manifest.model,
        release_id=manifest.release_id,
        model_name=manifest.model_name,
        created_at_ms=now_ms,
        size_bytes=sum(file.size_bytes for file in manifest.files),
        num_files=len(manifest.files),
        source=manifest.source,
        context_window_tokens=manifest.context_window_tokens,
    )
    register_release(dynamodb, table, record)
    wanted = (WeightedRelease(manifest.release_id),)
    try:
        current = resolve(dynamodb, table, manifest.model)
    except AliasNotFoundError:
        return set_alias(dynamodb, table, manifest.model, wanted, expected_revision=None, now_ms=now_ms)
    if current.releases == wanted:
        return current
    return set_alias(dynamodb, table, manifest.model, wanted, expected_revision=current.revision, now_ms=now_ms)
