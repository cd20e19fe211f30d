"""The small documents of a release, read from a bucket and checked: its manifest and its canaries."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from serving.models.files import ReleaseFileError, check_release_path
from serving.models.manifest import MANIFEST_NAME, Canaries, Manifest, release_prefix

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
"""No manifest or set of canaries is larger; bounds what a wrong object can cost."""


class FetchError(Exception):
    """The release cannot be had, or is not what its name says; the message names the object or folder."""


def fetch_manifest(client: S3Client, bucket: str, model: str, release_id: str) -> Manifest:
    """The manifest of a release, checked against its name.

    Raises:
        FetchError: it is not in the bucket, or not the one that was named, or names files that no release may hold.
    """
    key = release_prefix(model, release_id) + MANIFEST_NAME
    return parse_manifest(fetch_document(client, bucket, key), model, release_id, f"s3://{bucket}/{key}")


def parse_manifest(document: bytes, model: str, release_id: str, where: str) -> Manifest:
    """The manifest in `document`, which was found at `where`.

    Raises:
        FetchError: it is not the one that was named, or names files that no release may hold.
    """
    found = hashlib.sha256(document).hexdigest()
    if found != release_id:
        raise FetchError(f"{where}: its digest is {found[:12]}…, the release is {release_id[:12]}…")
    try:
        manifest = msgspec.json.decode(document, type=Manifest)
        for file in manifest.files:
            check_release_path(file.path)
    except (msgspec.MsgspecError, ReleaseFileError) as error:
        raise FetchError(f"{where}: {error}") from error
    if manifest.model != model:
        raise FetchError(f"{where}: is a manifest for {manifest.model}, must be for {model}")
    if len({file.path for file in manifest.files}) != len(manifest.files) or any(file.size_bytes < 0 for file in manifest.files):
        raise FetchError(f"{where}: names a file twice or a negative size")
    return manifest


def fetch_canaries(client: S3Client, bucket: str, model: str, release_id: str) -> dict[str, Canaries]:
    """Every set of canaries that lies beside the release, by key.

    Raises:
        FetchError: there are none, or one is not readable.
    """
    prefix = f"{release_prefix(model, release_id)}canaries/"
    try:
        listed = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    except (ClientError, BotoCoreError) as error:
        raise FetchError(f"s3://{bucket}/{prefix}: {reason(error)}") from error
    documents = [fetch_document(client, bucket, item["Key"]) for item in listed if item["Key"].endswith(".json")]
    try:
        sets = [msgspec.json.decode(document, type=Canaries) for document in documents]
    except msgspec.MsgspecError as error:
        raise FetchError(f"s3://{bucket}/{prefix}: not canaries: {error}") from error
    if not any(canaries.prompts for canaries in sets):
        raise FetchError(f"s3://{bucket}/{prefix} holds no canary prompts; publish the release again")
    return {canaries.key: canaries for canaries in sets}


def fetch_document(client: S3Client, bucket: str, key: str) -> bytes:
    """A small object.

    Raises:
        FetchError: it is not there, cannot be read, or is not small.
    """
    try:
        body = client.get_object(Bucket=bucket, Key=key)["Body"]
        document = body.read(MAX_DOCUMENT_BYTES + 1)
    except (ClientError, BotoCoreError) as error:
        raise FetchError(f"s3://{bucket}/{key}: {reason(error)}") from error
    if len(document) > MAX_DOCUMENT_BYTES:
        raise FetchError(f"s3://{bucket}/{key}: larger than {MAX_DOCUMENT_BYTES} bytes")
    return document


def reason(error: ClientError | BotoCoreError) -> str:
    """Why a call to AWS failed, in a few words."""
    if isinstance(error, ClientError):
        code = error.response["Error"]["Code"]
        return {"NoSuchKey": "not there (yet)", "404": "not there (yet)", "NoSuchBucket": "no such bucket"}.get(code, code)
    return str(error)
