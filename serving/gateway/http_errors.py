"""FastAPI's own refusals in OpenAI's shape, so that a client meets one kind of error whoever refused it."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving.gateway import errors
from serving.gateway.errors import ApiError

log = structlog.get_logger()

_KINDS = {"extra_forbidden": errors.UNSUPPORTED_PARAMETER, "missing": errors.MISSING_PARAMETER}
"""What pydantic calls a mistake, where it is not simply a value."""


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
        return answer(invalid_value(error))

    @app.exception_handler(Exception)
    async def broke(request: Request, error: Exception) -> Response:
        log.error("route_broke", path=request.url.path, exc_info=error)
        return answer(ApiError(errors.INTERNAL_ERROR, "Something went wrong here."))


def invalid_value(error: RequestValidationError) -> ApiError:
    """All that is wrong with a request in one refusal: `param` names the first field, `message` has a sentence for each. The code
    is the kind of mistake where all are of one kind."""
    found = error.errors()
    params = [".".join(str(part) for part in one["loc"][1:]) for one in found]
    kinds = {_KINDS.get(one["type"], errors.INVALID_VALUE) for one in found}
    message = " ".join(f"`{param or 'body'}`: {one['msg']}." for param, one in zip(params, found, strict=True))
    return ApiError(kinds.pop() if len(kinds) == 1 else errors.INVALID_VALUE, message, param=params[0] or None)


def answer(error: ApiError) -> Response:
    """The error as a response."""
    headers = {name.decode(): value.decode() for name, value in error.all_headers()}
    return Response(error.body(), error.kind.status, headers, media_type="application/json")
