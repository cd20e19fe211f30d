"""The registry, restored by DynamoDB from a point in time into a new table, and compared with the live one.

DynamoDB keeps every change of 35 days; a restore is a new table of one region, which never touches the live one. Proof: the
restored table says the same as the live one, item by item, where the newest point is asked for; and it is whole in itself at any
point: every alias names releases that are registered, with weights that add up, and each of these lies in the artifact bucket
under a manifest with the release's digest. What differs is named; which of the two is right, people decide.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import ClientError

from infra.drills.figures import Part
from serving.errors import UserError
from serving.models.manifest import release_prefix
from serving.models.registry import ALIAS_KEY, FULL_WEIGHT, RELEASE_KEY_PREFIX

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

POLL_S, LIMIT_S = 1.0, 3600.0
"""AWS restores a table in minutes to an hour, whatever its size: DynamoDB guide, "Point-in-time recovery"."""
NUM_NAMED = 5
MODEL = "model#"
Items = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Registry:
    """One region's replica of the registry's table and of the artifacts that it names."""

    dynamodb: DynamoDBClient
    s3: S3Client
    table: str
    artifact_bucket: str


def restore_registry(registry: Registry, table: str, at: datetime | None, *, dry_run: bool, limit_s: float = LIMIT_S) -> Part:
    """Restores as of `at` (None: the newest point) into `table` and compares; `dry_run` says whether it could, and reads alone.

    Raises:
        UserError: the table keeps no points in time, `at` is not one of them, `table` is there already, or AWS took too long.
        botocore.exceptions.BotoCoreError, ClientError: AWS did not answer.
    """
    part, began_s = Part("registry"), time.monotonic()
    oldest, newest = _points(registry, at)
    part.show("can be restored from", "oldest_point", _when(oldest))
    part.show("to", "newest_point", _when(newest))
    live = _items(registry, registry.table)
    if not dry_run:
        _restore(registry, table, at, limit_s)
    restored = live if dry_run else _items(registry, table)
    part.show("items of the live registry", "num_live_items", len(live))
    part.show("items restored", "num_items", len(restored), len(restored) > 0)
    _compare(part, live, restored, is_newest=at is None)
    faults = faults_of(restored) + _artifact_faults(registry, restored)
    part.show("aliases and releases that do not fit each other or the artifacts (0)", "num_faults", len(faults), not faults)
    part.show("  such as", "faults", faults[:NUM_NAMED])
    part.show("restored and read, s", "took_s", round(time.monotonic() - began_s, 2))
    return part


def faults_of(items: Items) -> list[str]:
    """What does not fit in a registry by itself.

    >>> faults_of({"model#small alias": {"releases": [{"release_id": "a", "weight": 100}]}})
    ['small: its alias names a, which is not registered']
    """
    faults = []
    for key, item in items.items():
        partition, _, sort = key.partition(" ")
        if not partition.startswith(MODEL) or sort != ALIAS_KEY:
            continue
        model = partition.removeprefix(MODEL)
        weights = [int(release["weight"]) for release in item.get("releases", ())]
        if sum(weights) != FULL_WEIGHT:
            faults.append(f"{model}: its alias's weights add up to {sum(weights)}, must be {FULL_WEIGHT}")
        faults += [
            f"{model}: its alias names {release['release_id'][:12]}, which is not registered"
            for release in item.get("releases", ())
            if f"{partition} {RELEASE_KEY_PREFIX}{release['release_id']}" not in items
        ]
    return faults


def _artifact_faults(registry: Registry, items: Items) -> list[str]:
    faults = []
    for key, item in items.items():
        partition, _, sort = key.partition(" ")
        if not partition.startswith(MODEL) or sort != ALIAS_KEY:
            continue
        for release in item.get("releases", ()):
            model, release_id = partition.removeprefix(MODEL), release["release_id"]
            manifest = f"{release_prefix(model, release_id)}manifest.json"
            try:
                body = registry.s3.get_object(Bucket=registry.artifact_bucket, Key=manifest)["Body"].read()
            except registry.s3.exceptions.NoSuchKey:
                faults.append(f"{model}: {manifest} is not in {registry.artifact_bucket}")
                continue
            if hashlib.sha256(body).hexdigest() != release_id:
                faults.append(f"{model}: {manifest} is not the manifest of that release")
    return faults


def _compare(part: Part, live: Items, restored: Items, *, is_newest: bool) -> None:
    """At the newest point all must be the same, less what was written meanwhile, which shows as newer in the live table."""
    missing, gone = sorted(live.keys() - restored.keys()), sorted(restored.keys() - live.keys())
    changed = sorted(key for key in live.keys() & restored.keys() if live[key] != restored[key])
    for what, name, keys in (
        ("only in the live one", "only_live", missing),
        ("only in the restored one", "only_restored", gone),
        ("in both, and different", "different", changed),
    ):
        part.show(f"items {what}{' (0)' if is_newest else ''}", f"num_{name}", len(keys), not keys if is_newest else None)
        part.show("  such as", name, keys[:NUM_NAMED])


def _points(registry: Registry, at: datetime | None) -> tuple[datetime | None, datetime | None]:
    found = registry.dynamodb.describe_continuous_backups(TableName=registry.table)["ContinuousBackupsDescription"]
    kept: Any = found.get("PointInTimeRecoveryDescription", {})
    if kept.get("PointInTimeRecoveryStatus") != "ENABLED":
        raise UserError(
            f"table {registry.table} keeps no points in time in this region",
            "its home region does: leave --region out; if that is it, deploy the foundation, which switches them on",
        )
    oldest, newest = kept.get("EarliestRestorableDateTime"), kept.get("LatestRestorableDateTime")
    if at is not None and ((oldest and at < oldest) or (newest and at > newest)):
        raise UserError(f"{_when(at)} cannot be restored", f"name a time from {_when(oldest)} to {_when(newest)}")
    return oldest, newest


def _restore(registry: Registry, table: str, at: datetime | None, limit_s: float) -> None:
    point: Any = {"UseLatestRestorableTime": True} if at is None else {"RestoreDateTime": at}
    try:
        registry.dynamodb.restore_table_to_point_in_time(SourceTableName=registry.table, TargetTableName=table, **point)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("TableAlreadyExistsException", "TableInUseException"):
            raise UserError(f"table {table} is there already", "name another with --to TABLE") from error
        raise
    ends_s = time.monotonic() + limit_s
    while registry.dynamodb.describe_table(TableName=table)["Table"]["TableStatus"] != "ACTIVE":
        if time.monotonic() > ends_s:
            raise UserError(f"table {table} is not restored after {limit_s:.0f} s", "AWS goes on; look at it there")
        time.sleep(POLL_S)


def _items(registry: Registry, table: str) -> dict[str, dict[str, Any]]:
    """Plain items by `pk sk`, less what replication adds to them."""
    plain = TypeDeserializer().deserialize
    pages = registry.dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
    found = [{name: plain(value) for name, value in item.items()} for page in pages for item in page["Items"]]
    return {
        f"{item['pk']} {item['sk']}": {name: value for name, value in item.items() if not name.startswith("aws:rep:")}
        for item in found
    }


def _when(time_: datetime | None) -> str:
    return time_.isoformat(timespec="seconds") if time_ else "not told"
