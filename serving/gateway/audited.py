"""A table whose every change is written with its entry in the audit, both or neither.

    pk audit#<day>     sk <ms>#<random> who changed what

Tenants, plans and what is out of service live in such a table; the records are structs, a field an attribute. Calls block.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

UNKNOWN = "unknown"

RecordT = TypeVar("RecordT", bound=msgspec.Struct)


class AuditEntry(msgspec.Struct, frozen=True):
    """A change that was made."""

    at_ms: int
    by: str
    """Who said so, as they said: the admin key does not tell people apart."""
    action: str
    subject: str
    """`tenant/acme`, `key/0123456789`, `plan/gold`"""
    detail: str = ""
    """What it is now, JSON."""


class AuditedTable:
    """The table as one region's client sees it."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self.client = client
        self.name = table

    def get(self, key: Mapping[str, Any], kind: type[RecordT]) -> RecordT | None:
        """The record at `key` as it is now; None where there is none."""
        item = self.client.get_item(TableName=self.name, Key=key, ConsistentRead=True).get("Item")
        return None if item is None else decode(item, kind)

    def query(self, kind: type[RecordT], pk: str, sk_prefix: str = "") -> list[RecordT]:
        """The records under `pk` as they are now, by sort key."""
        condition, values = "pk = :pk", {":pk": {"S": pk}}
        if sk_prefix:
            condition, values = f"{condition} AND begins_with(sk, :sk)", {**values, ":sk": {"S": sk_prefix}}
        pages = self.client.get_paginator("query").paginate(
            TableName=self.name, KeyConditionExpression=condition, ExpressionAttributeValues=values, ConsistentRead=True
        )
        return [decode(item, kind) for page in pages for item in page["Items"]]

    def scan(self, kind: type[RecordT], sk: str) -> list[RecordT]:
        """The records at the sort key `sk` of whatever partition."""
        pages = self.client.get_paginator("scan").paginate(
            TableName=self.name, FilterExpression="sk = :sk", ExpressionAttributeValues={":sk": {"S": sk}}
        )
        return [decode(item, kind) for page in pages for item in page["Items"]]

    def write(self, by: str, action: str, subject: str, detail: msgspec.Struct | str, *items: Any) -> None:
        """All of `items` and the audit's entry of them, or nothing.

        Raises:
            ClientError: a condition does not hold (`is_conditional`), or the table does not answer.
        """
        said = detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()
        entry = AuditEntry(now_ms(), by, action, subject, said)
        day = datetime.fromtimestamp(entry.at_ms // 1000, UTC)
        place = {"pk": {"S": f"audit#{day:%Y-%m-%d}"}, "sk": {"S": f"{entry.at_ms:013d}#{secrets.token_hex(4)}"}}
        self.client.transact_write_items(TransactItems=[*items, self.put_new({**place, **encode(entry)})])

    def put_new(self, item: Mapping[str, Any]) -> Any:
        """Write an item that is not there yet."""
        return {"Put": {"TableName": self.name, "Item": item, "ConditionExpression": "attribute_not_exists(pk)"}}

    def put_over(self, item: Mapping[str, Any], revision: int) -> Any:
        """Write an item over what was read at `revision`."""
        return {
            "Put": {
                "TableName": self.name,
                "Item": item,
                "ConditionExpression": "revision = :read",
                "ExpressionAttributeValues": {":read": {"N": str(revision)}},
            }
        }

    def audit(self, day: str) -> list[AuditEntry]:
        """What was changed on a UTC day such as `2026-11-24`, oldest first."""
        return self.query(AuditEntry, f"audit#{day}")


def encode(record: msgspec.Struct) -> dict[str, Any]:
    """The record's fields as DynamoDB attributes; a field that is None is left out."""
    item: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(record).items():
        match value:
            case None:
                continue
            case int():
                item[name] = {"N": str(value)}
            case str():
                item[name] = {"S": value}
            case _:
                item[name] = {"L": [{"S": member} for member in value]}
    return item


def decode(item: Mapping[str, Any], kind: type[RecordT]) -> RecordT:
    """The item's attributes as `kind`; other attributes are left alone, so that newer writers do not break older readers."""
    plain: dict[str, Any] = {}
    for name, attribute in item.items():
        if "S" in attribute:
            plain[name] = attribute["S"]
        elif "N" in attribute:
            plain[name] = int(attribute["N"])
        elif "L" in attribute:
            plain[name] = [member["S"] for member in attribute["L"]]
    return msgspec.convert(plain, kind)


def is_conditional(error: ClientError) -> bool:
    """A condition of the write did not hold."""
    response = error.response
    if response["Error"]["Code"] == "ConditionalCheckFailedException":
        return True
    reasons: list[Any] = response.get("CancellationReasons", [])
    return any(reason.get("Code") == "ConditionalCheckFailed" for reason in reasons)


def now_ms() -> int:
    """The time, as records keep it."""
    return time.time_ns() // 1_000_000
