"""JSON documents that routes answer with, and how the OpenAPI document tells of them: by the name of their schema."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Response


def json_response(answer: msgspec.Struct, status: int = 200) -> Response:
    """`answer` as a response."""
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def json_content(schema: str) -> dict[str, Any]:
    """The content of a body or an answer that is a `schema`."""
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def json_body(schema: str) -> dict[str, Any]:
    """The `requestBody` that must be a `schema`."""
    return {"required": True, **json_content(schema)}


def json_answer(schema: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: a `schema` where it succeeds."""
    return {status: {"description": "As asked.", **json_content(schema)}}
