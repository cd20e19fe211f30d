"""The public API: FastAPI owns its routes, schemas and documentation; what generates is taken out before it (`client_http.py`).

The generating routes are declared here too. They run the same pipeline, so the document is about what is served, and the
answers are the same over either transport; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from policies.failover.controls import Verdict
from policies.routing.model_choice import NEEDS
from serving.gateway import errors, http_errors, idempotency
from serving.gateway.asgi import AsgiExchange
from serving.gateway.auth import Authenticator
from serving.gateway.auto_model import MODEL_HEADER, NEEDS_HEADER, REASON_HEADER
from serving.gateway.context import ContextCounter
from serving.gateway.controls import Controls
from serving.gateway.conversation_routes import ConversationCard, DeletedConversation, NewConversation, conversation_router
from serving.gateway.conversations import Conversations
from serving.gateway.documents import json_answer, json_body, json_content, json_response
from serving.gateway.embeddings import EmbeddingsRequest
from serving.gateway.models import Models
from serving.gateway.pipeline import Pipeline
from serving.gateway.prompt_routes import ANSWERS as PROMPT_ANSWERS
from serving.gateway.prompt_routes import prompt_router
from serving.gateway.registered import PromptBook
from serving.gateway.releases import ReleaseBook
from serving.gateway.responses import CountRequest, ResponsesRequest
from serving.gateway.tenants import Tenant
from serving.gateway.usage_routes import UsageOf, usage_router
from serving.gateway.validate import ChatRequest, CompletionRequest
from serving.settings import AUTO_MODEL, ServedModel

_OWNER = "flotilla"
_GENERATING: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/embeddings": EmbeddingsRequest,
}
_GENERATION_FAILURES = (400, 401, 404, 408, 413, 415, 429, 431, 500, 502, 503, 504)
_STREAM_OR_DOCUMENT = {
    "description": "OpenAI's document for this path; with `stream: true` its events.",
    "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}},
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Names this request for 24 hours. Sent again with the same body it gets the first answer, and is neither "
    "generated nor billed again; while the first is being served it is `idempotency_in_flight`, with another body "
    "`idempotency_key_reused`.",
    "schema": {"type": "string", "pattern": f"^{idempotency.KEY_PATTERN}$"},
}
_NEEDS = {
    "name": NEEDS_HEADER.decode(),
    "in": "header",
    "required": False,
    "description": f"What a request for the model `{AUTO_MODEL}` needs, with commas between: {', '.join(NEEDS)}. "
    f"The answer says in `{MODEL_HEADER.decode()}` and `{REASON_HEADER.decode()}` which class answered, and why.",
    "schema": {"type": "string"},
}


class Model(msgspec.Struct):
    """A model that your key may use."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int
    """Context window in tokens, prompt and answer together; of `auto`, the largest of the classes it chooses among."""
    model_class: str
    """`auto` for the choice among the others."""
    aliases: list[str]
    """Other names that it answers to."""


class ModelList(msgspec.Struct):
    """The models that your key may use."""

    object: str
    data: list[Model]


class InputTokens(msgspec.Struct):
    """How many tokens a prompt has."""

    object: str
    input_tokens: int


class Health(msgspec.Struct):
    """Whether traffic should come, and why not."""

    healthy: bool
    reasons: list[str]


class Control(msgspec.Struct):
    """Whether a region is evacuated."""

    region: str
    evacuated: bool


_ANSWERS = (Model, ModelList, InputTokens, Health, Control, ConversationCard, DeletedConversation)
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "enum": sorted(errors.TABLE)},
            },
        }
    },
}


def build_app(
    pipeline: Pipeline,
    authenticator: Authenticator,
    models: Models,
    context: ContextCounter,
    releases: ReleaseBook,
    prompts: PromptBook,
    conversations: Conversations,
    unready: Callable[[], list[str]],
    controls: Controls,
    region_health: Callable[[], list[str]],
    usage: UsageOf,
    max_depth: int,
) -> FastAPI:
    """The public API as an ASGI application; `unready` gives the reasons why no traffic should come to this gateway, and
    `region_health` those why none should come to its region, none when it should; `usage` reads the ledger."""
    app = FastAPI(title="Flotilla", description="An OpenAI-compatible API.", version="1", redoc_url=None)
    http_errors.install(app)

    class Exchanged(Response):
        """A response that the pipeline writes."""

        def __init__(self, status_code: int = 200) -> None:  # FastAPI reads the default for its document
            self.status_code = status_code
            self.background = None

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            exchange = AsgiExchange(scope, receive, send)
            try:
                await pipeline.run(exchange)
            finally:
                exchange.close()

    def card(model: ServedModel) -> Model:
        release = releases.get(model.model_class)
        window = (
            model.context_window_tokens if release is None else min(model.context_window_tokens, release.context_window_tokens)
        )
        return Model(model.model_class, "model", 0, _OWNER, window, model.model_class, list(model.aliases))

    def auto_card(available: Sequence[ServedModel]) -> Model:
        return Model(AUTO_MODEL, "model", 0, _OWNER, max(card(model).max_model_len for model in available), AUTO_MODEL, [])

    async def tenant(request: Request) -> Tenant:
        return (await authenticator.authenticate(dict(request.headers.raw))).tenant

    async def body_of(request: Request) -> bytes:
        exchange = AsgiExchange(request.scope, request.receive, _to_nobody)
        try:
            return await pipeline.read_body(exchange)
        finally:
            exchange.close()

    @app.get(
        "/v1/models",
        tags=["models"],
        summary="List the models that your key may use",
        responses={**json_answer("ModelList"), **_failures(401, 503)},
    )
    async def list_models(request: Request) -> Response:
        available = models.available_to(await tenant(request))
        autos = [auto_card(available)] if available else []
        return json_response(ModelList("list", [*map(card, available), *autos]))

    @app.get(
        "/v1/models/{name}",
        tags=["models"],
        summary="One model",
        responses={**json_answer("Model"), **_failures(401, 404, 503)},
    )
    async def show_model(name: str, request: Request) -> Response:
        asking = await tenant(request)
        if name == AUTO_MODEL and (available := models.available_to(asking)):
            return json_response(auto_card(available))
        return json_response(card(models.choose(name, asking)))

    app.include_router(usage_router(tenant, usage), responses=_failures(400, 401, 503))
    app.include_router(
        prompt_router(tenant, prompts, models, context, body_of), responses=_failures(400, 401, 404, 409, 413, 503)
    )

    async def spending(request: Request) -> str:
        return await pipeline.spend_request(dict(request.headers.raw))

    app.include_router(
        conversation_router(conversations, spending, body_of, max_depth),
        responses=_failures(400, 401, 404, 408, 413, 429, 503),
    )

    @app.post(
        "/v1/responses/input_tokens",
        tags=["generation"],
        summary="Count the tokens of a prompt, tools included; costs nothing",
        responses={**json_answer("InputTokens"), **_failures(*_GENERATION_FAILURES)},
        openapi_extra={"requestBody": json_body("CountRequest")},
    )
    async def count(request: Request) -> Response:
        exchange = AsgiExchange(request.scope, request.receive, _to_nobody)
        try:
            return json_response(InputTokens("response.input_tokens", await pipeline.count(exchange)))
        finally:
            exchange.close()

    @app.get("/health", tags=["health"], summary="Whether traffic should come; needs no key", responses=json_answer("Health"))
    async def health() -> Response:
        reasons = unready()
        return json_response(Health(not reasons, reasons), 503 if reasons else 200)

    @app.get(
        "/region",
        tags=["health"],
        summary="Whether this region should receive traffic; needs no key",
        responses=json_answer("Health"),
    )
    async def region() -> Response:
        reasons = region_health()
        return json_response(Health(not reasons, reasons), 503 if reasons else 200)

    @app.get(
        "/controls/{region}",
        tags=["health"],
        summary="200 while that region is evacuated, 404 while not; needs no key",
        responses=json_answer("Control"),
    )
    async def control(region: str) -> Response:
        is_evacuated = controls.of(region).verdict is Verdict.EVACUATED
        return json_response(Control(region, is_evacuated), 200 if is_evacuated else 404)

    async def generate() -> Response:
        return Exchanged()

    for path, kind in _GENERATING.items():
        app.add_api_route(
            path,
            generate,
            methods=["POST"],
            tags=["generation"],
            summary="Generate, streamed or not",
            operation_id=kind.__name__,
            response_class=Exchanged,
            response_model=None,
            responses={200: _STREAM_OR_DOCUMENT, **_failures(*_GENERATION_FAILURES)},
            openapi_extra={"requestBody": json_body(kind.__name__), "parameters": [_IDEMPOTENCY_KEY, _NEEDS]},
        )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = FastAPI.openapi(app)
            kinds = [*_GENERATING.values(), CountRequest, NewConversation, *_ANSWERS, *PROMPT_ANSWERS]
            _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas, Error=_ERROR_SCHEMA)
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            for route in (route for methods in document["paths"].values() for route in methods.values()):
                route["responses"].pop("422", None)  # FastAPI's own, which `http_errors` answers with 400
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


async def _to_nobody(message: Any) -> None:
    """FastAPI sends this answer."""


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "description": ", ".join(f"`{kind.code}`" for kind in errors.TABLE.values() if kind.status == status),
            **json_content("Error"),
        }
        for status in statuses
    }
