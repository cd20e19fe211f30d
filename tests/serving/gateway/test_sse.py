"""Events cut out of bytes: properties against a plain JSON parser as oracle."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway import sse
from serving.gateway.sse import BrokenStream, EventSplitter, Usage, cut_usage

NASTY = [
    ',"usage":{',
    '"choices":[]',
    '"finish_reason":"stop"',
    "data: [DONE]",
    "\n\n",
    '\\",\\"usage\\":{',
    "}}}",
    "é\u2028",
    "",
]
texts = st.text(max_size=20) | st.sampled_from(NASTY)
details = st.none() | st.fixed_dictionaries({"cached_tokens": st.none() | st.integers(0, 99), "x": st.none() | st.just({"y": 1})})
usages = st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 10**6), "total_tokens": st.integers(0, 10**6), "completion_tokens": st.integers(0, 10**6)},
    optional={"prompt_tokens_details": details, "completion_tokens_details": st.none()},
)
pieces = st.fixed_dictionaries(
    {"index": st.integers(0, 7), "delta": st.fixed_dictionaries({"content": texts})},
    optional={"finish_reason": st.none() | st.sampled_from(["stop", "length"]), "stop_reason": st.none() | texts},
).map(lambda piece: {"index": piece["index"], **piece})


@st.composite
def documents(draw: Any) -> dict[str, Any]:
    """A chunk as an engine writes it: usage behind choices, and sometimes fields behind that."""
    document = {"id": draw(texts), "choices": draw(st.lists(pieces, max_size=1))}
    if draw(st.booleans()):
        document["usage"] = draw(usages)
    if draw(st.booleans()):
        document |= {"prompt_token_ids": None, "prompt_text": draw(st.none() | texts)}
    return document


def encode(document: dict[str, Any], *, ensure_ascii: bool = False) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":"), ensure_ascii=ensure_ascii).encode(errors="replace")


@given(documents(), st.booleans())
def test_cutting_counts_out_leaves_everything_else(document: dict[str, Any], ensure_ascii: bool) -> None:
    event = encode(document, ensure_ascii=ensure_ascii)
    bare, usage = cut_usage(event)
    left = json.loads(event[6:])
    counts = left.pop("usage", None)
    assert json.loads(bare[6:]) == left
    if counts is None:
        assert usage is None
    else:
        assert usage is not None
        cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (
            counts["prompt_tokens"],
            counts["completion_tokens"],
            cached,
        )


@given(documents())
def test_the_short_look_at_common_events_sees_what_the_careful_one_does(document: dict[str, Any]) -> None:
    for event in (encode(document), encode({**document, "choices": [{"index": 0, "finish_reason": None}], "usage": {"a": 1}})):
        plain = sse.plain_piece(event)
        if plain is not None:
            assert plain == cut_usage(event)
            assert (sse.choice_index(event), sse.finish_reason(event), sse.has_no_choices(event)) == (0, "", False)


def test_a_common_event_is_looked_at_once() -> None:
    head = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]'
    counts = b',"usage":{"prompt_tokens":5,"total_tokens":6,"completion_tokens":1}'
    plain = sse.plain_piece(head + counts + b"}")
    assert plain is not None
    assert (plain[0], plain[1].prompt_tokens, plain[1].completion_tokens) == (head + b"}", 5, 1)
    for other in (head + b"}", head + counts + b',"x":1}', (head + counts + b"}").replace(b"null", b'"stop"'), sse.DONE):
        assert sse.plain_piece(other) is None


@given(documents())
def test_marks_are_found_where_they_are_and_never_in_what_a_model_wrote(document: dict[str, Any]) -> None:
    event = encode(document)
    choices = document["choices"]
    assert sse.has_no_choices(event) == (not choices)
    assert sse.choice_index(event) == (choices[0]["index"] if choices else 0)
    assert sse.finish_reason(event) == ((choices[0].get("finish_reason") or "") if choices else "")
    assert sse.engine_error(event) is None


@given(st.lists(documents(), min_size=1, max_size=4), st.data())
def test_events_cut_anywhere_come_out_whole(stream: list[dict[str, Any]], data: st.DataObject) -> None:
    events = [encode(document) for document in stream]
    whole = b"".join(event + b"\n\n" for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    splitter = EventSplitter()
    seen = [
        event for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True) for event in splitter.feed(whole[start:end])
    ]
    assert seen == events


def test_an_event_cut_at_every_byte_comes_out_whole() -> None:
    events = [b'data: {"choices":[],"usage":{"prompt_tokens":1}}', sse.DONE]
    whole = b": comment\n\n" + b"".join(event + b"\n\n" for event in events)
    for cut in range(len(whole)):
        splitter = EventSplitter()
        assert splitter.feed(whole[:cut]) + splitter.feed(whole[cut:]) == events


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (b'data: {"error": {"message": "m", "type": "t", "param": null, "code": 500}}', 500),
        (b'data: {"error":{"message":"m","code":"x"}}', "x"),
        (b'data: {"object":"error","message":"m","code":400}', None),
        (b'data: {"error": what', None),
    ],
)
def test_an_engines_failure_is_recognised(event: bytes, code: Any) -> None:
    said = sse.engine_error(event)
    assert said is not None
    assert said.code == code


@pytest.mark.parametrize("event", [b'data: {"a":1,"usage":{"prompt_tokens":', b'data: {"a":1,"usage":{"prompt_tokens":"x"}}'])
def test_counts_that_cannot_be_read_break_the_stream(event: bytes) -> None:
    with pytest.raises(BrokenStream):
        cut_usage(event)


def test_an_event_without_end_breaks_the_stream() -> None:
    splitter = EventSplitter()
    with pytest.raises(BrokenStream):
        for _ in range(5):
            splitter.feed(b"x" * 1024 * 1024)


def test_explicit_zero_is_zero() -> None:
    """LiteLLM #37992 read it as missing and billed an estimate."""
    zero = b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":0}}}'
    _, usage = cut_usage(zero)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (0, 0, 0)
    assert cut_usage(b'data: {"choices":[],"usage":{}}')[1] == Usage()
