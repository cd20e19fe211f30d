"""What vLLM answers besides generations: models, tokens, adapters, health, metrics."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from serving.twin.asked import Message, invalid_body
from serving.twin.connection import Connection, Request
from serving.twin.refusal import Refusal
from serving.twin.tools import ToolBody

if TYPE_CHECKING:
    from serving.twin.twin import Twin

VERSION = "0.32.0"
"""Of the vLLM that a twin is like."""
METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


class _TokenizeBody(msgspec.Struct):
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[ToolBody] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class _DetokenizeBody(msgspec.Struct):
    tokens: list[int]


class _AdapterBody(msgspec.Struct):
    lora_name: str
    lora_path: str


class _AdapterName(msgspec.Struct):
    lora_name: str


def answer(twin: Twin, request: Request, connection: Connection) -> None:
    """Answer one of vLLM's paths."""
    methods = _ROUTES.get(request.path)
    if methods is None:
        connection.respond(404, b'{"detail":"Not Found"}')
    elif request.method not in methods:
        connection.respond(405, b'{"detail":"Method Not Allowed"}', extra=f"allow: {', '.join(methods)}\r\n")
    else:
        try:
            methods[request.method](twin, request, connection)
        except Refusal as refusal:
            connection.respond(refusal.status, refusal.document())
        except msgspec.MsgspecError as error:
            connection.respond(400, invalid_body(error).document())


def _health(twin: Twin, request: Request, connection: Connection) -> None:
    connection.respond(503 if twin.faults.switches.dead else 200, b"", None)


def _version(twin: Twin, request: Request, connection: Connection) -> None:
    connection.respond(200, msgspec.json.encode({"version": VERSION}))


def _load(twin: Twin, request: Request, connection: Connection) -> None:
    connection.respond(200, b'{"server_load":0}')


def _metrics(twin: Twin, request: Request, connection: Connection) -> None:
    if twin.faults.switches.no_metrics:
        connection.respond(404, b'{"detail":"Not Found"}')
    else:
        connection.respond(200, twin.metrics(), METRICS_TYPE)


def _models(twin: Twin, request: Request, connection: Connection) -> None:
    config = twin.config
    models = [_card(twin, config.served_name, config.model_root, None, config.limits.max_model_len)]
    models += [_card(twin, name, path, config.served_name, None) for name, (path, _) in twin.adapters.items()]
    connection.respond(200, msgspec.json.encode({"object": "list", "data": models}))


def _card(twin: Twin, name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{secrets.token_hex(8)}",
        "object": "model_permission",
        "created": twin.started_s,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {"id": name, "object": "model", "created": twin.started_s, "owned_by": "vllm", "root": root, "parent": parent}
    return {**card, "max_model_len": max_model_len, "permission": [permission]}


def _tokenize(twin: Twin, request: Request, connection: Connection) -> None:
    body = msgspec.json.decode(request.body, type=_TokenizeBody)
    if body.messages is not None:
        tools = [tool.plain() for tool in body.tools] if body.tools else None
        text = twin.vocabulary.template.render([message.plain() for message in body.messages], tools)
        ids = twin.vocabulary.encode(text, add_special_tokens=False)
    else:
        ids = twin.vocabulary.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
    document = {"count": len(ids), "max_model_len": twin.config.limits.max_model_len, "tokens": ids}
    strs = twin.vocabulary.token_strs(ids) if body.return_token_strs else None
    connection.respond(200, msgspec.json.encode({**document, "token_strs": strs}))


def _detokenize(twin: Twin, request: Request, connection: Connection) -> None:
    body = msgspec.json.decode(request.body, type=_DetokenizeBody)
    connection.respond(200, msgspec.json.encode({"prompt": twin.vocabulary.decode(body.tokens)}))


def _load_adapter(twin: Twin, request: Request, connection: Connection) -> None:
    body = msgspec.json.decode(request.body, type=_AdapterBody)
    twin.load_adapter(body.lora_name, body.lora_path)
    connection.respond(200, f"Success: LoRA adapter '{body.lora_name}' added successfully.".encode(), None)


def _unload_adapter(twin: Twin, request: Request, connection: Connection) -> None:
    body = msgspec.json.decode(request.body, type=_AdapterName)
    twin.unload_adapter(body.lora_name)
    connection.respond(200, f"Success: LoRA adapter '{body.lora_name}' removed successfully.".encode(), None)


def _generation_only_by_post(twin: Twin, request: Request, connection: Connection) -> None:
    raise AssertionError("POST is the twin's own to answer")


_Handler = Callable[["Twin", Request, Connection], None]
_ROUTES: Mapping[str, Mapping[str, _Handler]] = {
    "/health": {"GET": _health},
    "/ping": {"GET": _health, "POST": _health},
    "/version": {"GET": _version},
    "/load": {"GET": _load},
    "/metrics": {"GET": _metrics},
    "/v1/models": {"GET": _models},
    "/v1/chat/completions": {"POST": _generation_only_by_post},
    "/v1/completions": {"POST": _generation_only_by_post},
    "/tokenize": {"POST": _tokenize},
    "/detokenize": {"POST": _detokenize},
    "/v1/load_lora_adapter": {"POST": _load_adapter},
    "/v1/unload_lora_adapter": {"POST": _unload_adapter},
}
