"""The admin API's policies: how a tenant's requests may be changed on their way, read and set as one document.

    {"auto": {"floor": "small", "ceiling": "medium"}, "context": {"strategy": "truncate-oldest"}}

A section is a step of the request's path, and its fields are terms of the tenant, which a plan may give as well. A PUT sets all
of them, and so makes them the tenant's own: what is left out is the default, not the plan's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict

from policies.context.compaction import Strategy
from policies.routing.model_choice import ModelClass
from serving.gateway.admin import TenantChange, replace, served
from serving.gateway.admin_access import AdminParts, actor, authorised
from serving.gateway.tenants import Terms
from serving.settings import GatewaySettings

log = structlog.get_logger()


class AutoPolicy(BaseModel):
    """Which classes answer to `auto`; null: any that the tenant may use."""

    model_config = ConfigDict(extra="forbid")

    floor: ModelClass | None = None
    ceiling: ModelClass | None = None


class ContextPolicy(BaseModel):
    """What is done with a conversation that does not fit its window."""

    model_config = ConfigDict(extra="forbid")

    strategy: Strategy = "refuse"


class Policy(BaseModel):
    """All of them."""

    model_config = ConfigDict(extra="forbid")

    auto: AutoPolicy = AutoPolicy()
    context: ContextPolicy = ContextPolicy()

    @classmethod
    def of(cls, terms: Terms) -> Policy:
        """The policies among `terms`."""
        auto = AutoPolicy(floor=terms.auto_floor, ceiling=terms.auto_ceiling)
        return cls(auto=auto, context=ContextPolicy(strategy=terms.context))

    def change(self) -> TenantChange:
        """What makes a tenant follow them."""
        return TenantChange(auto_floor=self.auto.floor, auto_ceiling=self.auto.ceiling, context=self.context.strategy)


def policy_router(settings: GatewaySettings, parts: Callable[[], AdminParts | None]) -> APIRouter:
    """The routes; their functions block and run in threads."""
    router = APIRouter(prefix="/admin/tenants/{tenant_id}/policy", tags=["policies"])
    allowed, by_whom = Depends(authorised(parts)), Depends(actor)

    @router.get("")
    def show_policy(tenant_id: str, admin: AdminParts = allowed) -> dict[str, Any]:
        return Policy.of(served(admin, tenant_id)).model_dump()

    @router.put("")
    def set_policy(tenant_id: str, policy: Policy, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        tenant = replace(settings, admin, tenant_id, policy.change(), by=by)
        log.info("policy_set", tenant=tenant_id, policy=policy.model_dump())
        return Policy.of(tenant).model_dump()

    return router
