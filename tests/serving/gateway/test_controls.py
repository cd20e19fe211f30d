"""A region's gateways tell health checks what operators have said of every region."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from boto3.dynamodb.types import TypeSerializer
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws

from policies.failover.controls import Verdict
from policies.failover.items import Control, pack
from serving.control_table import ControlTable
from serving.gateway.controls import Controls

EAST, WEST = "us-east-2", "us-west-2"


@pytest.fixture
def table() -> Iterator[Any]:
    with mock_aws():
        client = boto3.client("dynamodb", region_name=WEST, aws_access_key_id="x", aws_secret_access_key="x")
        client.create_table(
            TableName="failover",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        )
        yield client


def say(table: Any, region: str, *, is_evacuated: bool) -> None:
    control = Control(region, is_evacuated, "engines talk nonsense", "r1", "kim", 1)
    item = {name: TypeSerializer().serialize(value) for name, value in pack(control).items()}
    table.put_item(TableName="failover", Item=item)


async def test_an_evacuation_is_told_and_taken_back(table: Any) -> None:
    controls = Controls(ControlTable(table, "failover"), WEST)
    told = []
    for is_evacuated in (None, True, False):
        if is_evacuated is not None:
            say(table, EAST, is_evacuated=is_evacuated)
        await controls.refresh()
        told.append((controls.of(EAST).verdict, controls.of(WEST).verdict))
    serving, evacuated = Verdict.SERVING, Verdict.EVACUATED
    assert told == [(serving, serving), (evacuated, serving), (serving, serving)]


async def test_an_evacuation_holds_while_the_table_cannot_be_read(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    say(table, EAST, is_evacuated=True)
    controls = Controls(ControlTable(table, "failover"), WEST)
    await controls.refresh()

    def fails(**_: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://dynamodb")

    monkeypatch.setattr(table, "query", fails)
    await controls.refresh()
    assert controls.of(EAST).verdict is Verdict.EVACUATED


async def test_who_has_never_read_the_table_says_that_nobody_is_evacuated(table: Any) -> None:
    table.delete_table(TableName="failover")
    controls = Controls(ControlTable(table, "failover"), WEST)
    await controls.refresh()
    assert controls.of(EAST).verdict is Verdict.SERVING


async def test_a_second_evacuation_that_would_leave_nobody_has_no_effect(table: Any) -> None:
    controls = Controls(ControlTable(table, "failover"), WEST)  # which is not asked any more once it is evacuated itself
    for region in (EAST, WEST):
        say(table, region, is_evacuated=True)
        await controls.refresh()
    assert (controls.of(EAST).verdict, controls.of(WEST).verdict) == (Verdict.EVACUATED, Verdict.SERVING)


async def test_a_region_that_no_control_names_is_not_evacuated(table: Any) -> None:
    controls = Controls(ControlTable(table, "failover"), WEST)
    await controls.refresh()
    assert controls.of("mars-1").verdict is Verdict.SERVING
