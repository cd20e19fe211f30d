"""The tenants table on moto: conditional writes, both items of a key or neither, reads near and writes at home."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import msgspec
import pytest
from moto import mock_aws

from serving.gateway.tenants import (
    TENANT_ID,
    Key,
    KeyMissing,
    KeyRecord,
    Tenant,
    TenantChanged,
    TenantExists,
    TenantMissing,
    TenantTable,
)

TABLE = "tenants"


def make_table(client: Any) -> None:
    client.create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
    )


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with mock_aws():
        client = boto3.client("dynamodb", region_name="us-east-2")
        make_table(client)
        yield client


@pytest.fixture
def table(client: Any) -> TenantTable:
    return TenantTable(TABLE, near=client, home=client)


FULL = Tenant(
    "acme",
    "interactive",
    5,
    600,
    100_000,
    8,
    ("small", "large"),
    input_tokens_per_min=80_000,
    output_tokens_per_min=20_000,
    budget_day_micro_usd=12_500_000,
    budget_month_micro_usd=10**12,
)


@pytest.mark.parametrize("tenant", [FULL, Tenant("bare")])
def test_a_tenant_comes_back_as_it_was_written(table: TenantTable, tenant: Tenant) -> None:
    created = table.create_tenant(tenant)
    assert created.revision == 1
    assert created.created_at_ms > 0
    assert table.get_tenant(tenant.id) == created
    assert msgspec.structs.replace(created, created_at_ms=0, revision=0) == tenant


def test_an_id_is_taken_once(table: TenantTable) -> None:
    table.create_tenant(FULL)
    with pytest.raises(TenantExists):
        table.create_tenant(Tenant("acme"))
    assert table.get_tenant("acme").band == "interactive"


def test_a_change_on_an_old_revision_is_refused(table: TenantTable) -> None:
    """Two operators raise a limit at the same time; the second must look again."""
    seen = table.create_tenant(FULL)
    table.replace_tenant(msgspec.structs.replace(seen, weight=7))
    with pytest.raises(TenantChanged):
        table.replace_tenant(msgspec.structs.replace(seen, weight=9))
    assert (table.get_tenant("acme").weight, table.get_tenant("acme").revision) == (7, 2)


def test_a_lifted_limit_is_gone(table: TenantTable) -> None:
    table.replace_tenant(msgspec.structs.replace(table.create_tenant(FULL), requests_per_min=None, models=None))
    assert (table.get_tenant("acme").requests_per_min, table.get_tenant("acme").models) == (None, None)


def test_tenants_are_listed_by_id_and_keys_are_not_among_them(table: TenantTable) -> None:
    for name in ("zoo", "acme"):
        table.create_tenant(Tenant(name))
    table.create_key(KeyRecord(Key("0123456789", "acme"), b"digest"))
    assert [tenant.id for tenant in table.list_tenants()] == ["acme", "zoo"]


def test_a_key_is_found_by_its_id_with_its_tenant(table: TenantTable) -> None:
    tenant = table.create_tenant(FULL)
    key = table.create_key(KeyRecord(Key("0123456789", "acme", "ci"), b"\x00digest"))
    assert table.find_key("0123456789") == (KeyRecord(key, b"\x00digest"), tenant)
    assert table.find_key("9999999999") is None
    assert table.list_keys("acme") == [key]
    assert table.list_keys("nobody") == []


def test_a_key_of_a_tenant_that_is_not_there_leaves_nothing_behind(table: TenantTable, client: Any) -> None:
    with pytest.raises(TenantMissing):
        table.create_key(KeyRecord(Key("0123456789", "nobody"), b"digest"))
    assert client.scan(TableName=TABLE)["Count"] == 0


def test_a_revoked_key_is_revoked_wherever_it_is_read(table: TenantTable) -> None:
    table.create_tenant(FULL)
    table.create_key(KeyRecord(Key("0123456789", "acme"), b"digest"))
    revoked = table.revoke_key("0123456789")
    assert revoked.revoked_at_ms is not None
    found = table.find_key("0123456789")
    assert found is not None
    assert found[0].key == revoked
    assert table.list_keys("acme") == [revoked]
    assert table.revoke_key("0123456789") == revoked, "a second time changes nothing"
    with pytest.raises(KeyMissing):
        table.revoke_key("9999999999")


def test_reads_are_near_and_writes_go_home(client: Any) -> None:
    near = boto3.client("dynamodb", region_name="us-west-2")
    make_table(near)
    table = TenantTable(TABLE, near=near, home=client)
    table.create_tenant(FULL)
    table.create_key(KeyRecord(Key("0123456789", "acme"), b"digest"))
    assert near.scan(TableName=TABLE)["Count"] == 0
    assert table.find_key("0123456789") is None, "until the table's own replication has brought it here"
    assert table.get_tenant("acme").id == "acme"


IDS = {"a": True, "acme-2": True, "a" * 63: True, "a" * 64: False, "2a": False, "A": False, "a#b": False, "": False}


@pytest.mark.parametrize(("text", "is_id"), IDS.items())
def test_ids_are_safe_in_keys_and_labels(text: str, is_id: bool) -> None:
    assert bool(TENANT_ID.fullmatch(text)) == is_id


def test_what_a_newer_gateway_adds_does_not_break_an_older_one(table: TenantTable, client: Any) -> None:
    table.create_tenant(FULL)
    client.update_item(
        TableName=TABLE,
        Key={"pk": {"S": "tenant#acme"}, "sk": {"S": "profile"}},
        UpdateExpression="SET budget = :b, flags = :f",
        ExpressionAttributeValues={":b": {"N": "5"}, ":f": {"BOOL": True}},
    )
    assert table.get_tenant("acme").weight == 5
