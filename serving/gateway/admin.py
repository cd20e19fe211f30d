"""The admin API, under /admin: tenants, keys, audit and usage here; plans, policies and what is out of service beside it.

Changes go to the home region's table by conditional writes. Each is written with its entry in the audit (`/admin/audit`), both
or neither, and leaves a line in the log. A key's secret is in one answer, once, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import msgspec
import structlog
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.admission.lanes import Band
from policies.context.compaction import Strategy
from policies.routing.model_choice import SIZES, ModelClass
from serving.gateway import keys
from serving.gateway.admin_access import AdminParts, actor, ask, authorised, refuse
from serving.gateway.tenants import MAX_BUDGET_MICRO_USD, TENANT_ID, TERMS, TRUST_GROUP, Key, KeyRecord, Tenant, Terms
from serving.metering.report import DEFAULT_GROUP_BY, GroupBy, usage_report
from serving.settings import GatewaySettings

log = structlog.get_logger()

USAGE_SPAN_MS = 30 * 24 * 3600 * 1000
"""Usage is of the last thirty days where no span is asked for."""
MAX_OVERLAP_S = 90 * 86_400
Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]
PlanId = Annotated[str, Field(pattern=f"^{TENANT_ID.pattern}$")]


class TermsChange(BaseModel):
    """What of a plan or a tenant can be set; null makes a limit unlimited, and `models` every model."""

    model_config = ConfigDict(extra="forbid")

    band: Band = "standard"
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    requests_per_min: Limit | None = None
    tokens_per_min: Limit | None = None
    concurrency: Limit | None = None
    input_tokens_per_min: Limit | None = None
    output_tokens_per_min: Limit | None = None
    budget_day_micro_usd: Annotated[int, Field(ge=1, le=MAX_BUDGET_MICRO_USD)] | None = None
    budget_month_micro_usd: Annotated[int, Field(ge=1, le=MAX_BUDGET_MICRO_USD)] | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    auto_floor: ModelClass | None = None
    auto_ceiling: ModelClass | None = None
    context: Strategy = "refuse"

    def terms(self) -> dict[str, Any]:
        """Those that were given."""
        return self.model_dump(exclude_unset=True, include={*TERMS})


class TenantChange(TermsChange):
    """What of a tenant can be set. On a plan, a term that is set is the tenant's own until it is to be inherited again."""

    trust_group: Annotated[str, Field(pattern=f"^{TRUST_GROUP.pattern}$")] | None = None
    plan: PlanId | None = None
    inherit: tuple[Literal[TERMS], ...] = ()  # type: ignore[valid-type]

    def fields(self) -> dict[str, Any]:
        """What was given of the tenant's fields."""
        return self.model_dump(exclude_unset=True, exclude={"id", "plan", "inherit"})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := sorted(self.terms().keys() & {*self.inherit}):
            raise ValueError(f"`{both[0]}` is set and inherited at once; leave one out")
        return self


class NewTenant(TenantChange):
    """A tenant to be made."""

    id: Annotated[str, Field(pattern=f"^{TENANT_ID.pattern}$")]


KeyLimit = Annotated[int, Field(ge=1, le=1_000_000_000)]


class NewKey(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=64)] = ""
    expires_in_s: Annotated[int, Field(ge=60, le=10 * 366 * 86_400)] | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    budget_share_percent: Annotated[int, Field(ge=1, le=100)] | None = None
    requests_per_min: KeyLimit | None = None
    tokens_per_min: KeyLimit | None = None
    concurrency: KeyLimit | None = None


class Rotation(BaseModel):
    """How a key is replaced."""

    model_config = ConfigDict(extra="forbid")

    overlap_s: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S)] = 86_400
    """For how long the old key still works; 0: not at all."""


def build_router(settings: GatewaySettings, parts: Callable[[], AdminParts | None]) -> APIRouter:
    """The routes; `parts` gives None until the gateway has started. Their functions block and run in threads."""
    router = APIRouter(prefix="/admin", tags=["admin"])
    allowed, by_whom = Depends(authorised(parts)), Depends(actor)

    @router.get("/region")
    def show_region(admin: AdminParts = allowed) -> dict[str, Any]:
        return {
            "environment": settings.environment,
            "region": settings.region,
            "home_region": settings.home_region,
            "artifact_bucket": settings.artifact_bucket,
            "archive_bucket": settings.archive_bucket,
            "tables": settings.tables.model_dump(),
        }

    @router.get("/prices")
    def show_prices(admin: AdminParts = allowed) -> dict[str, Any]:
        return {model.model_class: [price.model_dump() for price in model.prices] for model in settings.models}

    @router.get("/tenants")
    def list_tenants(admin: AdminParts = allowed) -> dict[str, Any]:
        return {"tenants": [_tenant(tenant) for tenant in ask(admin.tenants.list_tenants)]}

    @router.post("/tenants", status_code=201)
    def create_tenant(new: NewTenant, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        check_terms(settings, msgspec.convert(new.terms(), Terms))
        plan = None if new.plan is None else ask(lambda: admin.plans.get_plan(new.plan or ""))
        made = Tenant(new.id).changed(new.fields(), was_on=None, plan=plan, inherit=new.inherit)
        tenant = ask(lambda: admin.tenants.create_tenant(made, by=by))
        log.info("tenant_created", tenant=tenant.id)
        return _tenant(tenant)

    @router.get("/tenants/{tenant_id}")
    def show_tenant(tenant_id: str, admin: AdminParts = allowed) -> dict[str, Any]:
        return _tenant(served(admin, tenant_id))

    @router.patch("/tenants/{tenant_id}")
    def change_tenant(tenant_id: str, change: TenantChange, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        tenant = replace(settings, admin, tenant_id, change, by=by)
        log.info("tenant_changed", tenant=tenant_id, **change.model_dump(exclude_unset=True))
        return _tenant(tenant)

    @router.get("/tenants/{tenant_id}/keys")
    def list_keys(tenant_id: str, admin: AdminParts = allowed) -> dict[str, Any]:
        ask(lambda: admin.tenants.get_tenant(tenant_id))
        return {"keys": [_key(key) for key in ask(lambda: admin.tenants.list_keys(tenant_id))]}

    @router.post("/tenants/{tenant_id}/keys", status_code=201)
    def create_key(tenant_id: str, new: NewKey, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        check_terms(settings, Terms(models=None if new.models is None else tuple(new.models)))
        secret = keys.mint()
        scopes = new.model_dump(include={"budget_share_percent", "requests_per_min", "tokens_per_min", "concurrency"})
        if new.expires_in_s is not None:
            scopes["expires_at_ms"] = time.time_ns() // 1_000_000 + new.expires_in_s * 1000
        if new.models is not None:
            scopes["models"] = tuple(new.models)
        record = KeyRecord(Key(secret.key_id, tenant_id, new.name, **scopes), keys.digest(admin.pepper, secret))
        key = ask(lambda: admin.tenants.create_key(record, by=by))
        log.info("key_created", tenant=tenant_id, key_id=key.key_id)
        return {**_key(key), "key": secret.secret}

    @router.post("/keys/{key_id}/rotate", status_code=201)
    def rotate_key(key_id: str, how: Rotation, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        secret = keys.mint()

        def made(old: Key) -> KeyRecord:
            return KeyRecord(Key(secret.key_id, old.tenant), keys.digest(admin.pepper, secret))

        key = ask(lambda: admin.tenants.rotate_key(key_id, made, how.overlap_s * 1000, by=by))
        log.info("key_rotated", tenant=key.tenant, key_id=key.key_id, replaces=key_id, overlap_s=how.overlap_s)
        return {**_key(key), "key": secret.secret}

    @router.delete("/keys/{key_id}")
    def revoke_key(key_id: str, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        key = ask(lambda: admin.tenants.revoke_key(key_id, by=by))
        log.info("key_revoked", tenant=key.tenant, key_id=key_id)
        return _key(key)

    @router.get("/audit")
    def show_audit(day: Annotated[str, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")], admin: AdminParts = allowed) -> dict[str, Any]:
        return {"entries": [msgspec.structs.asdict(entry) for entry in ask(lambda: admin.tenants.audit(day))]}

    @router.get("/usage")
    def show_usage(
        admin: AdminParts = allowed,
        tenant: str | None = None,
        from_ms: Annotated[int | None, Query(alias="from")] = None,
        to_ms: Annotated[int | None, Query(alias="to")] = None,
        group_by: Annotated[list[GroupBy], Query()] = list(DEFAULT_GROUP_BY),  # noqa: B006 (FastAPI reads it, nobody changes it)
    ) -> dict[str, Any]:
        until_ms = to_ms if to_ms is not None else time.time_ns() // 1_000_000 + 1
        since_ms = from_ms if from_ms is not None else until_ms - USAGE_SPAN_MS
        report = ask(lambda: usage_report(admin.dynamodb, settings.tables.ledger, tenant, since_ms, until_ms, group_by))
        document: dict[str, Any] = msgspec.to_builtins(report)
        return document

    return router


def served(admin: AdminParts, tenant_id: str) -> Tenant:
    """The tenant as its plan has it.

    Raises:
        ApiError: as `ask` says.
    """
    tenant = ask(lambda: admin.tenants.get_tenant(tenant_id))
    return tenant if tenant.plan is None else tenant.on(ask(lambda: admin.plans.get_plan(tenant.plan or "")))


def replace(settings: GatewaySettings, admin: AdminParts, tenant_id: str, change: TenantChange, *, by: str) -> Tenant:
    """The tenant, changed.

    Raises:
        ApiError: as `ask` and `check_terms` say.
    """
    old = ask(lambda: admin.tenants.get_tenant(tenant_id))
    name = change.plan if "plan" in change.model_fields_set else old.plan
    if name is None and change.inherit:
        refuse([("inherit", f"`inherit`: `{tenant_id}` is on no plan that it could inherit from.")])
    plans = {plan: ask(lambda plan=plan: admin.plans.get_plan(plan)) for plan in {old.plan, name} if plan is not None}  # type: ignore[misc]
    was_on, plan = (None if each is None else plans[each] for each in (old.plan, name))
    changed = old.changed(change.fields(), was_on=was_on, plan=plan, inherit=change.inherit)
    check_terms(settings, changed)
    return ask(lambda: admin.tenants.replace_tenant(changed, was_on=old.plan, by=by))


def check_terms(settings: GatewaySettings, terms: Terms) -> None:
    """Terms that this region can keep.

    Raises:
        ApiError: `invalid_value`, all that is wrong with them.
    """
    classes = [model.model_class for model in settings.models]
    problems = [
        ("models", f"`models`: `{name}` is not a model class of this region; there are {', '.join(classes)}.")
        for name in terms.models or ()
        if name not in classes
    ]
    floor, ceiling = terms.auto_floor, terms.auto_ceiling
    if floor is not None and ceiling is not None and SIZES.index(floor) > SIZES.index(ceiling):
        problems.append(("auto_floor", f"`auto_floor` is `{floor}`, which is larger than `auto_ceiling`, `{ceiling}`."))
    refuse(problems)


def _tenant(tenant: Tenant) -> dict[str, Any]:
    return msgspec.structs.asdict(tenant)


def _key(key: Key) -> dict[str, Any]:
    return msgspec.structs.asdict(key)
