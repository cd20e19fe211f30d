"""`/v1/responses` through the `openai` client: a chat upstream, OpenAI's events and documents for the client, one exact bill."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from gateway_support import CACHED_TOKENS, Behaviour, Gateway

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
CALLING = Behaviour(tokens=['{"city"', ': "Paris', '"}'], call="get_weather", finish_reason="tool_calls")


async def test_a_plain_response_says_what_the_chat_said(gateway: Gateway) -> None:
    answer = await gateway.openai().responses.create(model="small", input="Hello", instructions="Be brief.", max_output_tokens=9)
    (asked,) = gateway.engine.asked
    assert (asked.path, asked.body["max_tokens"]) == ("/v1/chat/completions", 9)
    assert asked.body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert (answer.output_text, answer.status, answer.store) == (" Paris.", "completed", False)
    usage = answer.usage
    assert (usage.input_tokens, usage.input_tokens_details.cached_tokens) == (
        gateway.journal.closed[0].prompt_tokens,
        CACHED_TOKENS,
    )
    assert (usage.output_tokens, usage.total_tokens) == (3, usage.input_tokens + 3)
    assert gateway.journal.opened[0].endpoint == "responses"


async def test_a_stream_has_openais_events_in_openais_order(gateway: Gateway) -> None:
    stream = await gateway.openai().responses.create(model="small", input="Hello", stream=True)
    events = [event async for event in stream]
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 3,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == " Paris."
    assert events[-1].response.output_text == " Paris."
    assert events[-1].response.usage.output_tokens == 3


async def test_the_clients_own_accumulator_agrees(gateway: Gateway) -> None:
    gateway.engine.behaviour = CALLING
    async with gateway.openai().responses.stream(model="small", input="Weather?", tools=[WEATHER]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds.count("response.function_call_arguments.delta") == 3
    (call,) = final.output
    assert (call.type, call.name, call.call_id, json.loads(call.arguments)) == (
        "function_call", "get_weather", "call_1", {"city": "Paris"}
    )  # fmt: skip
    (asked,) = gateway.engine.asked
    function = {"name": "get_weather", "description": None, "parameters": SCHEMA, "strict": True}
    assert asked.body["tools"] == [{"type": "function", "function": function}]


async def test_output_can_be_sent_back_with_the_calls_result(gateway: Gateway) -> None:
    client = gateway.openai()
    said = (await client.responses.create(model="small", input="Hi")).output
    gateway.engine.behaviour = CALLING
    called = (await client.responses.create(model="small", input="Weather?", tools=[WEATHER])).output
    result: Any = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
    await client.responses.create(model="small", input=[{"role": "user", "content": "Hi"}, *said, *called, result])  # type: ignore[list-item]
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    assert gateway.engine.asked[2].body["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Paris.", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]


@pytest.mark.parametrize(
    ("finish", "status", "reason"), [("length", "incomplete", "max_output_tokens"), ("stop", "completed", None)]
)
async def test_a_response_that_is_cut_says_so(gateway: Gateway, finish: str, status: str, reason: str | None) -> None:
    gateway.engine.behaviour = Behaviour(finish_reason=finish)
    answer = await gateway.openai().responses.create(model="small", input="Hello")
    assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == (status, reason)


async def test_a_stream_that_breaks_ends_with_an_error_and_what_came_is_billed(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(cut_after=2)
    stream = await gateway.openai().responses.create(model="small", input="Hello", stream=True)
    events = [event async for event in stream]
    assert (events[-1].type, events[-1].code) == ("error", "engine_lost")
    assert gateway.journal.closed[0].output_tokens == 2


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("an answer to keep", {"store": True}, "unsupported_parameter", "store"),
    ("an earlier response", {"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
    ("in the background", {"background": True}, "unsupported_parameter", "background"),
    ("a web search", {"tools": [{"type": "web_search"}]}, "invalid_value", "tools[0].type"),
    ("a message without a role", {"input": [{"content": "x"}]}, "missing_required_parameter", "input[0].role"),
    ("a result of nothing", {"input": [{"type": "function_call_output"}]}, "missing_required_parameter", "input[0].output"),
    ("a schema without a name", {"text": {"format": {"type": "json_schema"}}}, "missing_required_parameter", "text.format.name"),
    ("no input", {"input": ""}, "invalid_value", "input"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "param"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_what_cannot_be_served_is_refused_by_name(gateway: Gateway, fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai().responses.create(model="small", **{"input": "x", **fields}, extra_body={})
    assert (caught.value.code, caught.value.param, gateway.num_asked) == (code, param, 0)


async def test_input_tokens_are_those_that_the_bill_opens_with(gateway: Gateway) -> None:
    client = gateway.openai()
    asked: Any = {"model": "small", "input": [{"role": "user", "content": "Hello " * 20}], "instructions": "Be brief."}
    counted = await client.responses.input_tokens.count(**asked)
    assert (gateway.num_asked, gateway.journal.records) == (0, [])
    await client.responses.create(**asked)
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == gateway.journal.opened[0].prompt_tokens
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.input_tokens.count(model="small", input="word " * 2000)
    assert caught.value.code == "context_length_exceeded"
