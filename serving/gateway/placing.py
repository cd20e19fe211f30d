"""models → context: which class answers a request, and how it fits that class's window; shortened where it has to be and may."""

from __future__ import annotations

from serving.gateway import settle, validate
from serving.gateway.auth import Principal
from serving.gateway.auto_model import AutoModel
from serving.gateway.calls import Call
from serving.gateway.compaction import Ask, Compactor, strategy_of
from serving.gateway.context import Context, ContextCounter, ContextTooLong
from serving.gateway.embeddings import EmbeddingsRequest
from serving.gateway.exchange import Exchange
from serving.gateway.models import Models
from serving.gateway.validate import ChatRequest
from serving.settings import AUTO_MODEL, ServedModel


class Placing:
    """Places requests."""

    def __init__(self, models: Models, context: ContextCounter) -> None:
        self._models = models
        self._context = context
        self._auto = AutoModel(models, context)
        self._compactor = Compactor(models, context)

    async def place(
        self,
        exchange: Exchange,
        call: Call,
        principal: Principal,
        request: validate.Request | EmbeddingsRequest,
        ask: Ask,
    ) -> tuple[ServedModel, validate.Request | EmbeddingsRequest, Context]:
        """The class that answers, the request as it fits, and its place in the class's window; `call` is told of both choices.
        `ask` gives a summary, where one is wanted.

        Raises:
            ApiError, ClientGone: as they say.
        """
        if isinstance(request, EmbeddingsRequest):
            model = self._models.choose(request.model, principal.tenant)
            call.model = model.model_class
            return model, request, await self._context.place_inputs(model, request)
        strategy = principal.tenant.context if isinstance(request, ChatRequest) else "refuse"
        if isinstance(request, ChatRequest):
            strategy = strategy_of(request, exchange.headers, strategy)
        leaves_room = strategy != "refuse"
        try:
            if request.model == AUTO_MODEL:
                model, context, call.choice = await self._auto.place(
                    request, principal, exchange.headers, leaves_room=leaves_room
                )
                call.model = model.model_class
            else:
                model = self._models.choose(request.model, principal.tenant)
                call.model = model.model_class
                context = await self._context.place(model, request, principal.cache_salt, leaves_room=leaves_room)
            return model, request, context
        except ContextTooLong as too_long:
            if strategy == "refuse" or not isinstance(request, ChatRequest):
                raise
            call.model, call.choice = too_long.model.model_class, too_long.choice
            call.event_id = call.event_id or settle.mint_event_id()
            request, context, call.compacted = await self._compactor.compact(too_long, request, strategy, principal, ask)
            return too_long.model, request, context

    async def count(self, exchange: Exchange, principal: Principal, chat: ChatRequest) -> int:
        """Tokens of a prompt, as the class that it asks for counts them.

        Raises:
            ApiError: as `place` says.
        """
        if chat.model == AUTO_MODEL:
            return (await self._auto.place(chat, principal, exchange.headers))[1].prompt_tokens
        model = self._models.choose(chat.model, principal.tenant)
        return (await self._context.place(model, chat, principal.cache_salt)).prompt_tokens
