"""`/v1/usage`: a tenant's own usage, as the ledger has it.

Whose it is follows from the key alone; there is no parameter that names a tenant. The ledger is read in a thread, away from
streams, and a span is bounded, since each of its days is a query.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import APIRouter, Depends, Query, Request

from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.tenants import Tenant
from serving.metering.report import GroupBy, UsageReport

UsageOf = Callable[[str, int, int, Sequence[GroupBy]], UsageReport]
"""The usage of a tenant in [from_ms, to_ms), by groups. Blocks."""
OwnGroup = Literal["model", "key", "hour", "day", "month", "asked_model", "model_reason"]

MAX_SPAN_S = 93 * 86_400
DEFAULT_SPAN_S = 30 * 86_400

log = structlog.get_logger()


def usage_router(tenant_of: Callable[[Request], Awaitable[Tenant]], usage: UsageOf) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["usage"])
    own = Depends(tenant_of)

    @router.get("/v1/usage", summary="Your usage and what it costs, exactly; only ended requests, seconds after their end")
    async def show_usage(
        tenant: Tenant = own,
        start_time: Annotated[
            int | None, Query(ge=0, description="Unix time in seconds; 30 days before the end if left out")
        ] = None,
        end_time: Annotated[int | None, Query(ge=0, le=2**40, description="Not in the span itself; now if left out")] = None,
        group_by: Annotated[list[OwnGroup], Query()] = ["day", "model"],  # noqa: B006 (FastAPI reads it, nobody changes it)
    ) -> dict[str, Any]:
        end_s = end_time if end_time is not None else int(time.time()) + 1
        start_s = start_time if start_time is not None else end_s - DEFAULT_SPAN_S
        if not 0 < end_s - start_s <= MAX_SPAN_S:
            message = f"`start_time` must lie before `end_time`, and at most {MAX_SPAN_S // 86_400} days before it."
            raise ApiError(errors.INVALID_VALUE, message, param="start_time")
        groups: list[GroupBy] = [*group_by]
        try:
            report = await asyncio.to_thread(usage, tenant.id, start_s * 1000, end_s * 1000, groups)
        except (BotoCoreError, ClientError) as error:
            log.warning("table_unavailable", error=str(error))
            raise ApiError(errors.TABLE_UNAVAILABLE, "Usage cannot be read at the moment.", retry_after_s=5) from error
        data = [_row(row, groups) for row in report.rows]
        return {"object": "list", "start_time": start_s, "end_time": end_s, "data": data, "total": _row(report.total, ())}

    return router


def _row(row: msgspec.Struct, groups: Sequence[GroupBy]) -> dict[str, Any]:
    """A row without the names that it is not grouped by."""
    document: dict[str, Any] = msgspec.to_builtins(row)
    named = {"key_id" if group == "key" else group for group in groups}
    hidden = {"tenant", "model", "key_id", "hour", "day", "month", "asked_model", "model_reason"} - named
    return {name: value for name, value in document.items() if name not in hidden}
