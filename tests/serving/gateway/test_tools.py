"""Tools through the `openai` client: what the engine is asked, and what the client gets back, streamed and not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gateway_support import Behaviour, Gateway

ASK: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": SCHEMA}}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
CALLING = Behaviour(tokens=['{"city"', ': "Paris', '"}'], call="get_weather", finish_reason="tool_calls")


@pytest.mark.parametrize("choice", ["none", "auto", "required", NAMED], ids=["none", "auto", "required", "named"])
async def test_the_engine_is_asked_with_the_tools_and_the_choice(gateway: Gateway, choice: Any) -> None:
    await gateway.openai().chat.completions.create(
        model="small", messages=ASK, tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False
    )
    (asked,) = gateway.engine.asked
    function = {"description": None, "parameters": None, "strict": None}
    assert asked.body["tools"] == [{"type": "function", "function": {**function, **tool["function"]}} for tool in (WEATHER, TIME)]
    assert (asked.body["tool_choice"], asked.body["parallel_tool_calls"]) == (choice, False)


async def test_a_plain_answer_has_the_whole_call(gateway: Gateway) -> None:
    gateway.engine.behaviour = CALLING
    answer = await gateway.openai().chat.completions.create(model="small", messages=ASK, tools=[WEATHER], n=2)
    for choice in answer.choices:
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls
        assert (call.id, call.type, call.function.name) == ("call_1", "function", "get_weather")
        assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert answer.usage.completion_tokens == 6
    assert gateway.journal.closed[0].output_tokens == 6


async def test_a_stream_has_the_call_piece_by_piece(gateway: Gateway) -> None:
    gateway.engine.behaviour = CALLING
    async with gateway.openai().chat.completions.stream(model="small", messages=ASK, tools=[WEATHER]) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()
    (call,) = completion.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert gateway.journal.closed[0].finish_reason == "tool_calls"


async def test_what_the_client_got_can_be_sent_back_with_the_tools_result(gateway: Gateway) -> None:
    """The client sends the assistant's message as it decoded it."""
    gateway.engine.behaviour = CALLING
    client = gateway.openai()
    answer = await client.chat.completions.create(model="small", messages=ASK, tools=[WEATHER])
    message = answer.choices[0].message
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    await client.chat.completions.create(model="small", messages=[*ASK, message, result], tools=[WEATHER])
    assert gateway.engine.asked[1].body["messages"] == [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump() for call in message.tool_calls]},
        result,
    ]


async def test_tools_count_towards_the_prompt_only_as_far_as_the_template_shows_them(gateway: Gateway) -> None:
    """The template here shows none: the model never sees them, and the tenant's limits are not charged for them."""
    for tools in ({}, {"tools": [WEATHER]}):
        await gateway.openai().chat.completions.create(model="small", messages=ASK, **tools)
    first, second = gateway.journal.opened
    assert first.prompt_tokens == second.prompt_tokens
