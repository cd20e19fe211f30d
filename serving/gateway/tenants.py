"""Tenants and their keys in DynamoDB: what the table holds and how it is read and written.

    pk tenant#<id>     sk profile       who the tenant is and what it may do
    pk tenant#<id>     sk key#<key id>  the tenant's keys, to list them
    pk key#<key id>    sk key           the same key with its digest, to look it up
    pk plan#<id>       sk plan          terms that tenants share (`plans.py`)
    pk plan#<id>       sk members       how many tenants are on it

Reads go to the region's own replica, so a lost region takes no other with it. Writes go to the home region: in a global table two
regions' conditional writes can both succeed. Calls block; the gateway makes them in threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from botocore.exceptions import ClientError

from policies.admission.lanes import Band
from policies.admission.limits import Limits
from policies.context.compaction import Strategy
from policies.routing.model_choice import ModelClass
from serving.gateway.audited import UNKNOWN, AuditedTable, AuditEntry, decode, encode, is_conditional, now_ms

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


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant may do. A limit of None is unlimited; `models` None means every model."""

    band: Band = "standard"
    weight: Weight = 1
    requests_per_min: LimitValue | None = None
    tokens_per_min: LimitValue | None = None
    concurrency: LimitValue | None = None
    models: tuple[str, ...] | None = None
    input_tokens_per_min: LimitValue | None = None
    output_tokens_per_min: LimitValue | None = None
    budget_day_micro_usd: Budget | None = None
    budget_month_micro_usd: Budget | None = None
    auto_floor: ModelClass | None = None
    auto_ceiling: ModelClass | None = None
    """The smallest and the largest class that answers to `auto`; None: any that it may use."""
    context: Strategy = "refuse"
    """What is done with a conversation that does not fit its window, where the request does not say."""

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


class Plan(Terms, frozen=True):
    """Terms with a name. Tenants on it follow its changes."""

    id: str
    created_at_ms: int = 0
    revision: int = 0


class Tenant(Terms, frozen=True):
    """Who pays, and what they may do. Of a tenant on a plan the terms that it does not set itself are those that the plan had
    when the tenant was last written: what holds is `on(plan)`."""

    id: str
    created_at_ms: int = 0
    revision: int = 0
    """Raised by every change; a change based on an older one is refused."""
    plan: str | None = None
    overrides: tuple[str, ...] = ()
    """Terms that the tenant sets itself, whatever its plan says."""
    trust_group: str | None = None
    """The tenants that it shares prefix caches with, all that name this group; None: it shares with nobody. No
    plan gives it: a tenant opts in."""

    def on(self, plan: Plan | None) -> Tenant:
        """The tenant as it is served where its plan says this. None, a plan that has not come to this region yet: as written."""
        if plan is None:
            return self
        return msgspec.structs.replace(self, **{name: getattr(plan, name) for name in TERMS if name not in self.overrides})

    def changed(
        self, fields: Mapping[str, Any], *, was_on: Plan | None, plan: Plan | None, inherit: Collection[str] = ()
    ) -> Tenant:
        """The tenant with these `fields`, on `plan` after it `was_on` another, the same, or none.

        On a plan the terms among them are its own from now on, but for those that it is to `inherit` again. Whoever comes to a
        plan leaves behind what it set before; whoever goes to none keeps what the plan gave.
        """
        stays = plan is not None and was_on is not None and plan.id == was_on.id
        given = {name for name in fields if name in TERMS}
        own = {*(self.overrides if stays else ()), *given} - {*inherit} if plan is not None else ()
        name = None if plan is None else plan.id
        served = msgspec.structs.asdict(self.on(was_on)) | dict(fields)
        return msgspec.convert({**served, "plan": name, "overrides": sorted(own)}, Tenant).on(plan)


TERMS = Terms.__struct_fields__


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
    requests_per_min: LimitValue | None = None
    tokens_per_min: LimitValue | None = None
    concurrency: LimitValue | None = None
    """Limits of its own, beside its tenant's; None: only those."""
    rotated_from: tuple[str, ...] = ()
    """All key ids before it, oldest first: what they used is its own."""

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


class TenantExists(Exception):
    """A tenant of this id is there already."""


class TenantMissing(Exception):
    """There is no such tenant."""


class TenantChanged(Exception):
    """The tenant was changed by someone else in the meantime."""


class PlanMissing(Exception):
    """There is no such plan."""


class KeyMissing(Exception):
    """There is no such key."""


class KeyDead(Exception):
    """The key is revoked or has expired: it cannot be rotated."""


class TenantTable:
    """The tenants table, read here and written at home."""

    def __init__(self, table: str, *, near: DynamoDBClient, home: DynamoDBClient) -> None:
        self._near, self._home = AuditedTable(near, table), AuditedTable(home, table)
        self._table = table

    def find_key(self, key_id: str) -> tuple[KeyRecord, Tenant] | None:
        """The key and its tenant as its plan has it, revoked or not; None where either is missing. Two reads of the near replica,
        three for a tenant on a plan."""
        item = self._near.client.get_item(TableName=self._table, Key=_lookup_key(key_id), ConsistentRead=True).get("Item")
        if item is None:
            return None
        key = decode(item, Key)
        tenant = self.find_tenant(key.tenant)
        return None if tenant is None else (KeyRecord(key, bytes(item["digest"]["B"])), tenant)

    def find_tenant(self, tenant_id: str) -> Tenant | None:
        """The tenant as its plan has it, by the near replica."""
        tenant = self._near.get(_profile_key(tenant_id), Tenant)
        if tenant is None:
            return None
        return tenant.on(None if tenant.plan is None else self._near.get(plan_key(tenant.plan), Plan))

    def get_tenant(self, tenant_id: str) -> Tenant:
        """The tenant as it was written at home, not as its plan has it.

        Raises:
            TenantMissing: as it says.
        """
        tenant = self._home.get(_profile_key(tenant_id), Tenant)
        if tenant is None:
            raise TenantMissing(tenant_id)
        return tenant

    def list_tenants(self) -> list[Tenant]:
        """All tenants as their plans have them, by id."""
        plans = {plan.id: plan for plan in self._home.scan(Plan, "plan")}
        tenants = self._home.scan(Tenant, "profile")
        return sorted((tenant.on(plans.get(tenant.plan or "")) for tenant in tenants), key=lambda tenant: tenant.id)

    def create_tenant(self, tenant: Tenant, *, by: str = UNKNOWN) -> Tenant:
        """Write a new tenant.

        Raises:
            TenantExists, PlanMissing: as they say.
        """
        created = msgspec.structs.replace(tenant, created_at_ms=now_ms(), revision=1)
        new = self._home.put_new({**_profile_key(created.id), **encode(created)})
        try:
            self._home.write(by, "tenant_created", f"tenant/{created.id}", created, new, *self._moves(None, created.plan))
        except ClientError as error:
            if is_conditional(error):
                raise self._why(error, TenantExists(tenant.id), created) from error
            raise
        return created

    def replace_tenant(self, tenant: Tenant, *, was_on: str | None = None, by: str = UNKNOWN) -> Tenant:
        """Write `tenant` over the revision that it was read at, when it `was_on` that plan.

        Raises:
            TenantChanged: another change came first, or it is gone.
            PlanMissing: as it says.
        """
        changed = msgspec.structs.replace(tenant, revision=tenant.revision + 1)
        put = self._home.put_over({**_profile_key(changed.id), **encode(changed)}, tenant.revision)
        try:
            self._home.write(by, "tenant_changed", f"tenant/{changed.id}", changed, put, *self._moves(was_on, changed.plan))
        except ClientError as error:
            if is_conditional(error):
                raise self._why(error, TenantChanged(tenant.id), changed) from error
            raise
        return changed

    def create_key(self, record: KeyRecord, *, by: str = UNKNOWN) -> Key:
        """Write a new key of an existing tenant; both its items or neither.

        Raises:
            TenantMissing: as it says.
        """
        key = msgspec.structs.replace(record.key, created_at_ms=now_ms())
        is_there = {
            "ConditionCheck": {
                "TableName": self._table,
                "Key": _profile_key(key.tenant),
                "ConditionExpression": "attribute_exists(pk)",
            }
        }
        try:
            self._home.write(by, "key_created", f"key/{key.key_id}", key, is_there, *self._put_key(key, record.digest))
        except ClientError as error:
            if is_conditional(error):
                raise TenantMissing(key.tenant) from error
            raise
        return key

    def list_keys(self, tenant_id: str) -> list[Key]:
        """The tenant's keys, oldest first; empty where there is no such tenant."""
        return sorted(self._home.query(Key, f"tenant#{tenant_id}", "key#"), key=lambda key: key.created_at_ms)

    def rotate_key(self, key_id: str, make: Callable[[Key], KeyRecord], overlap_ms: int, *, by: str = UNKNOWN) -> Key:
        """Write the key that `make` makes of the old one, and let that expire `overlap_ms` from now, if it does not sooner: both
        or neither. The new one may what the old one may, and lives as long as that was to.

        Raises:
            KeyMissing, KeyDead: as they say.
        """
        old, at_ms = self._get_key(key_id), now_ms()
        if not old.is_usable(at_ms):
            raise KeyDead(key_id)
        lives_ms = None if old.expires_at_ms is None else old.expires_at_ms - old.created_at_ms
        record = make(old)
        key = msgspec.structs.replace(
            old,
            key_id=record.key.key_id,
            created_at_ms=at_ms,
            expires_at_ms=None if lives_ms is None else at_ms + lives_ms,
            replaces=key_id,
            rotated_from=(*old.rotated_from, key_id),
        )
        until_ms = min(at_ms + overlap_ms, old.expires_at_ms or at_ms + overlap_ms)
        try:
            self._home.write(
                by, "key_rotated", f"key/{key_id}", key,
                *self._set_key(old, "expires_at_ms", until_ms, "attribute_not_exists(revoked_at_ms)"),
                *self._put_key(key, record.digest),
            )  # fmt: skip
        except ClientError as error:
            if is_conditional(error):
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
        revoked = msgspec.structs.replace(key, revoked_at_ms=now_ms())
        sets = self._set_key(key, "revoked_at_ms", revoked.revoked_at_ms or 0, "attribute_exists(pk)")
        self._home.write(by, "key_revoked", f"key/{key_id}", revoked, *sets)
        return revoked

    def audit(self, day: str) -> list[AuditEntry]:
        """What was changed on a UTC day such as `2026-11-24`, oldest first."""
        return self._home.audit(day)

    def _moves(self, was_on: str | None, plan: str | None) -> list[Any]:
        """One tenant more on `plan`, one less on the one that it was on; nothing where they are the same."""
        moves = [] if was_on == plan else [(plan, 1), (was_on, -1)]
        return [self._member(name, number) for name, number in moves if name is not None]

    def _member(self, plan: str, number: int) -> Any:
        return {
            "Update": {
                "TableName": self._table,
                "Key": members_key(plan),
                "UpdateExpression": "ADD num_tenants :number",
                "ConditionExpression": "attribute_exists(pk)",
                "ExpressionAttributeValues": {":number": {"N": str(number)}},
            }
        }

    def _why(self, error: ClientError, otherwise: Exception, tenant: Tenant) -> Exception:
        """What refused the tenant: its plan has gone, or else `otherwise`."""
        reasons: list[Any] = error.response.get("CancellationReasons", [])
        of_tenant = reasons[0].get("Code") if reasons else "ConditionalCheckFailed"
        return otherwise if of_tenant == "ConditionalCheckFailed" or tenant.plan is None else PlanMissing(tenant.plan)

    def _get_key(self, key_id: str) -> Key:
        key = self._home.get(_lookup_key(key_id), Key)
        if key is None:
            raise KeyMissing(key_id)
        return key

    def _put_key(self, key: Key, digest: bytes) -> list[Any]:
        fields = encode(key)
        looked_up = {**_lookup_key(key.key_id), **fields, "digest": {"B": digest}}
        return [self._home.put_new(looked_up), self._home.put_new({**_listed_key(key), **fields})]

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


def _profile_key(tenant_id: str) -> dict[str, Any]:
    return {"pk": {"S": f"tenant#{tenant_id}"}, "sk": {"S": "profile"}}


def _lookup_key(key_id: str) -> dict[str, Any]:
    return {"pk": {"S": f"key#{key_id}"}, "sk": {"S": "key"}}


def _listed_key(key: Key) -> dict[str, Any]:
    return {"pk": {"S": f"tenant#{key.tenant}"}, "sk": {"S": f"key#{key.key_id}"}}


def plan_key(plan_id: str) -> dict[str, Any]:
    """Where a plan lies."""
    return {"pk": {"S": f"plan#{plan_id}"}, "sk": {"S": "plan"}}


def members_key(plan_id: str) -> dict[str, Any]:
    """Where it is counted how many tenants are on it."""
    return {"pk": {"S": f"plan#{plan_id}"}, "sk": {"S": "members"}}
