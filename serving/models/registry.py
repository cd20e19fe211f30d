"""The registry: which releases a model class has, and which of them its name stands for now.

Writes go to the home region alone: in a global table two regions can each accept a conditional put of the same item. Reads may
use any replica. A writer says which revision of the alias it has seen; if another was faster, nothing is written and it is told.

    pk model#<class>   sk alias                  releases [{release_id, weight}], revision, updated_at_ms
    pk model#<class>   sk release#<release_id>   model_name, created_at_ms, size_bytes, num_files, source, context_window_tokens
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import ClientError

from serving.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ALIAS_KEY = "alias"
RELEASE_KEY_PREFIX = "release#"
FULL_WEIGHT = 100


class WeightedRelease(msgspec.Struct, frozen=True):
    """A release and its share of the alias's traffic; the weights of an alias add up to 100."""

    release_id: str
    weight: int = FULL_WEIGHT


class Alias(msgspec.Struct, frozen=True):
    """What the name of a model class stands for."""

    model_class: str
    releases: tuple[WeightedRelease, ...]
    revision: int
    updated_at_ms: int


class ReleaseRecord(msgspec.Struct, frozen=True):
    """A registered release: what people ask about it without reading its manifest."""

    model_class: str
    release_id: str
    model_name: str
    created_at_ms: int
    size_bytes: int
    num_files: int
    source: str
    context_window_tokens: int


class AliasNotFoundError(UserError):
    """The registry names no release for a model class yet."""


class AliasConflictError(UserError):
    """Another writer changed the alias since it was read; nothing was written."""


def register_release(client: DynamoDBClient, table: str, record: ReleaseRecord) -> bool:
    """Adds a release; False if it was registered already, in which case the first registration stays as it is."""
    item = msgspec.structs.asdict(record)
    model_class, release_id = item.pop("model_class"), item.pop("release_id")
    try:
        client.put_item(
            TableName=table,
            Item=_encoded({"pk": _partition(model_class), "sk": RELEASE_KEY_PREFIX + release_id, **item}),
            ConditionExpression="attribute_not_exists(pk)",
        )
    except ClientError as error:
        if _is_condition(error):
            return False
        raise
    return True


def set_alias(
    client: DynamoDBClient,
    table: str,
    model_class: str,
    releases: tuple[WeightedRelease, ...],
    *,
    expected_revision: int | None,
    now_ms: int,
) -> Alias:
    """Points the name at `releases`, if its revision is still `expected_revision` (None: if there is none yet).

    Raises:
        AliasConflictError: another writer was faster.
        ValueError: the weights do not add up to 100.
    """
    total = sum(release.weight for release in releases)
    if total != FULL_WEIGHT:
        raise ValueError(f"weights of {model_class} add up to {total}, must be {FULL_WEIGHT}")
    alias = Alias(model_class, releases, (expected_revision or 0) + 1, now_ms)
    condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(pk)"}
    if expected_revision is not None:
        seen = _encoded({":seen": expected_revision})
        condition = {"ConditionExpression": "revision = :seen", "ExpressionAttributeValues": seen}
    item = {
        "pk": _partition(model_class),
        "sk": ALIAS_KEY,
        "releases": [msgspec.structs.asdict(release) for release in releases],
        "revision": alias.revision,
        "updated_at_ms": now_ms,
    }
    try:
        client.put_item(TableName=table, Item=_encoded(item), **condition)
    except ClientError as error:
        if not _is_condition(error):
            raise
        raise AliasConflictError(
            f"{model_class} was pointed at another release meanwhile (revision {expected_revision or 0} is no longer the last)",
            "look with `flotilla release list`, then publish again",
        ) from error
    return alias


def resolve(client: DynamoDBClient, table: str, model_class: str) -> Alias:
    """What `model_class` stands for now, read consistently within the client's region.

    Raises:
        AliasNotFoundError: nothing has been published for it.
    """
    key = _encoded({"pk": _partition(model_class), "sk": ALIAS_KEY})
    answer = client.get_item(TableName=table, Key=key, ConsistentRead=True)
    if "Item" not in answer:
        hint = "publish one with `flotilla release publish`"
        raise AliasNotFoundError(f"the registry names no release for {model_class}", hint)
    item = _decoded(answer["Item"])
    releases = msgspec.convert(item["releases"], tuple[WeightedRelease, ...])
    return Alias(model_class, releases, item["revision"], item["updated_at_ms"])


def list_releases(client: DynamoDBClient, table: str, model_class: str) -> tuple[ReleaseRecord, ...]:
    """Every registered release of a class, the newest first."""
    pages = client.get_paginator("query").paginate(
        TableName=table,
        KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
        ExpressionAttributeValues=_encoded({":pk": _partition(model_class), ":prefix": RELEASE_KEY_PREFIX}),
    )
    records = []
    for page in pages:
        for encoded in page["Items"]:
            item = _decoded(encoded)
            release_id = item.pop("sk").removeprefix(RELEASE_KEY_PREFIX)
            records.append(msgspec.convert({**item, "model_class": model_class, "release_id": release_id}, ReleaseRecord))
    return tuple(sorted(records, key=lambda record: (-record.created_at_ms, record.release_id)))


def _partition(model_class: str) -> str:
    return f"model#{model_class}"


def _is_condition(error: ClientError) -> bool:
    return error.response["Error"]["Code"] == "ConditionalCheckFailedException"


def _encoded(item: dict[str, Any]) -> dict[str, Any]:
    serializer = TypeSerializer()
    return {name: serializer.serialize(value) for name, value in item.items()}


def _decoded(item: dict[str, Any]) -> dict[str, Any]:
    """Plain values; every number of this table is an integer."""
    deserializer = TypeDeserializer()

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        return value if isinstance(value, str | bool) or value is None else int(value)

    return {name: plain(deserializer.deserialize(value)) for name, value in item.items()}
