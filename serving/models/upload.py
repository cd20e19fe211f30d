"""Puts the files of a release into a bucket, and reads them back to prove it.

An object carries the SHA-256 of its file as metadata, because S3 keeps no whole-object SHA-256 of a multipart upload: an
object of the right size and digest is not sent again. Each request carries the SHA-256 of its body, which S3 checks on arrival.
"""

from __future__ import annotations

import base64
import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from serving.models.files import Progress
from serving.models.manifest import ReleaseFile
from serving.models.parallel import in_parallel

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 * 1024 * 1024
"""Files larger than this go in parts of this size. S3 wants 5 MiB or more, and at most 10,000 parts.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
MAX_PARTS = 10_000
CONCURRENCY = 8
"""Requests at once; each holds one part in memory."""
READ_CHUNK_BYTES = 1024 * 1024
DIGEST_METADATA = "sha256"


class _Counter:
    """Bytes so far, told to the caller from whichever thread they came."""

    def __init__(self, stage: str, total: int, detail: str, on_progress: Callable[[Progress], None]) -> None:
        self._stage, self._total, self._detail, self._on_progress = stage, total, detail, on_progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            self._on_progress(Progress(self._stage, self._done, self._total, detail=self._detail))


def missing_files(client: S3Client, bucket: str, prefix: str, files: Sequence[ReleaseFile]) -> list[ReleaseFile]:
    """Those of `files` that the bucket does not have at the right size and digest."""

    def is_missing(file: ReleaseFile) -> bool:
        try:
            head = client.head_object(Bucket=bucket, Key=prefix + file.path)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return True
            raise
        return (head["ContentLength"], head["Metadata"].get(DIGEST_METADATA)) != (file.size_bytes, file.sha256)

    verdicts = in_parallel(is_missing, files, CONCURRENCY)
    return [file for file, missing in zip(files, verdicts, strict=True) if missing]


def upload_files(
    client: S3Client,
    bucket: str,
    prefix: str,
    folder: Path,
    files: Sequence[ReleaseFile],
    on_progress: Callable[[Progress], None],
) -> None:
    """Sends `files` from `folder`, large ones in parts, parts and files alike in parallel.

    A multipart upload that fails is aborted; of one that was killed, the bucket's lifecycle rule removes the parts.
    """
    counter = _Counter("upload", sum(file.size_bytes for file in files), bucket, on_progress)
    small = [file for file in files if file.size_bytes <= PART_BYTES]
    in_parallel(lambda file: _put(client, bucket, prefix, folder, file, counter), small, CONCURRENCY)
    for file in files:
        if file.size_bytes > PART_BYTES:
            _put_in_parts(client, bucket, prefix, folder, file, counter)


def wrong_files(
    client: S3Client, bucket: str, prefix: str, files: Sequence[ReleaseFile], on_progress: Callable[[Progress], None]
) -> list[ReleaseFile]:
    """Those of `files` whose object, read back whole, is not the manifest's bytes."""
    counter = _Counter("verify", sum(file.size_bytes for file in files), bucket, on_progress)

    def is_wrong(file: ReleaseFile) -> bool:
        digest, size_bytes = hashlib.sha256(), 0
        for chunk in client.get_object(Bucket=bucket, Key=prefix + file.path)["Body"].iter_chunks(READ_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
            counter.add(len(chunk))
        return (size_bytes, digest.hexdigest()) != (file.size_bytes, file.sha256)

    verdicts = in_parallel(is_wrong, files, CONCURRENCY)
    return [file for file, wrong in zip(files, verdicts, strict=True) if wrong]


def _put(client: S3Client, bucket: str, prefix: str, folder: Path, file: ReleaseFile, counter: _Counter) -> None:
    body = (folder / file.path).read_bytes()
    client.put_object(
        Bucket=bucket, Key=prefix + file.path, Body=body, ChecksumSHA256=_checksum(body), Metadata={DIGEST_METADATA: file.sha256}
    )
    counter.add(len(body))


def _put_in_parts(client: S3Client, bucket: str, prefix: str, folder: Path, file: ReleaseFile, counter: _Counter) -> None:
    key = prefix + file.path
    part_bytes = max(PART_BYTES, math.ceil(file.size_bytes / MAX_PARTS))
    upload_id = client.create_multipart_upload(
        Bucket=bucket, Key=key, ChecksumAlgorithm="SHA256", Metadata={DIGEST_METADATA: file.sha256}
    )["UploadId"]

    def put_part(number: int) -> tuple[int, str, str]:
        with (folder / file.path).open("rb") as source:
            source.seek((number - 1) * part_bytes)
            body = source.read(part_bytes)
        checksum = _checksum(body)
        answer = client.upload_part(
            Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=body, ChecksumSHA256=checksum
        )
        counter.add(len(body))
        return number, answer["ETag"], checksum

    try:
        parts = in_parallel(put_part, range(1, math.ceil(file.size_bytes / part_bytes) + 1), CONCURRENCY)
        client.complete_multipart_upload(
            Bucket=bucket,
            Key=key,
            UploadId=upload_id,
            MultipartUpload={
                "Parts": [{"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum} for number, etag, checksum in parts]
            },
        )
    except BaseException:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
        raise


def _checksum(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()
