"""The ops port: whether this gateway lives and wants traffic, its metrics, and the admin API.

It answers from the first moment, long before the public port does. Ready never depends on engines: a gateway without engines
still gives honest answers, and taking it out of service would only hide them.
"""

from __future__ import annotations

from typing import Protocol

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from serving.gateway import http_errors
from serving.gateway.admin import AdminParts, build_router
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


def build_ops_app(settings: GatewaySettings, health: Health) -> FastAPI:
    """The ops port's application."""
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
        return Response(health.metrics.render(), media_type=CONTENT_TYPE)

    app.include_router(build_router(settings, health.admin_parts))
    return app
