"""FastAPI's own refusals in OpenAI's shape, so that a client meets one kind of error whoever refused it."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving.gateway import errors
from serving.gateway.errors import ApiError

log = structlog.get_logger()


def install(app: FastAPI) -> None:
    """Answer every failure of `app`'s routes with an error document."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == errors.METHOD_NOT_ALLOWED.status:
            return answer(ApiError(errors.METHOD_NOT_ALLOWED, f"{request.method} is not allowed on {path}."))
        return answer(ApiError(errors.NOT_FOUND, f"There is nothing at {path}."))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return answer(ApiError(errors.INVALID_VALUE, f"`{param or 'body'}`: {first['msg']}.", param=param))

    @app.exception_handler(Exception)
    async def broke(request: Request, error: Exception) -> Response:
        log.error("route_broke", path=request.url.path, exc_info=error)
        return answer(ApiError(errors.INTERNAL_ERROR, "Something went wrong here."))


def answer(error: ApiError) -> Response:
    """The error as a response."""
    headers = {name.decode(): value.decode() for name, value in error.all_headers()}
    return Response(error.body(), error.kind.status, headers, media_type="application/json")
