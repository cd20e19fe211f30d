"""Tenants and their keys in DynamoDB: what the table holds and how it is read and written.

    pk tenant#<id>     sk profile       who the tenant is and what it may do
    pk tenant#<id>     sk key#<key id>  the tenant's keys, to list them
    pk key#<key id>    sk key           the same key with its digest, to look it up
    pk audit#<day>     sk <ms>#<random> who changed what: written with the change or not at all

Reads go to the region's own replica, so a lost region takes no other with it. Writes go to the home region: in a global table two
regions' conditional writes can both succeed. Calls block; the gateway makes them in threads.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from botocore.exceptions import ClientError

from policies.admission.fair_queue import Band
from policies.admission.limits import Limits
from policies.routing.model_choice import ModelClass

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

MAX_BUDGET_MICRO_USD = 1_000_000_000_000
"""A million dollars: nine of them are what the cache's numbers hold exactly."""
TENANT_ID = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)
TRUST_GROUP = TENANT_ID
"""Names of trust groups look like those of tenants, and are no tenants."""
Weight = Annotated[int, msgspec.Meta(ge=1, le=1000)]
"""The tenant's share within its band, relative to others."""
LimitValue = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
Budget = Annotated[int, msgspec.Meta(ge=1, le=MAX_BUDGET_MICRO_USD)]
"""Millionths of a dollar."""


UNKNOWN = "unknown"

RecordT = TypeVar("RecordT", bound=msgspec.Struct)


class Tenant(msgspec.Struct, frozen=True):
    """Who pays, and what they may do. A limit of None is unlimited; `models` None means every model."""

    id: str
    band: Band = "standard"
    weight: Weight = 1
    requests_per_min: LimitValue | None = None
    tokens_per_min: LimitValue | None = None
    concurrency: LimitValue | None = None
    models: tuple[str, ...] | None = None
    created_at_ms: int = 0
    revision: int = 0
    """Raised by every change; a change based on an older one is refused."""
    input_tokens_per_min: LimitValue | None = None
    output_tokens_per_min: LimitValue | None = None
    budget_day_micro_usd: Budget | None = None
    budget_month_micro_usd: Budget | None = None
    auto_floor: ModelClass | None = None
    auto_ceiling: ModelClass | None = None
    """The smallest and the largest class that answers to `auto`; None: any that it may use."""
    trust_group: str | None = None
    """The tenants that it shares prefix caches with, all that name this group; None: it shares with nobody."""

    @property
    def limits(self) -> Limits:
        """The limits, as the admission policy takes them."""
        return Limits(
            self.requests_per_min,
            self.tokens_per_min,
            self.concurrency,
            self.input_tokens_per_min,
            self.output_tokens_per_min,
            self.budget_day_micro_usd,
            self.budget_month_micro_usd,
        )

    def may_use(self, model_class: str) -> bool:
        """The tenant may use this model class."""
        return self.models is None or model_class in self.models


class Key(msgspec.Struct, frozen=True):
    """An API key as it may be shown: everything but the secret."""

    key_id: str
    tenant: str
    name: str = ""
    created_at_ms: int = 0
    revoked_at_ms: int | None = None
    expires_at_ms: int | None = None
    """From then on it is refused; None: never."""
    models: tuple[str, ...] | None = None
    """Model classes it may ask for, of those that its tenant may; None: all of these."""
    budget_share_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    """How much of each of its tenant's budgets it may spend; None: all."""
    replaces: str = ""
    """Key id that it was rotated from."""

    def is_usable(self, now_ms: int) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)

    def narrowed(self, tenant: Tenant) -> Tenant:
        """The tenant as this key may act for it."""
        if self.models is None:
            return tenant
        allowed = tuple(name for name in self.models if tenant.may_use(name))
        return msgspec.structs.replace(tenant, models=allowed)


class KeyRecord(msgspec.Struct, frozen=True):
    """A key as it is looked up."""

    key: Key
    digest: bytes


class AuditEntry(msgspec.Struct, frozen=True):
    """A change that was made."""

    at_ms: int
    by: str
    """Who said so, as they said: the admin key does not tell people apart."""
    action: str
    subject: str
    """`tenant/acme`, `key/0123456789`"""
    detail: str = ""
    """What it is now, JSON."""


class TenantExists(Exception):
    """A tenant of this id is there already."""


class TenantMissing(Exception):
    """There is no such tenant."""


class TenantChanged(Exception):
    """The tenant was changed by someone else in the meantime."""


class KeyMissing(Exception):
    """There is no such key."""


class KeyDead(Exception):
    """The key is revoked or has expired: it cannot be rotated."""


class TenantTable:
    """The tenants table, read here and written at home."""

    def __init__(self, table: str, *, near: DynamoDBClient, home: DynamoDBClient) -> None:
        self._table = table
        self._near = near
        self._home = home

    def find_key(self, key_id: str) -> tuple[KeyRecord, Tenant] | None:
        """The key and its tenant, revoked or not; None where either is missing. Two reads of the near replica."""
        item = self._near.get_item(TableName=self._table, Key=_lookup_key(key_id), ConsistentRead=True).get("Item")
        if item is None:
            return None
        key = _decode(item, Key)
        tenant = self._get_tenant(self._near, key.tenant)
        return None if tenant is None else (KeyRecord(key, bytes(item["digest"]["B"])), tenant)

    def get_tenant(self, tenant_id: str) -> Tenant:
        """The tenant, as the home region has it.

        Raises:
            TenantMissing: as it says.
        """
        tenant = self._get_tenant(self._home, tenant_id)
        if tenant is None:
            raise TenantMissing(tenant_id)
        return tenant

    def list_tenants(self) -> list[Tenant]:
        """All tenants, by id."""
        pages = self._home.get_paginator("scan").paginate(
            TableName=self._table, FilterExpression="sk = :sk", ExpressionAttributeValues={":sk": {"S": "profile"}}
        )
        return sorted((_decode(item, Tenant) for page in pages for item in page["Items"]), key=lambda tenant: tenant.id)

    def create_tenant(self, tenant: Tenant, *, by: str = UNKNOWN) -> Tenant:
        """Write a new tenant.

        Raises:
            TenantExists: as it says.
        """
        created = msgspec.structs.replace(tenant, created_at_ms=_now_ms(), revision=1)
        new = self._put_new({**_profile_key(created.id), **_encode(created)})
        try:
            self._write(by, "tenant_created", f"tenant/{created.id}", _detail(created), new)
        except ClientError as error:
            if _is_conditional(error):
                raise TenantExists(tenant.id) from error
            raise
        return created

    def replace_tenant(self, tenant: Tenant, *, by: str = UNKNOWN) -> Tenant:
        """Write `tenant` over the revision that it was read at.

        Raises:
            TenantChanged: another change came first, or it is gone.
        """
        changed = msgspec.structs.replace(tenant, revision=tenant.revision + 1)
        put = {
            "Put": {
                "TableName": self._table,
                "Item": {**_profile_key(changed.id), **_encode(changed)},
                "ConditionExpression": "revision = :read",
                "ExpressionAttributeValues": {":read": {"N": str(tenant.revision)}},
            }
        }
        try:
            self._write(by, "tenant_changed", f"tenant/{changed.id}", _detail(changed), put)
        except ClientError as error:
            if _is_conditional(error):
                raise TenantChanged(tenant.id) from error
            raise
        return changed

    def create_key(self, record: KeyRecord, *, by: str = UNKNOWN) -> Key:
        """Write a new key of an existing tenant; both its items or neither.

        Raises:
            TenantMissing: as it says.
        """
        key = msgspec.structs.replace(record.key, created_at_ms=_now_ms())
        is_there = {
            "ConditionCheck": {
                "TableName": self._table,
                "Key": _profile_key(key.tenant),
                "ConditionExpression": "attribute_exists(pk)",
            }
        }
        try:
            self._write(by, "key_created", f"key/{key.key_id}", _detail(key), is_there, *self._put_key(key, record.digest))
        except ClientError as error:
            if _is_conditional(error):
                raise TenantMissing(key.tenant) from error
            raise
        return key

    def list_keys(self, tenant_id: str) -> list[Key]:
        """The tenant's keys, oldest first; empty where there is no such tenant."""
        pages = self._home.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :sk)",
            ExpressionAttributeValues={":pk": {"S": f"tenant#{tenant_id}"}, ":sk": {"S": "key#"}},
        )
        return sorted((_decode(item, Key) for page in pages for item in page["Items"]), key=lambda key: key.created_at_ms)

    def rotate_key(self, key_id: str, make: Callable[[Key], KeyRecord], overlap_ms: int, *, by: str = UNKNOWN) -> Key:
        """Write the key that `make` makes of the old one, and let that expire `overlap_ms` from now, if it does not sooner: both
        or neither. The new one may what the old one may, and lives as long as that was to.

        Raises:
            KeyMissing, KeyDead: as they say.
        """
        old, now_ms = self._get_key(key_id), _now_ms()
        if not old.is_usable(now_ms):
            raise KeyDead(key_id)
        lives_ms = None if old.expires_at_ms is None else old.expires_at_ms - old.created_at_ms
        record = make(old)
        key = msgspec.structs.replace(
            old,
            key_id=record.key.key_id,
            created_at_ms=now_ms,
            expires_at_ms=None if lives_ms is None else now_ms + lives_ms,
            replaces=key_id,
        )
        until_ms = min(now_ms + overlap_ms, old.expires_at_ms or now_ms + overlap_ms)
        try:
            self._write(
                by, "key_rotated", f"key/{key_id}", _detail(key),
                *self._set_key(old, "expires_at_ms", until_ms, "attribute_not_exists(revoked_at_ms)"),
                *self._put_key(key, record.digest),
            )  # fmt: skip
        except ClientError as error:
            if _is_conditional(error):
                raise KeyDead(key_id) from error
            raise
        return key

    def revoke_key(self, key_id: str, *, by: str = UNKNOWN) -> Key:
        """Mark the key revoked; a second time changes nothing.

        Raises:
            KeyMissing: as it says.
        """
        key = self._get_key(key_id)
        if key.revoked_at_ms is not None:
            return key
        revoked = msgspec.structs.replace(key, revoked_at_ms=_now_ms())
        sets = self._set_key(key, "revoked_at_ms", revoked.revoked_at_ms or 0, "attribute_exists(pk)")
        self._write(by, "key_revoked", f"key/{key_id}", _detail(revoked), *sets)
        return revoked

    def audit(self, day: str) -> list[AuditEntry]:
        """What was changed on a UTC day such as `2026-11-24`, oldest first."""
        pages = self._home.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": f"audit#{day}"}},
        )
        return [_decode(item, AuditEntry) for page in pages for item in page["Items"]]

    def _write(self, by: str, action: str, subject: str, detail: str, *items: Any) -> None:
        """All of `items` and the audit's entry of them, or nothing."""
        entry = AuditEntry(_now_ms(), by, action, subject, detail)
        day = datetime.fromtimestamp(entry.at_ms // 1000, UTC)
        place = {"pk": {"S": f"audit#{day:%Y-%m-%d}"}, "sk": {"S": f"{entry.at_ms:013d}#{secrets.token_hex(4)}"}}
        self._home.transact_write_items(TransactItems=[*items, self._put_new({**place, **_encode(entry)})])

    def _get_key(self, key_id: str) -> Key:
        item = self._home.get_item(TableName=self._table, Key=_lookup_key(key_id), ConsistentRead=True).get("Item")
        if item is None:
            raise KeyMissing(key_id)
        return _decode(item, Key)

    def _put_key(self, key: Key, digest: bytes) -> list[Any]:
        fields = _encode(key)
        looked_up = {**_lookup_key(key.key_id), **fields, "digest": {"B": digest}}
        return [self._put_new(looked_up), self._put_new({**_listed_key(key), **fields})]

    def _set_key(self, key: Key, name: str, value: int, condition: str) -> list[Any]:
        return [
            {
                "Update": {
                    "TableName": self._table,
                    "Key": place,
                    "UpdateExpression": f"SET {name} = :value",
                    "ConditionExpression": condition,
                    "ExpressionAttributeValues": {":value": {"N": str(value)}},
                }
            }
            for place in (_lookup_key(key.key_id), _listed_key(key))
        ]

    def _get_tenant(self, client: DynamoDBClient, tenant_id: str) -> Tenant | None:
        item = client.get_item(TableName=self._table, Key=_profile_key(tenant_id), ConsistentRead=True).get("Item")
        return None if item is None else _decode(item, Tenant)

    def _put_new(self, item: dict[str, Any]) -> Any:
        return {"Put": {"TableName": self._table, "Item": item, "ConditionExpression": "attribute_not_exists(pk)"}}


def _profile_key(tenant_id: str) -> dict[str, Any]:
    return {"pk": {"S": f"tenant#{tenant_id}"}, "sk": {"S": "profile"}}


def _lookup_key(key_id: str) -> dict[str, Any]:
    return {"pk": {"S": f"key#{key_id}"}, "sk": {"S": "key"}}


def _listed_key(key: Key) -> dict[str, Any]:
    return {"pk": {"S": f"tenant#{key.tenant}"}, "sk": {"S": f"key#{key.key_id}"}}


def _encode(record: msgspec.Struct) -> dict[str, Any]:
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


def _decode(item: Mapping[str, Any], kind: type[RecordT]) -> RecordT:
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


def _is_conditional(error: ClientError) -> bool:
    response = error.response
    if response["Error"]["Code"] == "ConditionalCheckFailedException":
        return True
    reasons: list[Any] = response.get("CancellationReasons", [])
    return any(reason.get("Code") == "ConditionalCheckFailed" for reason in reasons)


def _detail(record: msgspec.Struct) -> str:
    return msgspec.json.encode(record).decode()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
