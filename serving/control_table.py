"""The `failover` table as gateways and shippers use it: they read what operators have said, and say how their region fares.

What lies where is `policies/failover/items.py`. Calls block; gateways make them in threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

from policies.failover.items import Item, pack, unpack

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ItemT = TypeVar("ItemT")
_serialize, _deserialize = TypeSerializer().serialize, TypeDeserializer().deserialize


class ControlTable:
    """This region's replica of the table."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def read(self, kind: type[ItemT], pk: str) -> list[ItemT]:
        """Every item under `pk`, by sort key.

        Raises:
            botocore.exceptions.BotoCoreError, ClientError: the table cannot be read.
            ValueError: an item is not what it should be.
        """
        found = self._client.query(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": pk}},
            ConsistentRead=True,
        )
        return [unpack(kind, {name: _deserialize(value) for name, value in item.items()}) for item in found["Items"]]

    def put(self, item: Item) -> None:
        """Write an item, whatever is there.

        Raises:
            botocore.exceptions.BotoCoreError, ClientError: it was not written.
        """
        values = {name: _serialize(value) for name, value in pack(item).items()}
        self._client.put_item(TableName=self._table, Item=values)
