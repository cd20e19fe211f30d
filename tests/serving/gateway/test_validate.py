"""Requests decoded: what passes, what the engine gets, and how deep a body is."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway import embeddings, responses
from serving.gateway.errors import ApiError
from serving.gateway.schemas import is_deeper_than
from serving.gateway.validate import ChatRequest, engine_body, parse

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(['"[{', '\\"[', "\\", "]}"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=40,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(values, st.integers(0, 6), st.booleans())
def test_depth_is_measured_as_a_parser_would(value: Any, max_depth: int, ensure_ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=ensure_ascii).encode(errors="replace")
    assert is_deeper_than(body, max_depth) == (depth_of(value) > max_depth)


@given(st.binary(max_size=200) | st.text(alphabet='[]{}"\\ax', max_size=200).map(str.encode), st.integers(0, 64))
def test_any_bytes_are_either_a_request_or_refused(body: bytes, max_depth: int) -> None:
    readers = [
        partial(parse, "chat.completions"),
        partial(parse, "completions"),
        responses.parse,
        responses.parse_count,
        embeddings.parse,
    ]
    for reader in readers:
        with pytest.raises(ApiError):
            reader(body, max_depth=max_depth)


MIB = 1024 * 1024
HOSTILE: list[tuple[str, bytes]] = [
    ("brackets that only open", b"[" * MIB),
    ("brackets that open and close", b"[]" * (MIB // 2)),
    ("quotes", b'"' * MIB),
    ("a text that never ends", b'[[' * 40 + b'"' + b'\\"' * (MIB // 2)),
    ("backslashes", b'[[' * 40 + b'"' + b"\\" * MIB),
]  # fmt: skip


@pytest.mark.parametrize("body", [row[1] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_measuring_a_mebibyte_of_anything_is_linear(body: bytes) -> None:
    """Ten times what it takes; a quadratic scan would take hours."""
    began_s = time.perf_counter()
    is_deeper_than(body, 64)
    assert time.perf_counter() - began_s < 2


def test_every_field_that_is_allowed_reaches_the_engine() -> None:
    """Keeps the allow-list and what is sent together."""
    fields: dict[str, Any] = {
        "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "presence_penalty": 0.1, "frequency_penalty": 0.2,
        "repetition_penalty": 1.1, "stop": ["a"], "seed": 7, "logprobs": True, "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}},
        "logit_bias": {"7": -100, "8": 2.5}, "min_p": 0.1, "parallel_tool_calls": False, "tool_choice": "auto",
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"b": 1}, "strict": True}}],
    }  # fmt: skip
    ours = {"stream": True, "stream_options": {"include_usage": True}, "user": "u", "max_tokens": 3, "max_completion_tokens": 4}
    ours |= {"metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "p", "service_tier": "auto", "store": False}
    ours |= {"context": "refuse", "conversation": "conv_0", "prompt": {"id": "pmpt_1", "version": "2"}}
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "audio": None},
        {"role": "tool", "content": "x", "name": "n", "tool_call_id": "t", "refusal": None},
    ]
    body = json.dumps({"model": "small", "messages": messages, **fields, **ours}).encode()
    request = parse("chat.completions", body, max_depth=64)
    assert isinstance(request, ChatRequest)
    assert request.output_limit == 4
    assert set(request.__struct_fields__) == {"model", "messages", *fields, *ours}, "a new field belongs into this test"
    sent = json.loads(engine_body(request, model="m", max_tokens=4, cache_salt="s"))
    sent["response_format"]["json_schema"].pop("description")
    assert sent == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": 4,
        "cache_salt": "s",
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "x", "name": "n", "tool_call_id": "t"},
        ],
        **fields,
    }


def test_the_schemas_of_all_tools_together_are_bounded() -> None:
    """Each may be large; a hundred large ones would be one huge grammar."""
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": {"title": "x" * 15_000}}} for n in range(9)]
    for number, is_refused in ((8, False), (9, True)):
        body = {"model": "small", "messages": [{"role": "user", "content": "x"}], "tools": tools[:number]}
        with pytest.raises(ApiError) if is_refused else nullcontext():
            parse("chat.completions", json.dumps(body).encode(), max_depth=64)


def test_null_means_left_out() -> None:
    optional = {name: None for name in ChatRequest.__struct_fields__ if name not in ("model", "messages")}
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "x"}], **optional}).encode()
    request = parse("chat.completions", body, max_depth=64)
    assert (request.is_streamed, request.wants_usage, request.num_choices, request.output_limit) == (False, False, 1, None)


def test_of_a_repeated_field_the_last_one_counts_for_us_and_for_the_engine() -> None:
    """A parser that takes the first behind one that takes the last is how checks are bypassed."""
    body = b'{"model":"small","prompt":"x","n":1,"n":2}'
    request = parse("completions", body, max_depth=64)
    assert json.loads(engine_body(request, model="m", max_tokens=1, cache_salt="s"))["n"] == 2


def test_a_complaint_about_a_long_name_is_short() -> None:
    body = json.dumps({"model": "small", "prompt": "x", "y" * 100_000: 1}).encode()
    with pytest.raises(ApiError) as caught:
        parse("completions", body, max_depth=64)
    assert len(caught.value.body()) < 1500
