"""`POST /v1/embeddings`: vectors of texts, passed through from engines that offer them, and billed for their input.

No engine is known to offer them before it is asked: vLLM has the path only for models that pool, and says 404 for those that
generate. That is told as `unsupported_endpoint`. The answer is one document, not a stream, and has its counts at its end.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.gateway import validate
from serving.gateway.messages import Closed, ShortText
from serving.gateway.validate import TokenId

MAX_INPUTS = 2048
"""OpenAI's bound."""
_Text = Annotated[str, Meta(min_length=1)]
_Ids = Annotated[list[TokenId], Meta(min_length=1)]


class EmbeddingsRequest(Closed, kw_only=True):
    """POST /v1/embeddings."""

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    input: _Text | Annotated[list[_Text | TokenId | _Ids], Meta(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    user: ShortText | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """What each vector is made of; a list of numbers is one input."""
        if isinstance(self.input, str):
            return [self.input]
        ids = [item for item in self.input if isinstance(item, int)]
        if len(ids) == len(self.input):
            return [ids]
        return [item if not isinstance(item, int) else [item] for item in self.input]

    @property
    def is_streamed(self) -> bool:
        """There is nothing to stream."""
        return False

    @property
    def num_choices(self) -> int:
        """Answers that tokens are generated for."""
        return 0


_decoder = msgspec.json.Decoder(EmbeddingsRequest)


def parse(body: bytes, *, max_depth: int) -> EmbeddingsRequest:
    """The request in `body`.

    Raises:
        ApiError: it is not one that we serve; names the field.
    """
    request: EmbeddingsRequest = validate.decoded(_decoder, body, max_depth=max_depth)
    return request


def engine_body(request: EmbeddingsRequest, *, model: str, cache_salt: str) -> bytes:
    """The body for the engine."""
    fields: dict[str, Any] = {"model": model, "input": request.input, "cache_salt": cache_salt}
    fields |= {"encoding_format": request.encoding_format, "dimensions": request.dimensions}
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
