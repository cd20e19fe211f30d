"""The prompts table on moto, for whoever needs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto import mock_aws

from serving.gateway.prompt_table import PromptTable

REGION = "us-east-2"


@contextmanager
def prompt_table() -> Iterator[tuple[PromptTable, Any]]:
    """An empty table, and the client that it is read and written by."""
    with mock_aws():
        client = boto3.client("dynamodb", region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x")
        client.create_table(
            TableName="prompts",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )
        yield PromptTable("prompts", near=client, home=client), client


def empty(client: Any) -> None:
    """Delete whatever is in the table: making another takes a second."""
    for item in client.scan(TableName="prompts")["Items"]:
        client.delete_item(TableName="prompts", Key={"pk": item["pk"], "sk": item["sk"]})
