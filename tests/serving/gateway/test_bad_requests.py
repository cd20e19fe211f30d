"""What is refused: each with its status, a stable code, OpenAI's shape, and no engine asked."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from gateway_support import WINDOW, Gateway, chat_body

from serving.gateway import errors, keys
from serving.gateway.tenants import Tenant

API = Path(__file__).parents[3] / "docs/api.md"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
DEEP = 10_000


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "small", "prompt": "Once", **fields}


def with_schema(**schema: Any) -> dict[str, Any]:
    return chat_body(response_format={"type": "json_schema", "json_schema": {"name": "x", **schema}})


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def said(**message: Any) -> dict[str, Any]:
    return chat_body(messages=[{"role": "user", "content": "x", **message}])


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


PARAMETERS = "tools[0].function.parameters"
JSON = {"type": "json_object"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FORMAT, SCHEMA = "response_format.json_schema", "response_format.json_schema.schema"
SCHEMA_TYPE = {"type": "json_schema"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
RUNNING = chat_body(stream=True, stream_options={"continuous_usage_stats": True})

BAD: list[tuple[str, str, Any, int, str, str | None]] = [
    # what is wrong, path, body, status, code, param
    ("an empty body", CHAT, b"", 400, "invalid_json", None),
    ("half a document", CHAT, b'{"model": "small"', 400, "invalid_json", None),
    ("two documents", TEXT, b'{"model":"small","prompt":"x"} {}', 400, "invalid_json", None),
    ("a byte order mark", CHAT, b"\xef\xbb\xbf{}", 400, "invalid_json", None),
    ("not a number", CHAT, json.dumps(chat_body(temperature=float("nan"))).encode(), 400, "invalid_json", None),
    ("half a surrogate pair", TEXT, b'{"model":"small","prompt":"\\ud800"}', 400, "invalid_json", None),
    ("an array", CHAT, b"[]", 400, "invalid_value", None),
    ("bytes that are not UTF-8", CHAT, b'{"model":"sm\xffall"}', 400, "invalid_utf8", None),
    ("arrays ten thousand deep", CHAT, b"[" * DEEP, 400, "json_too_deep", None),
    ("objects ten thousand deep", CHAT, b'{"a":' * DEEP + b"1" + b"}" * DEEP, 400, "json_too_deep", None),
    ("a deep field that is allowed", CHAT, with_schema(schema=nested(70)), 400, "json_too_deep", None),
    ("a body of two mebibytes", CHAT, chat_body(user="x" * 2 * 1024 * 1024), 413, "request_too_large", None),
    ("no messages", CHAT, {"model": "small"}, 400, "missing_required_parameter", "messages"),
    ("no model", CHAT, {"messages": [{"role": "user", "content": "x"}]}, 400, "missing_required_parameter", "model"),
    ("no prompt", TEXT, {"model": "small"}, 400, "missing_required_parameter", "prompt"),
    ("empty messages", CHAT, chat_body(messages=[]), 400, "invalid_value", "messages"),
    ("a message without content", CHAT, said(content=None), 400, "invalid_value", "messages[0].content"),
    ("an unknown role", CHAT, said(role="root"), 400, "invalid_value", "messages[0].role"),
    ("a million answers", CHAT, chat_body(n=1_000_000), 400, "invalid_value", "n"),
    ("no answers", CHAT, chat_body(n=0), 400, "invalid_value", "n"),
    ("half an answer", CHAT, chat_body(n=1.5), 400, "invalid_value", "n"),
    ("true answers", CHAT, chat_body(n=True), 400, "invalid_value", "n"),
    ("too hot", CHAT, chat_body(temperature=2.1), 400, "invalid_value", "temperature"),
    ("colder than cold", CHAT, chat_body(temperature=-0.1), 400, "invalid_value", "temperature"),
    ("infinitely hot", TEXT, b'{"model":"small","prompt":"x","temperature":1e999}', 400, "invalid_value", "temperature"),
    ("a text for a number", CHAT, chat_body(top_p="1"), 400, "invalid_value", "top_p"),
    ("a top_p of nothing", CHAT, chat_body(top_p=0), 400, "invalid_value", "top_p"),
    ("a top_k below -1", CHAT, chat_body(top_k=-2), 400, "invalid_value", "top_k"),
    ("too great a penalty", CHAT, chat_body(presence_penalty=2.5), 400, "invalid_value", "presence_penalty"),
    ("a repetition penalty of nothing", CHAT, chat_body(repetition_penalty=0), 400, "invalid_value", "repetition_penalty"),
    ("seventeen stops", CHAT, chat_body(stop=["a"] * 17), 400, "invalid_value", "stop"),
    ("an empty stop", CHAT, chat_body(stop=[""]), 400, "invalid_value", "stop[0]"),
    ("a seed of 65 bits", CHAT, chat_body(seed=2**64), 400, "invalid_value", "seed"),
    ("no tokens", CHAT, chat_body(max_tokens=0), 400, "invalid_value", "max_tokens"),
    ("log-probabilities of 21 tokens", CHAT, chat_body(logprobs=True, top_logprobs=21), 400, "invalid_value", "top_logprobs"),
    ("top_logprobs alone", CHAT, chat_body(top_logprobs=3), 400, "invalid_value", "top_logprobs"),
    ("stream options without a stream", CHAT, chat_body(stream_options={}), 400, "invalid_value", "stream_options"),
    ("a long user", CHAT, chat_body(user="x" * 513), 400, "invalid_value", "user"),
    ("a type without its schema", CHAT, chat_body(response_format=SCHEMA_TYPE), 400, "invalid_value", FORMAT),
    ("a schema that is a list", CHAT, with_schema(schema=[]), 400, "invalid_value", SCHEMA),
    ("a schema 17 deep", CHAT, with_schema(schema=nested(17)), 400, "invalid_value", SCHEMA),
    ("a schema of 20 KiB", CHAT, with_schema(schema={"x": "y" * 20_000}), 400, "invalid_value", SCHEMA),
    ("an empty prompt", TEXT, completion(prompt=""), 400, "invalid_value", "prompt"),
    ("two prompts", TEXT, completion(prompt=["a", "b"]), 400, "invalid_value", "prompt"),
    ("texts among token ids", TEXT, completion(prompt=[1, "b"]), 400, "invalid_value", "prompt"),
    ("a negative token id", TEXT, completion(prompt=[-1]), 400, "invalid_value", "prompt[0]"),
    ("a token id that the model has not", TEXT, completion(prompt=[1, 99_999]), 400, "invalid_value", "prompt"),
    ("no tools", CHAT, chat_body(tools=[]), 400, "invalid_value", "tools"),
    ("129 tools", CHAT, chat_body(tools=[tool(name=f"f{n}") for n in range(129)]), 400, "invalid_value", "tools"),
    ("two tools of one name", CHAT, chat_body(tools=[tool(), tool()]), 400, "invalid_value", "tools"),
    ("a tool that is no function", CHAT, chat_body(tools=[{"type": "web_search"}]), 400, "invalid_value", "tools[0].type"),
    ("a tool named by a sentence", CHAT, chat_body(tools=[tool(name="a b")]), 400, "invalid_value", "tools[0].function.name"),
    ("a tool's schema that is a list", CHAT, chat_body(tools=[tool(parameters=[])]), 400, "invalid_value", PARAMETERS),
    ("a tool's schema 17 deep", CHAT, chat_body(tools=[tool(parameters=nested(17))]), 400, "invalid_value", PARAMETERS),
    ("a tool required of none", CHAT, chat_body(tool_choice="required"), 400, "invalid_value", "tool_choice"),
    ("a choice that is none", CHAT, chat_body(tools=[tool()], tool_choice="some"), 400, "invalid_value", "tool_choice"),
    ("a tool that is not there", CHAT, chat_body(tools=[tool()], tool_choice=named("g")), 400, "invalid_value", "tool_choice"),
    ("parallel calls of nothing", CHAT, chat_body(parallel_tool_calls=True), 400, "invalid_value", "parallel_tool_calls"),
    ("a call and a form", CHAT, chat_body(tools=[tool()], tool_choice="required", response_format=JSON), 400, "invalid_value",
     "response_format"),
    ("a user's tool call", CHAT, said(tool_calls=[CALL]), 400, "invalid_value", "messages[0].tool_calls"),
    ("no tool calls", CHAT, said(role="assistant", tool_calls=[]), 400, "invalid_value", "messages[0].tool_calls"),
    ("an answer to keep", CHAT, chat_body(store=True), 400, "unsupported_parameter", "store"),
    ("a bias of 101", CHAT, chat_body(logit_bias={"1": 101}), 400, "invalid_value", "logit_bias[...]"),
    ("a bias of a word", CHAT, chat_body(logit_bias={"x": 1}), 400, "invalid_value", None),
    ("metadata that is no text", CHAT, chat_body(metadata={"a": 1}), 400, "invalid_value", "metadata[...]"),
    ("seventeen metadata", CHAT, chat_body(metadata={str(n): "" for n in range(17)}), 400, "invalid_value", "metadata"),
    ("functions", CHAT, chat_body(functions=[]), 400, "unsupported_parameter", "functions"),
    ("an image", CHAT, said(content=[IMAGE]), 400, "unsupported_parameter", "messages[0].content[0].type"),
    ("another's cache salt", CHAT, chat_body(cache_salt="theirs"), 400, "unsupported_parameter", "cache_salt"),
    ("a priority", CHAT, chat_body(priority=-1), 400, "unsupported_parameter", "priority"),
    ("a chat template", CHAT, chat_body(chat_template="{{ x }}"), 400, "unsupported_parameter", "chat_template"),
    ("a request id", CHAT, chat_body(request_id="x"), 400, "unsupported_parameter", "request_id"),
    ("running usage", CHAT, RUNNING, 400, "unsupported_parameter", "stream_options.continuous_usage_stats"),
    ("a suffix", TEXT, completion(suffix="x"), 400, "unsupported_parameter", "suffix"),
    ("prompt embeddings", TEXT, completion(prompt_embeds="x"), 400, "unsupported_parameter", "prompt_embeds"),
    ("an unknown model", CHAT, chat_body(model="gpt-17"), 404, "model_not_found", "model"),
    ("more tokens than the window has", CHAT, chat_body(max_tokens=WINDOW), 400, "context_length_exceeded", "messages"),
    ("a prompt over the window", CHAT, said(content="word " * 2000), 400, "context_length_exceeded", "messages"),
    ("token ids over the window", TEXT, completion(prompt=[1] * (WINDOW + 1)), 400, "context_length_exceeded", "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "code", "param"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_is_refused_and_asks_no_engine(
    gateway: Gateway, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    async with gateway.post(path, body) as answer:
        document = await answer.json()
    assert (answer.status, document["error"]["code"], document["error"]["param"]) == (status, code, param)
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["type"] == errors.TABLE[code].type
    assert len(document["error"]["message"]) < 1000
    assert (gateway.num_asked, gateway.journal.records) == (0, [])
    async with gateway.post() as answer:
        assert answer.status == 200, "the gateway is unharmed"


FORGED = keys.mint().secret
AUTHORIZATIONS: list[tuple[str, str]] = [
    ("nothing", ""),
    ("another scheme", f"Basic {FORGED}"),
    ("no credentials", "Bearer"),
    ("a word", "Bearer sk-123"),
    ("a typing error", f"Bearer {FORGED[:-1]}{'a' if FORGED[-1] != 'a' else 'b'}"),
    ("a key that nobody has", f"Bearer {FORGED}"),
    ("text that is not ASCII", "Bearer fl_live_é"),
]


@pytest.mark.parametrize("authorization", [row[1] for row in AUTHORIZATIONS], ids=[row[0] for row in AUTHORIZATIONS])
@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/models"])
async def test_a_key_is_needed(gateway: Gateway, path: str, authorization: str) -> None:
    method = "GET" if path == "/v1/models" else "POST"
    headers = {"authorization": authorization} if authorization else {}
    async with gateway.http.request(method, gateway.base_url + path, headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (401, "invalid_api_key")
    assert gateway.num_asked == 0


async def test_another_tenants_secret_with_a_known_key_id_is_refused(gateway: Gateway) -> None:
    """The key id is public; only the whole key counts."""
    real = keys.parse(gateway.key)
    assert real is not None
    forged = "fl_live_" + real.key_id + "0" * 20
    forged += keys._checksum(forged)
    async with gateway.post(key=forged) as answer:
        assert answer.status == 401


async def test_a_model_of_others_looks_like_one_that_is_not_there(gateway: Gateway) -> None:
    key = gateway.keys.add(Tenant("large-only", models=("large",)))
    async with gateway.post(key=key) as forbidden, gateway.post(body=chat_body(model="smalx"), key=key) as missing:
        seen = [(await answer.text()).replace("smalx", "small") for answer in (forbidden, missing)]
    assert seen[0] == seen[1]


async def test_the_refusal_of_a_long_prompt_names_the_numbers(gateway: Gateway) -> None:
    async with gateway.post(TEXT, completion(prompt=[1] * 250, max_tokens=7)) as answer:
        message = (await answer.json())["error"]["message"]
    assert all(number in message for number in ("256", "250", "7"))
    async with gateway.post(TEXT, completion(prompt=[1] * 250, max_tokens=6)) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-encoding": "gzip"}, 415, "unsupported_content_encoding"),
        ({"x-long": "x" * 17_000}, 431, "headers_too_large"),
    ],
)
async def test_headers_have_limits(gateway: Gateway, headers: dict[str, str], status: int, code: str) -> None:
    async with gateway.post(**headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
    assert gateway.num_asked == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", CHAT, 405, "method_not_allowed"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("POST", "/metrics", 404, "not_found"),
        ("GET", "/admin/tenants", 404, "not_found"),
        ("POST", "/tokenize", 404, "not_found"),
    ],
)
async def test_other_paths_are_not_there(gateway: Gateway, method: str, path: str, status: int, code: str) -> None:
    async with gateway.http.request(method, gateway.base_url + path) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)


async def test_a_body_that_never_ends_is_refused_while_it_comes(gateway: Gateway) -> None:
    """Chunked, without a length: the running total decides, and memory never holds it."""

    async def endless() -> Any:
        for _ in range(40):
            yield b"x" * 65_536
            await asyncio.sleep(0)

    headers = {"authorization": f"Bearer {gateway.key}"}
    async with gateway.http.post(gateway.base_url + CHAT, data=endless(), headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "request_too_large")


async def test_a_model_that_nobody_published_is_an_honest_503(gateway: Gateway) -> None:
    gateway.releases.release = None
    async with gateway.post() as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "model_not_ready")
        assert int(answer.headers["retry-after"]) > 0


async def test_nothing_is_generated_while_usage_cannot_be_recorded(gateway: Gateway) -> None:
    gateway.journal.is_broken = True
    async with gateway.post() as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "metering_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert gateway.num_asked == 0
    gateway.journal.is_broken = False
    async with gateway.post() as answer:
        assert answer.status == 200


def test_the_documented_table_of_codes_is_the_codes() -> None:
    """With FLOTILLA_WRITE_DOCS set it is written instead."""
    lines = ["| code | status | type | when |", "|---|---|---|---|"]
    lines += [f"| `{kind.code}` | {kind.status} | `{kind.type}` | {kind.when} |" for kind in errors.TABLE.values()]
    begin, end = "<!-- codes: begin -->", "<!-- codes: end -->"
    text = API.read_text()
    head, tail = text.split(begin)[0], text.split(end)[1]
    expected = "\n".join([head + begin, *lines, end + tail])
    if os.environ.get("FLOTILLA_WRITE_DOCS"):
        API.write_text(expected)
        return
    assert text == expected, f"{API.name}: run it again with FLOTILLA_WRITE_DOCS=1"


def test_codes_are_unique_and_never_change() -> None:
    """Clients act on these. Adding one is fine; changing one breaks somebody."""
    assert {code: kind.status for code, kind in errors.TABLE.items()} == {
        "unsupported_endpoint": 400,
        "invalid_api_key": 401, "auth_unavailable": 503, "invalid_json": 400, "invalid_http": 400, "request_quarantined": 400,
        "invalid_utf8": 400, "json_too_deep": 400,
        "invalid_value": 400, "missing_required_parameter": 400, "unsupported_parameter": 400, "request_too_large": 413,
        "request_timeout": 408, "unsupported_content_encoding": 415, "headers_too_large": 431, "not_found": 404,
        "method_not_allowed": 405, "model_not_found": 404, "model_not_ready": 503, "context_length_exceeded": 400,
        "request_exceeds_limit": 400, "rate_limit_exceeded": 429, "metering_unavailable": 503, "engine_unavailable": 503,
        "overloaded": 503, "rejected_by_engine": 400, "engine_error": 502, "engine_lost": 502, "engine_timeout": 504,
        "draining": 503, "internal_error": 500, "invalid_admin_key": 401, "tenant_not_found": 404, "tenant_exists": 409,
        "insufficient_quota": 429, "budget_unknown": 503,
        "idempotency_in_flight": 409, "idempotency_result_lost": 410, "idempotency_key_reused": 422,
        "idempotency_unavailable": 503, "tenant_changed": 409, "plan_not_found": 404, "plan_exists": 409, "plan_changed": 409,
        "plan_in_use": 409, "replica_not_found": 404, "not_excluded": 404, "key_not_found": 404, "key_dead": 409,
        "conversation_not_found": 404, "conversation_busy": 409, "conversation_changed": 409, "conversation_full": 400,
        "conversation_unavailable": 503,
        "table_unavailable": 503, "not_started": 503,
        "prompt_not_found": 404, "prompt_too_large": 413, "too_many_prompts": 409, "prompt_changed": 409,
        "prompts_unavailable": 503,
    }  # fmt: skip
