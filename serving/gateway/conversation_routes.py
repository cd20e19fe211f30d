"""`/v1/conversations`: conversations are made, shown and deleted here; chats and responses that name one go on with it.

As far as it goes this is OpenAI's API of the same name, so the `openai` client's `conversations.create`, `retrieve` and `delete`
work; what was said is shown with the conversation, as messages of a chat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta
from starlette.responses import Response

from serving.gateway import validate
from serving.gateway.conversation_store import MAX_TTL_S, Conversation
from serving.gateway.conversations import MAX_MESSAGES, Conversations
from serving.gateway.documents import json_answer, json_body, json_response
from serving.gateway.messages import Closed
from serving.gateway.responses import Item, messages_of

DEFAULT_TTL_S = 7 * 86_400
SpendRequest = Callable[[Request], Awaitable[str]]
"""The tenant that asks; counts one of its requests."""
ReadBody = Callable[[Request], Awaitable[bytes]]


class NewConversation(Closed):
    """A conversation to be made."""

    items: Annotated[list[Item], Meta(max_length=MAX_MESSAGES)] | None = None
    """What was said so far, such as the system's message."""
    metadata: validate.Metadata | None = None
    ttl_s: Annotated[int, Meta(ge=60, le=MAX_TTL_S)] = DEFAULT_TTL_S
    """It is forgotten so long after its last turn."""


class ConversationCard(msgspec.Struct):
    """A conversation."""

    id: str
    object: str
    created_at: int
    """Unix seconds."""
    expires_at: int
    """Later with every turn."""
    metadata: dict[str, str]
    revision: int
    """Counts what was stored: 1 when it is made, one more with every turn."""
    messages: list[dict[str, Any]]


class DeletedConversation(msgspec.Struct):
    """A conversation is forgotten."""

    id: str
    object: str
    deleted: bool


_decoder = msgspec.json.Decoder(NewConversation)


def conversation_router(conversations: Conversations, tenant_of: SpendRequest, read_body: ReadBody, max_depth: int) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

    @router.post(
        "",
        summary="Make a conversation that chats can go on with",
        openapi_extra={"requestBody": json_body("NewConversation")},
        responses=json_answer("ConversationCard"),
    )
    async def create(request: Request) -> Response:
        tenant = await tenant_of(request)
        body = await read_body(request)
        new: NewConversation = validate.decoded(_decoder, body, max_depth=max_depth)
        messages = messages_of(new.items or [], "items")
        validate.check_messages(messages)
        return json_response(_card(await conversations.create(tenant, messages, new.metadata or {}, new.ttl_s)))

    @router.get(
        "/{conversation_id}", summary="A conversation and all that was said in it", responses=json_answer("ConversationCard")
    )
    async def show(conversation_id: str, request: Request) -> Response:
        return json_response(_card(await conversations.get(await tenant_of(request), conversation_id)))

    @router.delete("/{conversation_id}", summary="Forget a conversation", responses=json_answer("DeletedConversation"))
    async def delete(conversation_id: str, request: Request) -> Response:
        await conversations.delete(await tenant_of(request), conversation_id)
        return json_response(DeletedConversation(conversation_id, "conversation.deleted", True))

    return router


def _card(conversation: Conversation) -> ConversationCard:
    return ConversationCard(
        conversation.id,
        "conversation",
        conversation.created_at_s,
        conversation.expires_at_s,
        dict(conversation.metadata),
        conversation.revision,
        [message.plain() for message in conversation.messages],
    )
