"""The supervisor's own port: what probes, preStop hooks and Prometheus ask. Requests for tokens never come here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from serving.engine.state import Phase
from serving.engine.supervisor import Supervisor
from serving.metrics import CONTENT_TYPE

OPS_PORT = 8001


def make_app(supervisor: Supervisor) -> FastAPI:
    """The app of one supervisor."""
    app = FastAPI(title="Flotilla engine supervisor", docs_url=None, redoc_url=None, openapi_url=None)

    def status() -> dict[str, Any]:
        now = supervisor.status
        return {
            "ready": supervisor.is_ready,
            "phase": now.phase,
            "detail": now.detail,
            "release_id": now.release_id,
            "model": supervisor.source.settings.model_class,
        }

    @app.get("/livez")
    def livez() -> Response:
        """200 while the supervisor can still do something about its engine."""
        return JSONResponse(status(), 503 if supervisor.status.phase is Phase.FAILED else 200)

    @app.get("/readyz")
    def readyz() -> Response:
        """200 while gateways may send requests to the engine."""
        return JSONResponse(status(), 200 if supervisor.is_ready else 503)

    @app.api_route("/drain", methods=["GET", "POST"])
    async def drain() -> Response:
        """Not ready from now; answers once the requests have finished. GET too: a preStop hook can send nothing else."""
        await supervisor.drain()
        return JSONResponse(status())

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(supervisor.metrics.render(), media_type=CONTENT_TYPE)

    return app
