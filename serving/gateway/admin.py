"""The admin API, on the ops port under /admin: tenants, keys, audit, usage. Its key is not a tenant's and opens nothing else.

Changes go to the home region's table by conditional writes. Each is written with its entry in the audit (`/admin/audit`), both
or neither, and leaves a line in the log. A key's secret is in one answer, once, and nowhere else.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from policies.admission.fair_queue import Band
from policies.routing.model_choice import SIZES, ModelClass
from serving.gateway import errors, keys
from serving.gateway.errors import ApiError
from serving.gateway.tenants import (
    MAX_BUDGET_MICRO_USD,
    TENANT_ID,
    TRUST_GROUP,
    UNKNOWN,
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
from serving.metering.report import DEFAULT_GROUP_BY, GroupBy, usage_report
from serving.settings import GatewaySettings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

log = structlog.get_logger()

AnswerT = TypeVar("AnswerT")

USAGE_SPAN_MS = 30 * 24 * 3600 * 1000
"""Usage is of the last thirty days where no span is asked for."""
MAX_OVERLAP_S = 90 * 86_400
ACTOR = re.compile(r"[\x20-\x7e]{1,100}")
Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]


class TenantChange(BaseModel):
    """What of a tenant can be set; null makes a limit unlimited, and `models` every model."""

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
    trust_group: Annotated[str, Field(pattern=f"^{TRUST_GROUP.pattern}$")] | None = None


class NewTenant(TenantChange):
    """A tenant to be made."""

    id: Annotated[str, Field(pattern=f"^{TENANT_ID.pattern}$")]


class NewKey(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=64)] = ""
    expires_in_s: Annotated[int, Field(ge=60, le=10 * 366 * 86_400)] | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    budget_share_percent: Annotated[int, Field(ge=1, le=100)] | None = None


class Rotation(BaseModel):
    """How a key is replaced."""

    model_config = ConfigDict(extra="forbid")

    overlap_s: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S)] = 86_400
    """For how long the old key still works; 0: not at all."""


@dataclass(frozen=True)
class AdminParts:
    """What the admin API works on."""

    admin_key: bytes
    pepper: bytes
    tenants: TenantTable
    dynamodb: DynamoDBClient


def build_router(settings: GatewaySettings, parts: Callable[[], AdminParts | None]) -> APIRouter:
    """The routes; `parts` gives None until the gateway has started. Their functions block and run in threads."""

    def authorised(request: Request) -> AdminParts:
        ready = parts()
        if ready is None:
            raise ApiError(errors.NOT_STARTED, "This gateway has not read its secrets yet.", retry_after_s=1)
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, ready.admin_key):
            raise ApiError(errors.INVALID_ADMIN_KEY, "The admin API needs its own key, as `Authorization: Bearer …`.")
        return ready

    router = APIRouter(prefix="/admin", tags=["admin"])
    allowed, actor = Depends(authorised), Depends(_actor)

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
        return {"tenants": [_tenant(tenant) for tenant in _ask(admin.tenants.list_tenants)]}

    @router.post("/tenants", status_code=201)
    def create_tenant(new: NewTenant, admin: AdminParts = allowed, by: str = actor) -> dict[str, Any]:
        _check_models(settings, new.models)
        _check_auto(new.auto_floor, new.auto_ceiling)
        tenant = _ask(lambda: admin.tenants.create_tenant(msgspec.convert(new.model_dump(), Tenant), by=by))
        log.info("tenant_created", tenant=tenant.id)
        return _tenant(tenant)

    @router.get("/tenants/{tenant_id}")
    def show_tenant(tenant_id: str, admin: AdminParts = allowed) -> dict[str, Any]:
        return _tenant(_ask(lambda: admin.tenants.get_tenant(tenant_id)))

    @router.patch("/tenants/{tenant_id}")
    def change_tenant(tenant_id: str, change: TenantChange, admin: AdminParts = allowed, by: str = actor) -> dict[str, Any]:
        _check_models(settings, change.models)
        fields = change.model_dump(exclude_unset=True)
        old = _ask(lambda: admin.tenants.get_tenant(tenant_id))
        changed = msgspec.convert({**msgspec.structs.asdict(old), **fields}, Tenant)
        _check_auto(changed.auto_floor, changed.auto_ceiling)
        tenant = _ask(lambda: admin.tenants.replace_tenant(changed, by=by))
        log.info("tenant_changed", tenant=tenant_id, **fields)
        return _tenant(tenant)

    @router.get("/tenants/{tenant_id}/keys")
    def list_keys(tenant_id: str, admin: AdminParts = allowed) -> dict[str, Any]:
        _ask(lambda: admin.tenants.get_tenant(tenant_id))
        return {"keys": [_key(key) for key in _ask(lambda: admin.tenants.list_keys(tenant_id))]}

    @router.post("/tenants/{tenant_id}/keys", status_code=201)
    def create_key(tenant_id: str, new: NewKey, admin: AdminParts = allowed, by: str = actor) -> dict[str, Any]:
        _check_models(settings, new.models)
        secret = keys.mint()
        scopes: dict[str, Any] = {"budget_share_percent": new.budget_share_percent}
        if new.expires_in_s is not None:
            scopes["expires_at_ms"] = time.time_ns() // 1_000_000 + new.expires_in_s * 1000
        if new.models is not None:
            scopes["models"] = tuple(new.models)
        record = KeyRecord(Key(secret.key_id, tenant_id, new.name, **scopes), keys.digest(admin.pepper, secret))
        key = _ask(lambda: admin.tenants.create_key(record, by=by))
        log.info("key_created", tenant=tenant_id, key_id=key.key_id)
        return {**_key(key), "key": secret.secret}

    @router.post("/keys/{key_id}/rotate", status_code=201)
    def rotate_key(key_id: str, how: Rotation, admin: AdminParts = allowed, by: str = actor) -> dict[str, Any]:
        secret = keys.mint()

        def made(old: Key) -> KeyRecord:
            return KeyRecord(Key(secret.key_id, old.tenant), keys.digest(admin.pepper, secret))

        key = _ask(lambda: admin.tenants.rotate_key(key_id, made, how.overlap_s * 1000, by=by))
        log.info("key_rotated", tenant=key.tenant, key_id=key.key_id, replaces=key_id, overlap_s=how.overlap_s)
        return {**_key(key), "key": secret.secret}

    @router.delete("/keys/{key_id}")
    def revoke_key(key_id: str, admin: AdminParts = allowed, by: str = actor) -> dict[str, Any]:
        key = _ask(lambda: admin.tenants.revoke_key(key_id, by=by))
        log.info("key_revoked", tenant=key.tenant, key_id=key_id)
        return _key(key)

    @router.get("/audit")
    def show_audit(day: Annotated[str, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")], admin: AdminParts = allowed) -> dict[str, Any]:
        return {"entries": [msgspec.structs.asdict(entry) for entry in _ask(lambda: admin.tenants.audit(day))]}

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
        report = _ask(lambda: usage_report(admin.dynamodb, settings.tables.ledger, tenant, since_ms, until_ms, group_by))
        document: dict[str, Any] = msgspec.to_builtins(report)
        return document

    return router


def _ask(call: Callable[[], AnswerT]) -> AnswerT:
    """The table's answer.

    Raises:
        ApiError: what it refuses, or that it does not answer.
    """
    try:
        return call()
    except TenantExists as error:
        raise ApiError(errors.TENANT_EXISTS, f"There is a tenant `{error}` already.", param="id") from error
    except TenantMissing as error:
        raise ApiError(errors.TENANT_NOT_FOUND, f"There is no tenant `{error}`.") from error
    except TenantChanged as error:
        raise ApiError(errors.TENANT_CHANGED, f"Tenant `{error}` was changed by someone else just now; look again.") from error
    except KeyMissing as error:
        raise ApiError(errors.KEY_NOT_FOUND, f"There is no key `{error}`.") from error
    except KeyDead as error:
        raise ApiError(errors.KEY_DEAD, f"Key `{error}` is revoked or has expired; make a new one.") from error
    except (BotoCoreError, ClientError) as error:
        log.warning("table_unavailable", error=str(error))
        raise ApiError(errors.TABLE_UNAVAILABLE, "The table does not answer.", retry_after_s=5) from error


def _actor(request: Request) -> str:
    """Who says that they make a change: the header `x-flotilla-actor`, for the audit alone."""
    said = request.headers.get("x-flotilla-actor", "")
    return said if ACTOR.fullmatch(said) else UNKNOWN


def _check_models(settings: GatewaySettings, models: list[str] | None) -> None:
    served = [model.model_class for model in settings.models]
    unknown = [name for name in models or () if name not in served]
    if unknown:
        message = f"`{unknown[0]}` is not a model class of this region; there are {', '.join(served)}."
        raise ApiError(errors.INVALID_VALUE, message, param="models")


def _check_auto(floor: ModelClass | None, ceiling: ModelClass | None) -> None:
    if floor is not None and ceiling is not None and SIZES.index(floor) > SIZES.index(ceiling):
        message = f"`auto_floor` is `{floor}`, which is larger than `auto_ceiling`, `{ceiling}`."
        raise ApiError(errors.INVALID_VALUE, message, param="auto_floor")


def _tenant(tenant: Tenant) -> dict[str, Any]:
    return msgspec.structs.asdict(tenant)


def _key(key: Key) -> dict[str, Any]:
    return msgspec.structs.asdict(key)
