"""Answers of a given form: they follow their schema, are the same each time, and say what they cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.twin.refusal import Refusal
from serving.twin.structured import Form
from tests.serving.twin.conftest import Asker, Start, own_vocabulary

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "the people"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 12},
        "age": {"type": "integer", "minimum": 18, "exclusiveMaximum": 21},
        "score": {"type": "number", "minimum": -0.5, "maximum": 0.5},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
        "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "kind": {"const": "person"},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "score", "tags", "parent", "kind", "born"],
}


def follows(value: Any) -> bool:
    """Whether `value` is a person."""
    return (
        set(value) == set(PERSON["properties"])  # type: ignore[arg-type]
        and 3 <= len(value["name"]) <= 12
        and value["age"] in (18, 19, 20)
        and value["score"] == 0
        and 1 <= len(value["tags"]) <= 2
        and set(value["tags"]) <= {"a", "b"}
        and (value["parent"] is None or follows(value["parent"]))
        and (value["kind"], value["born"]) == ("person", "2026-01-01")
    )


@given(st.integers(0, 2**32 - 1))
def test_any_state_gives_a_document_of_the_schema_and_the_same_again(state: int) -> None:
    form = Form(own_vocabulary(), PERSON)
    script = form.write(state)
    assert follows(json.loads("".join(script.pieces)))
    assert form.write(state) == script
    assert len(script.ids) == len(script.pieces)


REFUSED: list[tuple[Any, str]] = [
    ({"type": "string", "pattern": "^a"}, "A twin cannot follow `pattern`"),
    ({"type": "nonsense"}, "Grammar error: Invalid type: nonsense"),
    ({"$ref": "#/$defs/nothing"}, "nothing at #/$defs/nothing"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without end"),
    ({"type": "number", "minimum": 0.2, "maximum": 0.8}, "no whole number"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_what_cannot_be_followed_is_refused_and_not_ignored(schema: Any, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        Form(own_vocabulary(), schema).check()
    assert reason in str(caught.value)


TOOL = {"type": "function", "function": {"name": "get_person", "parameters": PERSON}}
OTHER = {"type": "function", "function": {"name": "wait"}}
NAMED = {"type": "function", "function": {"name": "get_person"}}
RESULT = [{"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "wait", "arguments": "{}"}}]},
          {"role": "tool", "tool_call_id": "c", "content": "done"}]  # fmt: skip
CHOICES: list[tuple[str, dict[str, Any], str | None, bool]] = [
    # what is asked; why it ends; whether it calls a tool
    ("named", {"tools": [TOOL, OTHER], "tool_choice": NAMED}, "stop", True),
    ("required", {"tools": [TOOL], "tool_choice": "required"}, "tool_calls", True),
    ("auto", {"tools": [TOOL]}, "tool_calls", True),
    ("auto behind a tool's result", {"tools": [TOOL], "messages": QUESTION + RESULT, "max_tokens": 3}, "length", False),
    ("none", {"tools": [TOOL], "tool_choice": "none", "max_tokens": 3}, "length", False),
    ("cut short", {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 9}, "length", False),
]


@pytest.mark.parametrize(("asked", "finish", "is_call"), [row[1:] for row in CHOICES], ids=[row[0] for row in CHOICES])
async def test_a_tool_is_called_where_it_is_to_be(start: Start, asked: dict[str, Any], finish: str, is_call: bool) -> None:
    twin: Asker = await start(has_tool_parser=True)
    status, document = await twin.post(CHAT, **{"messages": QUESTION, "temperature": 0, **asked})
    assert status == 200, document
    (choice,) = document["choices"]
    assert choice["finish_reason"] == finish
    assert ("tool_calls" in choice["message"]) == is_call
    if is_call:
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "get_person"
        assert follows(json.loads(call["function"]["arguments"]))
    assert document["usage"]["completion_tokens"] == twin.records[0].generated_tokens


async def test_a_stream_tells_the_same_call_in_pieces(start: Start) -> None:
    twin: Asker = await start(has_tool_parser=True)
    body = {"messages": QUESTION, "temperature": 0, "tools": [TOOL], "tool_choice": "required"}
    _, document = await twin.post(CHAT, **body)
    async with twin.session.post(twin.base + CHAT, json={**body, "stream": True}) as answer:
        lines = [line.decode().removeprefix("data: ") async for line in answer.content if line.strip()]
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    told = [choice["delta"]["tool_calls"][0] for choice in choices if choice["delta"].get("tool_calls")]
    whole = document["choices"][0]["message"]["tool_calls"][0]["function"]
    assert [call["function"]["name"] for call in told if "id" in call] == [whole["name"]]
    assert "".join(call["function"].get("arguments", "") for call in told) == whole["arguments"]
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls", "stop_reason": None,
                           "token_ids": None}  # fmt: skip


async def test_without_a_parser_tools_are_refused_as_vllm_refuses_them(twin: Asker) -> None:
    for choice, reason in (("auto", '"auto" tool choice requires'), (NAMED, 'tool_choice=function "get_person" requires')):
        status, document = await twin.post(CHAT, messages=QUESTION, tools=[TOOL], tool_choice=choice)
        assert (status, document["error"]["message"].startswith(reason)) == (400, True)


async def test_a_response_format_is_followed(twin: Asker) -> None:
    formats: list[dict[str, Any]] = [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}},
    ]
    for form in formats:
        status, document = await twin.post(CHAT, messages=QUESTION, temperature=0, response_format=form)
        value = json.loads(document["choices"][0]["message"]["content"])
        assert (status, document["choices"][0]["finish_reason"]) == (200, "stop")
        assert follows(value) if "json_schema" in form else list(value) == ["synthetic"]


async def test_tools_take_room_in_the_prompt(start: Start) -> None:
    twin: Asker = await start(has_tool_parser=True)
    counts = [(await twin.post("/tokenize", messages=QUESTION, **tools))[1]["count"] for tools in ({}, {"tools": [TOOL]})]
    _, document = await twin.post(CHAT, messages=QUESTION, tools=[TOOL], max_tokens=1)
    assert counts[0] < counts[1] == document["usage"]["prompt_tokens"]


async def test_log_probabilities_come_with_each_token_and_never_rise_by_rank(twin: Asker) -> None:
    _, document = await twin.post(CHAT, messages=QUESTION, temperature=0, max_tokens=3, logprobs=True, top_logprobs=4)
    entries = document["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == document["choices"][0]["message"]["content"]
    for entry in entries:
        values = [other["logprob"] for other in entry["top_logprobs"]]
        assert (len(values), values, entry["logprob"]) == (4, sorted(values, reverse=True), values[0])
    plain = (await twin.complete("the people", 3, logprobs=2))["choices"][0]
    assert plain["logprobs"]["text_offset"] == [plain["text"].find(token) for token in plain["logprobs"]["tokens"]]
    assert [len(top) for top in plain["logprobs"]["top_logprobs"]] == [2, 2, 2]
