"""The tenants table on moto: conditional writes, both items of a key or neither, reads near and writes at home."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import msgspec
import pytest
from gateway_support import make_tenants_table
from moto import mock_aws

from serving.gateway import keys
from serving.gateway.tenants import (
    TENANT_ID,
    Key,
    KeyDead,
    KeyMissing,
    KeyRecord,
    Tenant,
    TenantChanged,
    TenantExists,
    TenantMissing,
    TenantTable,
)

TABLE = "tenants"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with mock_aws():
        client = boto3.client("dynamodb", region_name="us-east-2")
        make_tenants_table(client)
        yield client


@pytest.fixture
def table(client: Any) -> TenantTable:
    return TenantTable(TABLE, near=client, home=client)


FULL = Tenant(
    "acme",
    band="interactive",
    weight=5,
    requests_per_min=600,
    tokens_per_min=100_000,
    concurrency=8,
    models=("small", "large"),
    input_tokens_per_min=80_000,
    output_tokens_per_min=20_000,
    budget_day_micro_usd=12_500_000,
    budget_month_micro_usd=10**12,
    auto_floor="small",
    auto_ceiling="medium",
    context="truncate-oldest",
    trust_group="shop",
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
    assert client.scan(TableName=TABLE)["Count"] == 0, "nor an entry of the audit"


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


SCOPES = {"name": "ci", "models": ("small",), "budget_share_percent": 40, "requests_per_min": 7}
NEW = KeyRecord(Key("abcdefghij", "acme"), b"another")


def test_a_key_that_is_rotated_hands_its_scopes_on_and_works_beside_the_new_one_for_a_while(table: TenantTable) -> None:
    table.create_tenant(FULL)
    old = table.create_key(KeyRecord(Key("0123456789", "acme", **SCOPES), b"digest"))
    new = table.rotate_key("0123456789", lambda _: NEW, 60_000)
    assert (new.key_id, new.replaces, new.expires_at_ms) == ("abcdefghij", "0123456789", None)
    assert {name: getattr(new, name) for name in SCOPES} == SCOPES
    found = table.find_key("0123456789")
    assert found is not None
    until_ms = found[0].key.expires_at_ms
    assert until_ms is not None
    assert 59_000 < until_ms - old.created_at_ms < 90_000
    assert found[0].key.is_usable(until_ms - 1) and not found[0].key.is_usable(until_ms)
    fresh = table.find_key("abcdefghij")
    assert fresh == (KeyRecord(new, b"another"), table.get_tenant("acme"))
    assert [key.key_id for key in table.list_keys("acme")] == ["0123456789", "abcdefghij"]


def test_rotation_prolongs_no_old_key_and_gives_the_new_one_as_long_a_life(table: TenantTable) -> None:
    table.create_tenant(FULL)
    soon_ms = msgspec.structs.replace(table.get_tenant("acme")).created_at_ms + 5_000
    old = table.create_key(KeyRecord(Key("0123456789", "acme", expires_at_ms=soon_ms), b"digest"))
    new = table.rotate_key("0123456789", lambda _: NEW, 60_000)
    assert {key.key_id: key.expires_at_ms for key in table.list_keys("acme")}["0123456789"] == soon_ms
    assert new.expires_at_ms == new.created_at_ms + soon_ms - old.created_at_ms


@pytest.mark.parametrize("death", ["revoked", "expired"])
def test_a_dead_key_cannot_be_rotated(table: TenantTable, death: str) -> None:
    table.create_tenant(FULL)
    table.create_key(KeyRecord(Key("0123456789", "acme", expires_at_ms=1 if death == "expired" else None), b"digest"))
    if death == "revoked":
        table.revoke_key("0123456789")
    with pytest.raises(KeyDead):
        table.rotate_key("0123456789", lambda _: NEW, 60_000)
    assert [key.key_id for key in table.list_keys("acme")] == ["0123456789"]


def test_nothing_in_the_table_gives_a_key_back(table: TenantTable, client: Any) -> None:
    table.create_tenant(FULL)
    secrets = [keys.mint() for _ in range(2)]
    records = [KeyRecord(Key(key.key_id, "acme"), keys.digest(b"pepper", key)) for key in secrets]
    table.create_key(records[0])
    table.rotate_key(secrets[0].key_id, lambda _: records[1], 0)
    text = repr(client.scan(TableName=TABLE)["Items"])
    for key in secrets:
        assert key.key_id in text
        assert key.secret[18:] not in text and key.secret[18:30] not in text


def test_every_change_is_audited_with_it_and_a_refused_one_is_not(table: TenantTable) -> None:
    tenant = table.create_tenant(FULL, by="ann")
    table.replace_tenant(msgspec.structs.replace(tenant, weight=9), by="bob")
    with pytest.raises(TenantChanged):
        table.replace_tenant(msgspec.structs.replace(tenant, weight=8), by="eve")
    table.create_key(KeyRecord(Key("0123456789", "acme"), b"digest"), by="ann")
    table.rotate_key("0123456789", lambda _: NEW, 0, by="ann")
    table.revoke_key("0123456789", by="bob")
    table.revoke_key("0123456789", by="eve")
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    found = {(entry.by, entry.action, entry.subject) for entry in table.audit(day)}
    assert found == {
        ("ann", "tenant_created", "tenant/acme"),
        ("bob", "tenant_changed", "tenant/acme"),
        ("ann", "key_created", "key/0123456789"),
        ("ann", "key_rotated", "key/0123456789"),
        ("bob", "key_revoked", "key/0123456789"),
    }
    assert any('"weight":9' in entry.detail for entry in table.audit(day))
    assert table.audit("2020-01-01") == []


def test_reads_are_near_and_writes_go_home(client: Any) -> None:
    near = boto3.client("dynamodb", region_name="us-west-2")
    make_tenants_table(near)
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
