"""`model: "auto"`: reads what decides out of a request, and places it in the window of the class that the rule gives it.

The rule itself is `policies.routing.model_choice`, bounded by what the tenant may use and by its floor and ceiling. A prompt that
does not fit the chosen window goes to the next class that may answer, and is refused where it fits none. Only requests for `auto`
come here: all others pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from policies.routing.model_choice import NEEDS, Features, ModelChoice, Need, decide_model
from serving.gateway import errors
from serving.gateway.auth import Principal
from serving.gateway.context import Context, ContextCounter, ContextTooLong, not_ready
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Headers
from serving.gateway.models import Models
from serving.gateway.validate import ChatRequest, Request
from serving.settings import AUTO_MODEL, ServedModel

NEEDS_HEADER = b"x-flotilla-needs"
MODEL_HEADER, REASON_HEADER = b"x-flotilla-model", b"x-flotilla-model-reason"
"""Of the answer: the class, and why that one."""
NEEDS_METADATA = "flotilla_needs"
"""`metadata` that declares needs: for clients that cannot set a header."""
_CODE_FENCE = "```"


class AutoModel:
    """Chooses classes and places requests in them."""

    def __init__(self, models: Models, context: ContextCounter) -> None:
        self._models = models
        self._context = context

    async def place(
        self, request: Request, principal: Principal, headers: Mapping[bytes, bytes], *, leaves_room: bool = False
    ) -> tuple[ServedModel, Context, ModelChoice]:
        """The class that answers `request`, its place there, and why that class.

        Raises:
            ApiError: `invalid_value` for a need that is none, `model_not_found` where the tenant may use no class,
                `model_not_ready`, or what `ContextCounter.place` says of the class with the largest window.
        """
        needs = needs_of(request, headers)
        served = {model.model_class: model for model in self._models.available_to(principal.tenant)}
        available = [model_class for model_class in served if self._context.is_ready(model_class)]
        if served and not available:
            raise not_ready(AUTO_MODEL)
        features = features_of(request, needs, self._context.estimate(self._models.smallest, request))
        tenant = principal.tenant
        choice = decide_model(features, available, floor=tenant.auto_floor, ceiling=tenant.auto_ceiling)
        if choice is None:
            raise errors.model_not_found(AUTO_MODEL)
        refusals: list[ContextTooLong] = []
        while choice is not None:
            model = served[choice.model_class]
            try:
                context = await self._context.place(model, request, principal.cache_salt, leaves_room=leaves_room)
                return model, context, choice
            except ContextTooLong as error:
                error.choice = choice
                refusals.append(error)
            choice = choice.next()
        raise max(refusals, key=lambda refusal: refusal.window_tokens)


def needs_of(request: Request, headers: Mapping[bytes, bytes]) -> frozenset[Need]:
    """The needs that the client declares, in the header, in `metadata`, or in both; none where it declares none.

    Raises:
        ApiError: `invalid_value`, one of them is not known.
    """
    found: set[Need] = set()
    in_header = headers.get(NEEDS_HEADER, b"").decode("latin-1")
    in_metadata = (request.metadata or {}).get(NEEDS_METADATA, "")
    for param, text in ((NEEDS_HEADER.decode(), in_header), (f"metadata.{NEEDS_METADATA}", in_metadata)):
        for need in filter(None, (part.strip() for part in text.split(","))):
            if need not in NEEDS:
                message = f"`{param}`: `{need:.40}` is no need that is known; there are {', '.join(NEEDS)}."
                raise ApiError(errors.INVALID_VALUE, message, param=param)
            found.add(need)
    return frozenset(found)


def features_of(request: Request, needs: frozenset[Need], prompt_tokens: int) -> Features:
    """What of `request` decides."""
    if isinstance(request, ChatRequest):
        has_fence = any(_CODE_FENCE in (message.text or "") for message in request.messages)
        has_tools = request.tools is not None and request.tool_choice != "none"
    else:
        has_fence, has_tools = _CODE_FENCE in (request.prompt_text or ""), False
    has_format = request.response_format is not None and request.response_format.type != "text"
    return Features(prompt_tokens, needs, has_fence, has_tools, has_format, request.output_limit)


def choice_headers(choice: ModelChoice | None) -> Headers:
    """What the client is told of the choice; nothing where it chose itself."""
    if choice is None:
        return ()
    return (
        (MODEL_HEADER, choice.model_class.encode()),
        (REASON_HEADER, f"{choice.reason}; {choice.features}".encode()),
    )
