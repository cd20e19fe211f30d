"""The ops port: whether this gateway lives and wants traffic, and its metrics; and the admin port, which has the admin API alone.

The ops port asks nobody for a key, so what it answers must harm nobody. Both answer from the first moment, long before the
public port does. Ready never depends on engines: a gateway without engines still gives honest answers, and taking it out of
service would only hide them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from serving.gateway import http_errors, worker_metrics
from serving.gateway.admin import build_router
from serving.gateway.admin_access import AdminParts
from serving.gateway.admin_exclusions import drain_router, quarantine_router
from serving.gateway.admin_plans import plan_router
from serving.gateway.admin_policy import policy_router
from serving.gateway.metrics import Metrics
from serving.metrics import CONTENT_TYPE
from serving.settings import GatewaySettings


class Health(Protocol):
    """What the ops port tells of."""

    metrics: Metrics

    def unready(self) -> list[str]:
        """Why no traffic should come; empty when it should."""

    def admin_parts(self) -> AdminParts | None:
        """What the admin API works on; None until the gateway has started."""


def build_ops_app(settings: GatewaySettings, health: Health, others: Mapping[int, Path]) -> FastAPI:
    """The ops port's application; `others` are the sockets of the workers beside this one, by number."""
    app = FastAPI(title="Flotilla gateway operations", version="1", redoc_url=None)
    http_errors.install(app)

    @app.get("/livez")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        reasons = health.unready()
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        own = health.metrics.render()
        if not others:
            return Response(own, media_type=CONTENT_TYPE)
        answers = await asyncio.gather(*map(worker_metrics.ask, others.values()))
        texts = {0: own.decode(), **{number: text for number, text in zip(others, answers, strict=True) if text is not None}}
        return Response(worker_metrics.merged(texts), media_type=CONTENT_TYPE)

    return app


def build_admin_app(settings: GatewaySettings, health: Health) -> FastAPI:
    """The admin port's application."""
    app = FastAPI(title="Flotilla admin API", version="1", redoc_url=None)
    http_errors.install(app)
    for build in (build_router, plan_router, policy_router, drain_router, quarantine_router):
        app.include_router(build(settings, health.admin_parts))
    return app
