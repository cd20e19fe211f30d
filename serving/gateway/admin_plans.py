"""The admin API's plans: terms with a name, which tenants are put on (`plans.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Depends

from serving.gateway.admin import PlanId, TermsChange, check_terms
from serving.gateway.admin_access import AdminParts, actor, ask, authorised
from serving.gateway.tenants import Plan
from serving.settings import GatewaySettings

log = structlog.get_logger()


class NewPlan(TermsChange):
    """A plan to be made."""

    id: PlanId


def plan_router(settings: GatewaySettings, parts: Callable[[], AdminParts | None]) -> APIRouter:
    """The routes; their functions block and run in threads."""
    router = APIRouter(prefix="/admin/plans", tags=["plans"])
    allowed, by_whom = Depends(authorised(parts)), Depends(actor)

    @router.get("")
    def list_plans(admin: AdminParts = allowed) -> dict[str, Any]:
        return {"plans": [_plan(plan, number) for plan, number in ask(admin.plans.list_plans)]}

    @router.post("", status_code=201)
    def create_plan(new: NewPlan, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        plan = msgspec.convert({"id": new.id, **new.terms()}, Plan)
        check_terms(settings, plan)
        created = ask(lambda: admin.plans.create_plan(plan, by=by))
        log.info("plan_created", plan=new.id)
        return _plan(created, 0)

    @router.get("/{plan_id}")
    def show_plan(plan_id: str, admin: AdminParts = allowed) -> dict[str, Any]:
        plan = ask(lambda: admin.plans.get_plan(plan_id))
        return _plan(plan, ask(lambda: admin.plans.num_tenants(plan_id)))

    @router.patch("/{plan_id}")
    def change_plan(plan_id: str, change: TermsChange, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        old = ask(lambda: admin.plans.get_plan(plan_id))
        changed = msgspec.convert({**msgspec.structs.asdict(old), **change.terms()}, Plan)
        check_terms(settings, changed)
        plan = ask(lambda: admin.plans.replace_plan(changed, by=by))
        log.info("plan_changed", plan=plan_id, **change.terms())
        return _plan(plan, ask(lambda: admin.plans.num_tenants(plan_id)))

    @router.delete("/{plan_id}")
    def delete_plan(plan_id: str, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        plan = ask(lambda: admin.plans.delete_plan(plan_id, by=by))
        log.info("plan_deleted", plan=plan_id)
        return _plan(plan, 0)

    return router


def _plan(plan: Plan, num_tenants: int) -> dict[str, Any]:
    return {**msgspec.structs.asdict(plan), "num_tenants": num_tenants}
