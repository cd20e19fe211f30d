"""JSON schemas that an answer must follow: bounded, since an engine compiles each to a grammar before it generates. No I/O."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.messages import Closed, ShortText, Tool

MAX_SCHEMA_BYTES = 16 * 1024
MAX_SCHEMA_DEPTH = 16
"""These keep one request from taking an engine down."""
MAX_TOOLS_BYTES = 128 * 1024
"""Of the schemas of all tools of one request: a call that is required may be of any of them, so they make one grammar."""

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class JsonSchema(Closed):
    """A schema that the answer must follow."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
    schema: msgspec.Raw
    description: ShortText | None = None
    strict: bool | None = None


class ResponseFormat(Closed):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def is_deeper_than(body: bytes, max_depth: int) -> bool:
    """Arrays and objects in `body` nest more than `max_depth` deep. Linear in its length, whatever it holds; not valid JSON is
    measured as far as its brackets go. `[[1], "[["]` is two deep."""
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return False
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    return any(depth > max_depth for depth in accumulate(map(_STEPS.__getitem__, brackets)))


def check_format(response_format: ResponseFormat) -> None:
    """Whether type and schema belong together.

    Raises:
        ApiError: they do not, or the schema is too large.
    """
    wanted, given = response_format.type == "json_schema", response_format.json_schema
    if wanted != (given is not None):
        reason = "`response_format.json_schema` belongs to the type `json_schema`, which needs it."
        raise ApiError(errors.INVALID_VALUE, reason, param="response_format.json_schema")
    if given is not None:
        check_schema(bytes(given.schema), "response_format.json_schema.schema")


def check_tools(tools: list[Tool]) -> None:
    """Whether an engine can take the tools: distinct names, schemas within bounds.

    Raises:
        ApiError: it cannot.
    """
    schemas = [bytes(tool.function.parameters) for tool in tools]
    for number, schema in enumerate(schemas):
        if schema != b"null":
            check_schema(schema, f"tools[{number}].function.parameters")
    if sum(map(len, schemas)) > MAX_TOOLS_BYTES:
        raise ApiError(errors.INVALID_VALUE, f"The tools' schemas may have {MAX_TOOLS_BYTES} bytes in all.", param="tools")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(errors.INVALID_VALUE, "Each tool needs a name of its own.", param="tools")


def check_schema(schema: bytes, param: str) -> None:
    """Whether a schema is an object within bounds.

    Raises:
        ApiError: `invalid_value` of `param`.
    """
    if not schema.lstrip().startswith(b"{"):
        raise ApiError(errors.INVALID_VALUE, "A JSON schema must be an object.", param=param)
    if len(schema) > MAX_SCHEMA_BYTES or is_deeper_than(schema, MAX_SCHEMA_DEPTH):
        reason = f"A JSON schema may have {MAX_SCHEMA_BYTES} bytes and {MAX_SCHEMA_DEPTH} levels."
        raise ApiError(errors.INVALID_VALUE, reason, param=param)
