"""What an application developer sees through the `openai` client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest
from gateway_support import CACHED_TOKENS, RELEASE_ID, Behaviour, Gateway, chat_body

from serving.metering.events import CountSource, Outcome

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "What is the capital of France?"}]


async def test_a_stream_carries_the_text_and_no_counts_unless_asked(gateway: Gateway) -> None:
    stream = await gateway.openai().chat.completions.create(model="small", messages=ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " Paris."
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_a_stream_that_asks_for_usage_ends_with_it_alone(gateway: Gateway) -> None:
    stream = await gateway.openai().chat.completions.create(
        model="small", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS


async def test_a_plain_answer_is_assembled_with_its_counts(gateway: Gateway) -> None:
    answer = await gateway.openai().chat.completions.create(model="small", messages=ASK, n=2, logprobs=True, top_logprobs=1)
    assert answer.object == "chat.completion"
    assert [choice.message.content for choice in answer.choices] == [" Paris."] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    assert [token.token for token in answer.choices[1].logprobs.content] == [" Par", "is", "."]
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    (asked,) = gateway.engine.asked
    assert asked.body["stream"] is True


@pytest.mark.parametrize("prompt", ["Once upon", ["Once upon"], [3, 4, 5]], ids=["text", "list of one text", "token ids"])
async def test_completions_take_text_and_token_ids(gateway: Gateway, prompt: Any) -> None:
    answer = await gateway.openai().completions.create(model="small", prompt=prompt, logprobs=1)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == " Paris."
    assert answer.choices[0].logprobs.tokens == [" Par", "is", "."]
    assert answer.choices[0].logprobs.top_logprobs == [{" Par": -0.5}, {"is": -0.5}, {".": -0.5}]
    assert gateway.engine.asked[0].body["max_tokens"] == 16


async def test_a_completion_streams(gateway: Gateway) -> None:
    stream = await gateway.openai().completions.create(model="small", prompt="Once", stream=True, max_tokens=7)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == " Paris."
    assert gateway.engine.asked[0].body["max_tokens"] == 7


async def test_models_are_those_the_tenant_may_use(gateway: Gateway) -> None:
    from serving.gateway.tenants import Tenant

    limited = gateway.keys.add(Tenant("small-only", models=("small",)))
    assert [model.id async for model in gateway.openai().models.list()] == ["small", "large", "auto"]
    assert [model.id async for model in gateway.openai(limited).models.list()] == ["small", "auto"]
    assert (await gateway.openai().models.retrieve("SmolLM2")).id == "small"
    with pytest.raises(openai.NotFoundError):
        await gateway.openai(limited).models.retrieve("large")
    with pytest.raises(openai.AuthenticationError):
        await gateway.openai("nonsense").models.list()


async def test_the_engine_gets_what_was_validated_and_nothing_of_the_clients_headers(gateway: Gateway) -> None:
    await gateway.openai().chat.completions.create(
        model="SmolLM2",
        messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        max_completion_tokens=9,
        temperature=0.5,
        user="someone",
        extra_headers={"x-request-id": "mine", "cookie": "c=1"},
    )
    (asked,) = gateway.engine.asked
    salt = asked.body.pop("cache_salt")
    assert asked.body == {
        "model": "small",
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "a\nb"}],
        "temperature": 0.5,
    }
    assert len(salt) == 64
    assert int(salt, 16)
    assert asked.headers["x-request-id"].startswith("req_")
    assert "cookie" not in asked.headers
    assert "authorization" not in asked.headers


async def test_each_tenant_has_its_own_salt(gateway: Gateway) -> None:
    from serving.gateway.tenants import Tenant

    for key in (gateway.key, gateway.keys.add(Tenant("other")), gateway.key):
        await gateway.openai(key).completions.create(model="small", prompt="x")
    first, other, again = (asked.body["cache_salt"] for asked in gateway.engine.asked)
    assert first == again
    assert first != other


async def test_a_finished_request_is_billed_by_the_engines_totals_at_the_prices_of_its_start(gateway: Gateway) -> None:
    await gateway.openai().chat.completions.create(model="small", messages=ASK, n=2)
    (opened,), (closed,) = gateway.journal.opened, gateway.journal.closed
    asked = gateway.engine.asked[0]
    assert (opened.tenant, opened.model, opened.release_id, opened.endpoint) == ("acme", "small", RELEASE_ID, "chat.completions")
    assert (opened.region, opened.gateway, opened.price_version) == ("us-east-2", "gateway-0", "2026-11")
    assert opened.prompt_tokens > 0
    assert closed.open == opened
    assert (closed.outcome, closed.source, closed.attempts) == (Outcome.FINISHED, CountSource.ENGINE_FINAL, 1)
    assert closed.prompt_tokens == gateway.engine.prompt_tokens(asked.body)
    assert (closed.output_tokens, closed.cached_tokens, closed.finish_reason) == (6, CACHED_TOKENS, "stop")
    assert 0 <= closed.queue_ms < closed.ttft_ms <= closed.total_ms
    assert (closed.engines, closed.reasoning_tokens) == ((gateway.engine.endpoint.name,), -1)
    assert closed.routing_reason in ("ring", "least_work")
    assert opened.request_id == asked.headers["x-request-id"]
    assert closed.cost_pico_usd == (closed.prompt_tokens - 3) * 100 + 3 * 10 + 6 * 300


async def test_without_final_totals_the_last_running_counts_are_billed(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(omits_final_usage=True)
    answer = await gateway.openai().chat.completions.create(model="small", messages=ASK, n=3)
    (closed,) = gateway.journal.closed
    assert (closed.source, closed.output_tokens, closed.outcome) == (CountSource.ENGINE_RUNNING, 9, Outcome.FINISHED)
    assert answer.usage.completion_tokens == 9


async def test_progress_is_noted_at_the_first_token_and_then_at_half_intervals(make_gateway: Any) -> None:
    gateway = await make_gateway(journal={"progress_tokens": 8, "progress_s": 60})
    gateway.engine.behaviour = Behaviour(tokens=["x"] * 10, delay_s=0.005)
    stream = await gateway.openai().chat.completions.create(model="small", messages=ASK, stream=True)
    assert len([chunk async for chunk in stream]) == 11
    assert [record.output_tokens for record in gateway.journal.progressed] == [1, 5, 9]


async def _until(gateway: Gateway, is_there: Callable[[Gateway], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_there(gateway):
            await asyncio.sleep(0.005)


async def test_a_client_gets_no_more_than_an_interval_of_tokens_beyond_the_disk(make_gateway: Any) -> None:
    gateway = await make_gateway(journal={"progress_tokens": 4, "progress_s": 60})
    gateway.engine.behaviour = Behaviour(tokens=["x"] * 20, delay_s=0.002)
    gateway.journal.has_caught_up.clear()
    async with gateway.post(body=chat_body(stream=True)) as answer:
        seen = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    seen += await answer.content.readany()
        assert seen.count(b'"content":"x"') == 4
        gateway.journal.has_caught_up.set()
        seen += await answer.content.read()
    assert seen.count(b'"content":"x"') == 20
    assert seen.endswith(b"data: [DONE]\n\n")
    assert gateway.journal.closed[0].output_tokens == 20


async def test_an_answer_that_comes_in_one_piece_waits_for_its_close_alone(make_gateway: Any) -> None:
    gateway = await make_gateway(journal={"progress_tokens": 4, "progress_s": 60})
    gateway.engine.behaviour = Behaviour(tokens=["x"] * 20, burst=True)
    gateway.journal.is_slow.clear()
    async with gateway.post(body=chat_body(stream=True)) as answer:
        await _until(gateway, lambda of: bool(of.journal.progressed))
        gateway.journal.is_slow.set()
        seen = await answer.content.read()
    assert seen.count(b'"content":"x"') == 20
    assert seen.endswith(b"data: [DONE]\n\n")


async def test_a_stream_whose_usage_cannot_be_recorded_ends_with_an_error_and_bills_what_came(make_gateway: Any) -> None:
    gateway = await make_gateway(journal={"progress_tokens": 4, "progress_s": 60})
    gateway.engine.behaviour = Behaviour(tokens=["x"] * 20, delay_s=0.01)
    gateway.journal.has_caught_up.clear()
    async with gateway.post(body=chat_body(stream=True)) as answer:
        await answer.content.readuntil(b'"content":"x"')
        gateway.journal.is_broken = True
        gateway.journal.has_caught_up.set()
        gateway.journal.is_durable = lambda _: False
        seen = await answer.content.read()
    assert b"metering_unavailable" in seen
    assert b"[DONE]" not in seen


async def test_done_comes_only_after_the_bill_is_durable(gateway: Gateway) -> None:
    gateway.journal.is_slow.clear()
    async with gateway.post(body=chat_body(stream=True)) as answer:
        seen = b""
        while b'"finish_reason":"stop"' not in seen:
            seen += await answer.content.readany()
        assert b"[DONE]" not in seen
        gateway.journal.is_slow.set()
        seen += await answer.content.read()
    assert seen.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_the_answer_names_our_own_request_id(gateway: Gateway, is_streamed: bool) -> None:
    async with gateway.post(body=chat_body(stream=is_streamed), **{"x-request-id": "theirs"}) as answer:
        await answer.read()
    assert answer.headers["x-request-id"] == gateway.engine.asked[0].headers["x-request-id"]


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 64])
async def test_events_cut_anywhere_arrive_whole(gateway: Gateway, piece_bytes: int) -> None:
    gateway.engine.behaviour = Behaviour(piece_bytes=piece_bytes, tokens=[" é", "\n\n", '","usage":{', "."])
    stream = await gateway.openai().chat.completions.create(model="small", messages=ASK, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ' é\n\n","usage":{.'
    assert gateway.journal.closed[0].output_tokens == 4


async def test_a_burst_of_all_events_is_relayed_whole(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(burst=True, tokens=["x"] * 50)
    stream = await gateway.openai().chat.completions.create(model="small", messages=ASK, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "x" * 50


async def test_connections_to_engines_are_used_again(gateway: Gateway) -> None:
    for _ in range(5):
        await gateway.openai().completions.create(model="small", prompt="x")
    assert gateway.engine.num_connections == 1


TOOL = {"type": "function", "function": {"name": "f"}}
RESPONSE = {"model": "small", "input": "Hello"}
SAME: list[tuple[str, Any]] = [
    (CHAT, chat_body()),
    (CHAT, chat_body(stream=True)),
    (CHAT, chat_body(tools=[TOOL], tool_choice="required")),
    (CHAT, chat_body(tools=[])),
    (CHAT, chat_body(n=99)),
    (CHAT, b"{"),
    (CHAT, chat_body(model="none")),
    ("/v1/completions", {"model": "small", "prompt": "Once", "stream": True}),
    ("/v1/responses", RESPONSE),
    ("/v1/responses", {**RESPONSE, "stream": True}),
    ("/v1/responses", {**RESPONSE, "store": True}),
    ("/v1/embeddings", RESPONSE),
    ("/v1/embeddings", {"model": "small", "input": []}),
]
_IDS = re.compile(rb"(resp|msg|req)_[0-9a-f]+|\"created(_at)?\":\d+")


async def test_the_fast_path_and_fastapi_give_the_same_answers(make_gateway: Any) -> None:
    """Answers differ in ids and in the second that they were made in."""
    fast, plain = await make_gateway(), await make_gateway(has_fast_path=False)
    for path, body in SAME:
        seen = []
        for gateway in (fast, plain):
            async with gateway.post(path, body) as answer:
                text = _IDS.sub(b"ID", await answer.read())
                headers = {k.lower(): v for k, v in answer.headers.items() if k.lower() not in ("x-request-id", "date")}
                seen.append((answer.status, headers, text))
        assert seen[0] == seen[1], (path, body)


async def test_the_openapi_document_describes_the_generating_routes(gateway: Gateway) -> None:
    async with gateway.http.get(f"{gateway.base_url}/openapi.json") as answer:
        document = await answer.json()
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ChatRequest"}
    assert "messages" in document["components"]["schemas"]["ChatRequest"]["properties"]
    parameters = document["paths"]["/v1/chat/completions"]["post"]["parameters"]
    assert [(parameter["name"], parameter["in"], parameter["required"]) for parameter in parameters] == [
        ("Idempotency-Key", "header", False),
        ("x-flotilla-needs", "header", False),
    ]
    assert "engine_unavailable" in document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]


async def test_the_openapi_document_lists_every_route_with_its_schemas_and_errors(gateway: Gateway) -> None:
    async with gateway.http.get(f"{gateway.base_url}/openapi.json") as answer:
        document = await answer.json()
    schemas = document["components"]["schemas"]
    listed = {(path, method): route for path, methods in document["paths"].items() for method, route in methods.items()}
    ours = {path for path, _ in listed if path.startswith("/v1/")}
    assert ours == {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/input_tokens", "/v1/embeddings",
        "/v1/models", "/v1/models/{name}", "/v1/usage", "/v1/prompts", "/v1/prompts/{prompt_id}", "/v1/conversations",
        "/v1/conversations/{conversation_id}",
    }  # fmt: skip
    for (path, method), route in listed.items():
        if method == "post":
            reference = route["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert reference.removeprefix("#/components/schemas/") in schemas
        succeeded = next(status for status in route["responses"] if status < "300")
        assert route["responses"][succeeded]["content"]["application/json"]["schema"]
        if path in ours:
            codes = {
                code for status, found in route["responses"].items() if status >= "4" for code in found["description"].split(", ")
            }
            assert "`invalid_api_key`" in codes
            assert method in ("get", "delete") or "`context_length_exceeded`" in codes
            assert "422" not in route["responses"], "what FastAPI finds wrong is answered with 400"
    text = json.dumps(document)
    assert {reference.split('"')[0] for reference in text.split("#/components/schemas/")[1:]} <= schemas.keys()
