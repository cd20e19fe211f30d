"""The archive: every sealed segment once, under a key that its bytes decide, never overwritten.

    usage/v1/<region>/<YYYY-MM-DD>/<HH>/<source>-<epoch>-<seq>.seg

Day and hour (UTC) are those of the latest time in the segment, so an hour of usage lies under its own prefix and the next.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from serving.metering.framing import Segment, last_time_ms
from serving.metering.segments import SEALED, SegmentName

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PREFIX = "usage/v1/"


class Stored(StrEnum):
    """What a put found."""

    WRITTEN = "written"
    PRESENT = "present"
    """The same bytes were there."""
    CONFLICT = "conflict"
    """Other bytes were there, and still are."""


def archive_key(region: str, name: SegmentName, segment: Segment) -> str:
    """`usage/v1/us-east-2/2025-11-22/23/gateway-0-0-1763852400000-000007.seg`; the same for the same bytes, whoever asks."""
    time = datetime.fromtimestamp(last_time_ms(segment.header, segment.records) // 1000, UTC)
    return f"{PREFIX}{region}/{time:%Y-%m-%d/%H}/{name.stem}{SEALED}"


def put_segment(client: S3Client, bucket: str, key: str, data: bytes, segment: Segment) -> Stored:
    """Store `data` unless the key is taken; then say whether what is there is the same.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the archive did not take it; putting it again is safe.
    """
    digest = hashlib.sha256(data).hexdigest()
    try:
        client.put_object(
            Bucket=bucket,
            Key=key,
            Body=data,
            IfNoneMatch="*",
            ContentType="application/vnd.flotilla.usage",
            Metadata={"sha256": digest, "records": str(len(segment.records)), "closes": str(len(segment.closes))},
        )
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
            raise
        present = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return Stored.PRESENT if hashlib.sha256(present).hexdigest() == digest else Stored.CONFLICT
    return Stored.WRITTEN


def missing_keys(client: S3Client, bucket: str, keys: Iterable[str]) -> set[str]:
    """Those of `keys` that the archive does not have, at one listing per hour and writer.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the archive did not answer, or the bucket is gone.
    """
    by_prefix: defaultdict[str, set[str]] = defaultdict(set)
    for key in keys:
        by_prefix[key.rsplit("-", 2)[0] + "-"].add(key)
    missing: set[str] = set()
    for prefix, wanted in by_prefix.items():
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            wanted -= {item["Key"] for item in page.get("Contents", [])}
        missing |= wanted
    return missing
