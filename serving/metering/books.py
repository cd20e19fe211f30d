"""The books: the ledger's table and the archive that proves it, as one handle for what audits, rebuilds and closes them.

The archive holds, beside the segments (`archive.py`), what is decided about them later and cannot be derived:

    usage/v1/<region>/…                     segments, as shippers wrote them
    usage/v1/revisions/<tenant>/<n>.seg     revisions of prices, in the order in which they were made (`rerating.py`)
    seals/v1/<tenant>/<day>/<n>.seal        what a day consisted of when it was sealed (`seals.py`)
    invoices/v1/<tenant>/<n>.json           invoices that were issued (`invoicing.py`)
    exports/v1/<sink>/<tenant>/<day>/…      which seals were exported (`exporting.py`)

All of it is written by conditional put and never again; in deployed environments the bucket is locked against deletion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from serving.errors import UserError
from serving.metering.archive import PREFIX
from serving.metering.framing import Segment, SegmentError, decode_segment
from serving.target import Target

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

REVISIONS = f"{PREFIX}revisions/"
_NUM_READERS = 8
_HOUR = re.compile(r"(?P<region>[a-z0-9-]+)/(?P<day>\d{4}-\d\d-\d\d)/(?P<hour>\d\d)/")


class UnreadableSegment(UserError):
    """A segment of the archive is damaged: nothing that is summed without it would be right."""


@dataclass(frozen=True)
class Books:
    """Calls block. One region's replicas of table and bucket; writers are given those of the home region."""

    s3: S3Client
    dynamodb: DynamoDBClient
    bucket: str
    table: str

    @classmethod
    def of(cls, target: Target, region: str | None = None) -> Books:
        """The books of `target`, as `region` (the home region if none is named) has them.

        Raises:
            UserError: that region is not up, or does not say where its archive is.
        """
        name, chosen = target.region(region)
        if not chosen.archive_bucket:
            raise UserError(f"region {name} does not say where its archive is", "run `flotilla up` again: it writes it down")
        return cls(
            target.aws_client("s3", name), target.aws_client("dynamodb", name), chosen.archive_bucket, chosen.tables["ledger"]
        )

    def keys(self, prefix: str) -> list[str]:
        """The archive's keys under `prefix`, sorted."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        """The object at `key`."""
        return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def put_once(self, key: str, data: bytes) -> bool:
        """Store `data` under `key` unless something is there; whether it was stored."""
        try:
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                raise
            return False
        return True

    def segments(self, *, from_day: str = "", region: str = "", hour: str = "") -> Iterator[tuple[str, Segment]]:
        """Key and content of every archived segment, revisions last: of one region or all, from a UTC day on or of one hour.

        An event's CLOSE lies in the hour in which it ended or later, so `from_day` leaves out nothing that was opened since.
        `hour` is `2026-11-24T09`; it and `region` leave revisions out, which are neither's.

        Raises:
            UnreadableSegment: one cannot be read.
        """
        wanted = [key for key in self.keys(f"{PREFIX}{region}/" if region else PREFIX) if _is_wanted(key, from_day, hour)]
        if not (region or hour):
            wanted += self.keys(REVISIONS)
        with ThreadPoolExecutor(_NUM_READERS, "archive") as pool:
            for start in range(0, len(wanted), 4 * _NUM_READERS):  # so that a year of segments is never in memory at once
                keys = wanted[start : start + 4 * _NUM_READERS]
                for key, data in zip(keys, pool.map(self.get, keys), strict=True):
                    yield key, _decode(key, data)


def _is_wanted(key: str, from_day: str, hour: str) -> bool:
    match = _HOUR.match(key, len(PREFIX))
    if match is None:
        return False
    return f"{match['day']}T{match['hour']}" == hour if hour else match["day"] >= from_day


def _decode(key: str, data: bytes) -> Segment:
    try:
        segment = decode_segment(data)
    except SegmentError as error:
        raise UnreadableSegment(f"{key}: {error}", "restore it from another region's replica of the archive") from error
    if segment.is_torn:
        raise UnreadableSegment(
            f"{key}: damaged after byte {segment.whole_bytes} of {segment.size_bytes}",
            "restore it from another region's replica of the archive",
        )
    return segment
