"""Every way a request can be refused or fail, as the client sees it: OpenAI's shape with a code that never changes its meaning.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}}

Clients may act on `code`; `message` is for people. Whoever refuses a request raises `ApiError` with one of the kinds below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class ErrorKind:
    """One row of the table: the stable code, the HTTP status, OpenAI's type, and when it is answered (docs/api.md shows them)."""

    code: str
    status: int
    type: str
    when: str


_REQUEST, _SERVER = "invalid_request_error", "server_error"

INVALID_API_KEY = ErrorKind("invalid_api_key", 401, _REQUEST, "The key is missing, misspelt, unknown, expired or revoked.")
AUTH_UNAVAILABLE = ErrorKind(
    "auth_unavailable", 503, _SERVER, "The key is not known here, and the table of keys does not answer."
)

INVALID_HTTP = ErrorKind(
    "invalid_http", 400, _REQUEST, "Not HTTP, or HTTP that two readers may understand differently; the connection is closed."
)
INVALID_JSON = ErrorKind("invalid_json", 400, _REQUEST, "The body is not JSON.")
INVALID_UTF8 = ErrorKind("invalid_utf8", 400, _REQUEST, "The body is not UTF-8.")
JSON_TOO_DEEP = ErrorKind("json_too_deep", 400, _REQUEST, "The body is nested deeper than 64 levels.")
INVALID_VALUE = ErrorKind("invalid_value", 400, _REQUEST, "A field has a value that is not served; `param` names it.")
MISSING_PARAMETER = ErrorKind("missing_required_parameter", 400, _REQUEST, "A field is missing; `param` names it.")
UNSUPPORTED_PARAMETER = ErrorKind(
    "unsupported_parameter", 400, _REQUEST, "A field is not known, or not served; `param` names it."
)
BODY_TOO_LARGE = ErrorKind("request_too_large", 413, _REQUEST, "The body is larger than a mebibyte.")
BODY_TOO_SLOW = ErrorKind("request_timeout", 408, _REQUEST, "Head or body did not arrive in time.")
UNSUPPORTED_ENCODING = ErrorKind("unsupported_content_encoding", 415, _REQUEST, "The body is compressed.")
HEADERS_TOO_LARGE = ErrorKind("headers_too_large", 431, _REQUEST, "The headers have more than 16 KiB.")
NOT_FOUND = ErrorKind("not_found", 404, _REQUEST, "There is nothing at this path.")
METHOD_NOT_ALLOWED = ErrorKind("method_not_allowed", 405, _REQUEST, "The path is there, the method is not.")
MODEL_NOT_FOUND = ErrorKind("model_not_found", 404, _REQUEST, "No such model, or not this tenant's: the two look alike.")
MODEL_NOT_READY = ErrorKind(
    "model_not_ready", 503, _SERVER, "No release of the model has been read yet, so prompts cannot be counted."
)

UNSUPPORTED_ENDPOINT = ErrorKind(
    "unsupported_endpoint", 400, _REQUEST, "The model's engine does not offer this: embeddings of a model that generates."
)

CONTEXT_LENGTH_EXCEEDED = ErrorKind(
    "context_length_exceeded", 400, _REQUEST, "Prompt and answer do not fit the model's window; the message has the numbers."
)
REQUEST_EXCEEDS_LIMIT = ErrorKind(
    "request_exceeds_limit",
    400,
    _REQUEST,
    "The request alone is more than the tenant's limit ever lets in at once: waiting will not help.",
)
RATE_LIMIT_EXCEEDED = ErrorKind(
    "rate_limit_exceeded", 429, "rate_limit_error", "The tenant's limit is used up; `Retry-After` says for how long."
)

INSUFFICIENT_QUOTA = ErrorKind(
    "insufficient_quota",
    429,
    "insufficient_quota",
    "The tenant's budget of the day or month is spent; `Retry-After` says until when.",
)
BUDGET_UNKNOWN = ErrorKind(
    "budget_unknown", 503, _SERVER, "What the tenant's budget has left cannot be told, so nothing is generated."
)

CONVERSATION_NOT_FOUND = ErrorKind(
    "conversation_not_found", 404, _REQUEST, "No such conversation, or not this tenant's, or it has expired: they look alike."
)
CONVERSATION_BUSY = ErrorKind(
    "conversation_busy", 409, _REQUEST, "A turn of the conversation is being answered; `Retry-After` says when to ask again."
)
CONVERSATION_CHANGED = ErrorKind(
    "conversation_changed",
    409,
    _REQUEST,
    "Another turn of the conversation was stored while this one was answered, or it was deleted: this one is billed, not stored.",
)
CONVERSATION_FULL = ErrorKind("conversation_full", 400, _REQUEST, "The conversation has 4096 messages or four mebibytes.")
CONVERSATION_UNAVAILABLE = ErrorKind(
    "conversation_unavailable",
    503,
    _SERVER,
    "Stored conversations cannot be read or written; a turn that was answered already is billed, and not stored.",
)

IDEMPOTENCY_IN_FLIGHT = ErrorKind(
    "idempotency_in_flight", 409, _REQUEST, "A request with this Idempotency-Key is being served, or its gateway is not back yet."
)
IDEMPOTENCY_RESULT_LOST = ErrorKind(
    "idempotency_result_lost", 410, _REQUEST, "The answer to this Idempotency-Key was lost; only a new key generates anew."
)
IDEMPOTENCY_KEY_REUSED = ErrorKind(
    "idempotency_key_reused", 422, _REQUEST, "The Idempotency-Key was used with another request within 24 hours."
)
IDEMPOTENCY_UNAVAILABLE = ErrorKind(
    "idempotency_unavailable", 503, _SERVER, "Whether the Idempotency-Key was used cannot be told, so nothing is generated."
)
PROMPT_NOT_FOUND = ErrorKind(
    "prompt_not_found", 404, _REQUEST, "No such registered prompt or version, or not this tenant's: the two look alike."
)
PROMPT_TOO_LARGE = ErrorKind("prompt_too_large", 413, _REQUEST, "The prompt's messages are larger than a table's item.")
TOO_MANY_PROMPTS = ErrorKind(
    "too_many_prompts", 409, _REQUEST, "The tenant has registered as many prompts as it may; delete some."
)
PROMPT_CHANGED = ErrorKind("prompt_changed", 409, _REQUEST, "Others register versions of the prompt at the same time; try again.")
PROMPTS_UNAVAILABLE = ErrorKind(
    "prompts_unavailable", 503, _SERVER, "The prompts' table does not answer; requests that name no prompt are served."
)
METERING_UNAVAILABLE = ErrorKind("metering_unavailable", 503, _SERVER, "Usage cannot be made durable, so nothing is generated.")
ENGINE_UNAVAILABLE = ErrorKind(
    "engine_unavailable", 503, _SERVER, "No engine is ready, or those asked broke off before their first token."
)
OVERLOADED = ErrorKind(
    "overloaded",
    503,
    _SERVER,
    "All engines of the model are full and the request would wait too long; `Retry-After` says when to come back.",
)
REQUEST_QUARANTINED = ErrorKind(
    "request_quarantined",
    400,
    _REQUEST,
    "Two engines broke off while they worked on this very request; it is not given to a third.",
)
REJECTED_BY_ENGINE = ErrorKind(
    "rejected_by_engine", 400, _REQUEST, "The engine finds fault with the request; the message is its own."
)
ENGINE_ERROR = ErrorKind("engine_error", 502, _SERVER, "An engine answered, and not in a way that can be served.")
ENGINE_LOST = ErrorKind(
    "engine_lost", 502, _SERVER, "The engine broke off or went silent after its first token; what had arrived is billed."
)
ENGINE_TIMEOUT = ErrorKind("engine_timeout", 504, _SERVER, "No first token within the time limit.")
DRAINING = ErrorKind("draining", 503, _SERVER, "This gateway is stopping, or drained; ask again.")
INTERNAL_ERROR = ErrorKind("internal_error", 500, _SERVER, "A defect here; quote the request id.")

# The admin API's own.
INVALID_ADMIN_KEY = ErrorKind("invalid_admin_key", 401, _REQUEST, "The admin API's key is missing or wrong.")
TENANT_NOT_FOUND = ErrorKind("tenant_not_found", 404, _REQUEST, "No such tenant.")
TENANT_EXISTS = ErrorKind("tenant_exists", 409, _REQUEST, "A tenant of this id is there already.")
TENANT_CHANGED = ErrorKind("tenant_changed", 409, _REQUEST, "Somebody else changed the tenant at the same time; look again.")
REPLICA_NOT_FOUND = ErrorKind("replica_not_found", 404, _REQUEST, "This region has no gateway or engine of this name.")
NOT_EXCLUDED = ErrorKind("not_excluded", 404, _REQUEST, "It is not drained, or not in quarantine, so that cannot be ended.")
PLAN_NOT_FOUND = ErrorKind("plan_not_found", 404, _REQUEST, "No such plan.")
PLAN_EXISTS = ErrorKind("plan_exists", 409, _REQUEST, "A plan of this id is there already.")
PLAN_CHANGED = ErrorKind("plan_changed", 409, _REQUEST, "Somebody else changed the plan at the same time; look again.")
PLAN_IN_USE = ErrorKind("plan_in_use", 409, _REQUEST, "Tenants are on the plan, so it cannot be deleted.")
KEY_NOT_FOUND = ErrorKind("key_not_found", 404, _REQUEST, "The tenant has no such key.")
KEY_DEAD = ErrorKind("key_dead", 409, _REQUEST, "The key is revoked or has expired, so it cannot be rotated; make a new one.")
TABLE_UNAVAILABLE = ErrorKind("table_unavailable", 503, _SERVER, "The tenants' table does not answer.")
NOT_STARTED = ErrorKind("not_started", 503, _SERVER, "The gateway has not read its secrets yet.")

TABLE: dict[str, ErrorKind] = {kind.code: kind for kind in list(globals().values()) if isinstance(kind, ErrorKind)}


class ApiError(Exception):
    """A request ends here with this answer."""

    def __init__(self, kind: ErrorKind, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: list[tuple[bytes, bytes]] = []
        """Sent with the answer besides Retry-After, such as what is left of a limit."""

    def body(self) -> bytes:
        """The answer's body, compact JSON."""
        error = {"message": self.message, "type": self.kind.type, "param": self.param, "code": self.kind.code}
        return msgspec.json.encode({"error": error})

    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of this answer alone. Retry-After is in whole seconds, rounded up, at least 1."""
        if self.retry_after_s is None:
            return self.headers
        return [*self.headers, (b"retry-after", b"%d" % max(1, math.ceil(self.retry_after_s)))]


def internal_error() -> ApiError:
    """A defect of ours ends the request."""
    return ApiError(INTERNAL_ERROR, "Something went wrong here. Quote the request id when you report it.")


def model_not_found(name: str) -> ApiError:
    """A model that nobody serves, or that this tenant may not use: the two look alike."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError(MODEL_NOT_FOUND, message, param="model")
