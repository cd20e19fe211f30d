"""`/v1/prompts`: a tenant's registered prompts. Whose they are follows from the key alone; another tenant's are not there.

OpenAI's API names prompts (`prompt: {id, version}` of a response) and has no routes to make them, so these are ours: JSON in
OpenAI's manner, versions as strings.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import APIRouter, Depends, Query, Request, Response
from msgspec import Meta

from serving.gateway import errors, registered, validate
from serving.gateway.context import ContextCounter
from serving.gateway.documents import json_answer, json_body, json_response
from serving.gateway.errors import ApiError
from serving.gateway.messages import Closed, PromptRef, TextPart
from serving.gateway.messages import Message as AnyMessage
from serving.gateway.models import Models
from serving.gateway.prompt_table import (
    MAX_PACKED_BYTES,
    MAX_PROMPTS,
    Prompt,
    PromptChanged,
    PromptMissing,
    PromptTooLarge,
    TooManyPrompts,
)
from serving.gateway.registered import PromptBook
from serving.gateway.tenants import Tenant

log = structlog.get_logger()

_T = TypeVar("_T")
MAX_DEPTH = 8
"""Of bodies: a prompt is flat."""
VERSION = Query(pattern="^[0-9]{1,6}$", description="The latest if left out.")


class PromptMessage(Closed):
    """A message of a prompt: all that does not call tools."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Meta(min_length=1)] | Annotated[list[TextPart], Meta(min_length=1, max_length=1024)]


class NewPrompt(Closed):
    """POST /v1/prompts, and a further version of a prompt."""

    messages: Annotated[list[PromptMessage], Meta(min_length=1, max_length=64)]
    name: Annotated[str, Meta(max_length=128)] | None = None
    """For people; need not be the only one."""
    models: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(min_length=1, max_length=16)] | None = None
    """Model classes whose engines are kept warm; all that the tenant may use where none are named."""


class PromptAnswer(msgspec.Struct):
    """A version of a registered prompt."""

    id: str
    object: str
    version: str
    name: str
    created_at: int
    """Of this version, Unix seconds."""
    models: list[str]
    tokens: dict[str, int]
    """What it has as a conversation of its own, by class, as far as the classes are ready here and their templates take it so."""
    messages: list[dict[str, Any]]


class PromptEntry(msgspec.Struct):
    """A registered prompt in a list."""

    id: str
    object: str
    version: str
    """The latest."""
    name: str
    changed_at: int


class PromptList(msgspec.Struct):
    """Registered prompts, newest change first."""

    object: str
    data: list[PromptEntry]


class PromptDeleted(msgspec.Struct):
    """It is gone."""

    id: str
    object: str
    deleted: bool


ANSWERS = (NewPrompt, PromptAnswer, PromptList, PromptDeleted)
_new = msgspec.json.Decoder(NewPrompt)


def prompt_router(
    tenant_of: Callable[[Request], Awaitable[Tenant]],
    book: PromptBook,
    models: Models,
    context: ContextCounter,
    read_body: Callable[[Request], Awaitable[bytes]],
) -> APIRouter:
    """The routes; `read_body` gives a request's body within the limits on size and time."""
    router = APIRouter(tags=["prompts"])
    own, made = Depends(tenant_of), json_answer("PromptAnswer", 201)
    body = {"requestBody": json_body("NewPrompt")}

    async def asked(request: Request) -> NewPrompt:
        new: NewPrompt = validate.decoded(_new, await read_body(request), max_depth=MAX_DEPTH)
        return new

    async def told(prompt: Prompt, status: int = 200) -> Response:
        answer = PromptAnswer(
            prompt.id,
            "prompt",
            str(prompt.version),
            prompt.name,
            prompt.created_at_ms // 1000,
            list(prompt.models),
            {name: num for name in prompt.models if (num := await context.prompt_tokens(name, prompt.messages)) is not None},
            [message.plain() for message in prompt.messages],
        )
        return json_response(answer, status)

    @router.post(
        "/v1/prompts", status_code=201, summary="Register a prompt, for requests to name", openapi_extra=body, responses=made
    )
    async def create(request: Request, tenant: Tenant = own) -> Response:
        new = await asked(request)
        classes = _classes(models, tenant, new.models) or tuple(model.model_class for model in models.available_to(tenant))
        messages = _messages(new.messages)
        prompt = await _ask(book, lambda: book.table.create(tenant.id, new.name or "", classes, messages))
        book.on_registered()
        log.info("prompt_registered", tenant=tenant.id, prompt=prompt.id)
        return await told(prompt, 201)

    @router.get("/v1/prompts", summary="Your registered prompts", responses=json_answer("PromptList"))
    async def show_all(tenant: Tenant = own) -> Response:
        heads = await _ask(book, lambda: book.table.prompts_of(tenant.id))
        entries = [PromptEntry(head.id, "prompt", str(head.latest), head.name, head.changed_at_ms // 1000) for head in heads]
        return json_response(PromptList("list", entries))

    @router.get("/v1/prompts/{prompt_id}", summary="A registered prompt with its messages", responses=json_answer("PromptAnswer"))
    async def show(prompt_id: str, tenant: Tenant = own, version: Annotated[str | None, VERSION] = None) -> Response:
        return await told(await book.get(tenant.id, PromptRef(prompt_id, version)))

    @router.post(
        "/v1/prompts/{prompt_id}", status_code=201, summary="Register its next version", openapi_extra=body, responses=made
    )
    async def add_version(prompt_id: str, request: Request, tenant: Tenant = own) -> Response:
        new = await asked(request)
        classes, messages = _classes(models, tenant, new.models), _messages(new.messages)
        prompt = await _ask(book, lambda: book.table.add_version(tenant.id, prompt_id, new.name, classes, messages))
        book.forget(tenant.id, prompt_id)
        book.on_registered()
        log.info("prompt_registered", tenant=tenant.id, prompt=prompt.id, version=prompt.version)
        return await told(prompt, 201)

    @router.delete(
        "/v1/prompts/{prompt_id}", summary="Delete a prompt with all its versions", responses=json_answer("PromptDeleted")
    )
    async def delete(prompt_id: str, tenant: Tenant = own) -> Response:
        await _ask(book, lambda: book.table.delete(tenant.id, prompt_id))
        book.forget(tenant.id, prompt_id)
        log.info("prompt_deleted", tenant=tenant.id, prompt=prompt_id)
        return json_response(PromptDeleted(prompt_id, "prompt.deleted", deleted=True))

    return router


def _classes(models: Models, tenant: Tenant, named: Sequence[str] | None) -> tuple[str, ...] | None:
    """The classes behind names of models, each once.

    Raises:
        ApiError: `model_not_found`.
    """
    return None if named is None else tuple(dict.fromkeys(models.choose(name, tenant).model_class for name in named))


def _messages(given: Sequence[PromptMessage]) -> tuple[AnyMessage, ...]:
    return tuple(AnyMessage(message.role, message.content) for message in given)


async def _ask(book: PromptBook, call: Callable[[], _T]) -> _T:
    """What the table says.

    Raises:
        ApiError: what it refuses, or that it does not answer.
    """
    try:
        return await book.in_thread(call)
    except PromptMissing as error:
        raise registered.not_found(str(error)) from error
    except PromptTooLarge as error:
        message = f"The messages have {error} bytes, compressed; a prompt may have {MAX_PACKED_BYTES}."
        raise ApiError(errors.PROMPT_TOO_LARGE, message, param="messages") from error
    except TooManyPrompts as error:
        raise ApiError(errors.TOO_MANY_PROMPTS, f"You have {MAX_PROMPTS} prompts; delete some to register more.") from error
    except PromptChanged as error:
        message = f"Versions of `{error}` are being registered by others at the moment; try again."
        raise ApiError(errors.PROMPT_CHANGED, message, retry_after_s=1) from error
    except (BotoCoreError, ClientError) as error:
        log.warning("prompts_unavailable", error=str(error))
        raise registered.unavailable() from error
