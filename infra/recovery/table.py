"""The `failover` table in one surviving region: control items, reports, and the record of a run."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from infra.recovery.guard import Guard, explain
from policies.failover.items import REPORT, SHIPPED, Item, Report, Shipped, pack, plain, stored, unpack

ItemT = TypeVar("ItemT")
_serialize, _deserialize = TypeSerializer().serialize, TypeDeserializer().deserialize


class Changed(Exception):
    """Somebody else has written the item since it was read."""


class FailoverTable:
    """Reads and writes in `region`. Every failure of a call is a UserError of one line."""

    def __init__(self, guard: Guard, table: str, region: str) -> None:
        self.region = region
        self.clock_error_s = 0.0
        """How far this machine's clock is before AWS's, by the last answer; AWS tells whole seconds."""
        self._client = guard.client("dynamodb", region)
        self._table = table

    def put(self, item: Item) -> None:
        """Writes an item, whatever is there."""
        self._call("put_item", Item=_pack_values(pack(item)))

    def get(self, kind: type[ItemT], key: tuple[str, str]) -> ItemT | None:
        """The item at `key`, or None."""
        values = self.get_values(key)
        return None if values is None else unpack(kind, values)

    def get_values(self, key: tuple[str, str]) -> dict[str, Any] | None:
        """The fields of the item at `key`, or None."""
        found = self._call("get_item", Key={"pk": {"S": key[0]}, "sk": {"S": key[1]}}, ConsistentRead=True).get("Item")
        return None if found is None else _unpack_values(found)

    def put_if(self, values: dict[str, Any], revision: int) -> None:
        """Writes `values`, with the next revision, if the item there has `revision`; 0 if there must be none.

        Raises:
            Changed: it has another.
        """
        condition = {"ConditionExpression": "attribute_not_exists(pk)"}
        if revision:
            condition = {"ConditionExpression": "revision = :revision"}
            condition["ExpressionAttributeValues"] = {":revision": {"N": str(revision)}}  # type: ignore[assignment]
        try:
            self._client.put_item(
                TableName=self._table, Item=_pack_values(stored({**values, "revision": revision + 1})), **condition
            )
        except ClientError as error:
            if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                raise Changed from error
            raise explain(error, self._what("put_item")) from error
        except BotoCoreError as error:
            raise explain(error, self._what("put_item")) from error

    def reports(self) -> Iterable[Report]:
        """What gateways of every region last said."""
        found = self._call(
            "query", KeyConditionExpression="pk = :pk", ExpressionAttributeValues={":pk": {"S": REPORT}}, ConsistentRead=True
        )
        return [unpack(Report, _unpack_values(item)) for item in found["Items"]]

    def shipped(self, region: str) -> Iterable[Shipped]:
        """What shippers of `region` last said of their volumes."""
        found = self._call(
            "query",
            KeyConditionExpression="pk = :pk AND begins_with(sk, :region)",
            ExpressionAttributeValues={":pk": {"S": SHIPPED}, ":region": {"S": f"{region}#"}},
            ConsistentRead=True,
        )
        told = [_unpack_values(item) for item in found["Items"]]
        return [unpack(Shipped, values) for values in told if "num_waiting" in values]

    def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            answer = getattr(self._client, operation)(TableName=self._table, **arguments)
        except (ClientError, BotoCoreError) as error:
            raise explain(error, self._what(operation)) from error
        told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if told:
            self.clock_error_s = (datetime.now(UTC) - parsedate_to_datetime(told)).total_seconds()
        return answer

    def _what(self, operation: str) -> str:
        return f"{self._table} in {self.region}: {operation}"


def _pack_values(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _serialize(value) for name, value in values.items()}


def _unpack_values(item: dict[str, Any]) -> dict[str, Any]:
    return {name: plain(_deserialize(value)) for name, value in item.items()}
