"""The usage ledger's table: one immutable row per event (`rows.py`), written by conditional put, and read as sums of rows.

An event's row has one writer: the region that minted the event. Its shipper puts the row there, and the global table carries it
on. After a region's loss a survivor may put it too, since what it puts is the same: the same journals, in any order and any
number of times, give the same rows. A row that is there already with other content is never overwritten: the first stands, the
difference is counted and reported. Requests that were never served have rows too, at zero: what a customer asks about must be
found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from botocore.exceptions import ClientError

from serving.errors import UserError
from serving.metering.events import UsageClose
from serving.metering.framing import decode_segment
from serving.metering.rows import LedgerRow, RowKey, item_of, row_from, row_of, rows_of, utc_days

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

NUM_CONNECTIONS = 16
"""Requests to the table in flight at once, per call."""
_MAX_BATCH_GET = 100  # DynamoDB's limit for BatchGetItem

log = structlog.get_logger()


class UnreadableRow(UserError):
    """An item of the table is no ledger row: somebody else wrote it, or changed it."""


class PutResult(StrEnum):
    """What a put found. The values are those of the series LEDGER_ROWS."""

    WRITTEN = "written"
    PRESENT = "present"
    """The same row was there."""
    CONFLICT = "conflict"
    """Another row was there, and still is."""


def create_table(client: DynamoDBClient, table: str) -> None:
    """Make a table that rows can be rebuilt into, unless it is there. The deployed ledger is `infra/`'s, not made here.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: as they say.
    """
    try:
        client.create_table(
            TableName=table,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )
    except client.exceptions.ResourceInUseException:
        return
    client.get_waiter("table_exists").wait(TableName=table, WaiterConfig={"Delay": 1, "MaxAttempts": 60})


def put_row(client: DynamoDBClient, table: str, row: LedgerRow) -> PutResult:
    """Write `row` unless its key is taken.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the table did not take it; it may have been written all the same, and
            putting it again is safe.
    """
    try:
        client.put_item(
            TableName=table,
            Item=item_of(row),
            ConditionExpression="attribute_not_exists(sk)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
            raise
        return _compare(row, error.response.get("Item"))  # type: ignore[arg-type]  # the stubs do not know this member
    return PutResult.WRITTEN


def _compare(row: LedgerRow, item: dict[str, Any] | None) -> PutResult:
    try:
        present = row_from(item or {})
    except msgspec.ValidationError:
        present = None
    if present == row:
        return PutResult.PRESENT
    log.error("ledger row differs from the journal; the first is kept", row=msgspec.structs.asdict(row), present=item)
    return PutResult.CONFLICT


def write_rows(client: DynamoDBClient, table: str, closes: Sequence[UsageClose], *, is_again: bool = False) -> Counter[PutResult]:
    """Put the row of every CLOSE; how many of each result. `is_again`: somebody has likely put them before.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: some row could not be put; calling again resumes.
    """
    put = put_missing if is_again else put_rows
    return put(client, table, [row_of(close) for close in closes])


def put_rows(client: DynamoDBClient, table: str, rows: Sequence[LedgerRow]) -> Counter[PutResult]:
    """Put every row; how many of each result.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: some row could not be put; calling again resumes.
    """
    with ThreadPoolExecutor(min(NUM_CONNECTIONS, len(rows)) or 1, "ledger") as pool:
        return Counter(pool.map(lambda row: put_row(client, table, row), rows))


def put_missing(client: DynamoDBClient, table: str, rows: Sequence[LedgerRow]) -> Counter[PutResult]:
    """As `put_rows`, for rows that are likely there: they are read first, a hundred at a time, and only the others are put.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the table did not answer or take a row; calling again resumes.
    """
    present = _read_items(client, table, (row.key for row in rows))
    results = Counter(_compare(row, present[row.key]) for row in rows if row.key in present)
    return results + put_rows(client, table, [row for row in rows if row.key not in present])


def rebuild_from_segments(client: DynamoDBClient, table: str, segments: Iterable[bytes]) -> Counter[PutResult]:
    """Put the rows of sealed segments, in any order, by the same path that ships them.

    Raises:
        SegmentError: a segment cannot be read.
        botocore.exceptions.BotoCoreError, ClientError: some row could not be put; calling again resumes.
    """
    results: Counter[PutResult] = Counter()
    for data in segments:
        results += put_rows(client, table, rows_of(decode_segment(data)))
    return results


def missing_rows(client: DynamoDBClient, table: str, keys: Iterable[RowKey]) -> set[RowKey]:
    """Those of `keys` that the table does not have.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the table did not answer.
    """
    wanted = set(keys)
    return wanted - _read_items(client, table, wanted).keys()


def _read_items(client: DynamoDBClient, table: str, keys: Iterable[RowKey]) -> dict[RowKey, dict[str, Any]]:
    wanted, found = sorted(set(keys)), dict[RowKey, dict[str, Any]]()
    for start in range(0, len(wanted), _MAX_BATCH_GET):
        request: Any = {table: {"Keys": [key.item() for key in wanted[start : start + _MAX_BATCH_GET]], "ConsistentRead": True}}
        while request:
            answer = client.batch_get_item(RequestItems=request)
            found |= {RowKey(item["pk"]["S"], item["sk"]["S"]): item for item in answer["Responses"].get(table, [])}
            request = answer.get("UnprocessedKeys")
    return found


def read_rows(client: DynamoDBClient, table: str, tenants: Sequence[str] | None, from_ms: int, to_ms: int) -> Iterator[LedgerRow]:
    """The rows opened in [from_ms, to_ms): by query for the tenants named, by a scan of the whole table for all (None).

    Raises:
        UnreadableRow: as it says.
        botocore.exceptions.BotoCoreError, ClientError: the table did not answer.
    """
    if tenants is None:
        pages: Iterable[list[dict[str, Any]]] = [page["Items"] for page in client.get_paginator("scan").paginate(TableName=table)]
    else:
        partitions = [f"{tenant}#{day}" for tenant in tenants for day in utc_days(from_ms, to_ms)]
        with ThreadPoolExecutor(NUM_CONNECTIONS, "ledger") as pool:
            pages = list(pool.map(lambda pk: _partition(client, table, pk), partitions))
    for page in pages:
        for item in page:
            row = _row(item)
            if from_ms <= row.opened_at_ms < to_ms:
                yield row


def read_day(client: DynamoDBClient, table: str, tenant: str, day: str) -> list[LedgerRow]:
    """The tenant's rows of one UTC day, by key.

    Raises:
        UnreadableRow: as it says.
        botocore.exceptions.BotoCoreError, ClientError: the table did not answer.
    """
    return [_row(item) for item in _partition(client, table, f"{tenant}#{day}")]


def _row(item: dict[str, Any]) -> LedgerRow:
    try:
        return row_from(item)
    except msgspec.ValidationError as error:
        key = f"pk {item['pk']['S']}, sk {item['sk']['S']}"
        remedy = "what it was is in the archive: `flotilla ledger rebuild` into another table shows it"
        raise UnreadableRow(f"the ledger's item with {key} is no row: {error}", remedy) from error


def _partition(client: DynamoDBClient, table: str, pk: str) -> list[dict[str, Any]]:
    pages = client.get_paginator("query").paginate(
        TableName=table, KeyConditionExpression="pk = :pk", ExpressionAttributeValues={":pk": {"S": pk}}, ConsistentRead=True
    )
    return [item for page in pages for item in page["Items"]]
