"""Conversations that do not fit their window, through the gateway: what engines get, and what clients and bills are told."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import MakeGateway
from gateway_support import (
    CHAT_TEMPLATE,
    TOKENIZER_CONFIG,
    WINDOW,
    Asked,
    Behaviour,
    FakeEngine,
    Gateway,
    chat_body,
    make_settings,
)

from serving.gateway import aside, compaction, errors
from serving.gateway.errors import ApiError
from serving.gateway.prompts import PromptCounter, prompt_counter
from serving.gateway.tenants import Tenant
from serving.gateway.validate import ChatRequest, parse

CONTEXT, REASON, DROPPED = "x-flotilla-context", "x-flotilla-context-reason", "x-flotilla-context-dropped"
SUMMARY_ENGINE_SAYS = "They spoke of France."


def say(role: str, words: int, mark: str = "", **fields: Any) -> dict[str, Any]:
    """A message of about so many tokens."""
    return {"role": role, "content": mark + " France" * words, **fields}


def call(call_id: str) -> list[dict[str, Any]]:
    return [{"id": call_id, "type": "function", "function": {"name": "look", "arguments": "{}"}}]


TALK = [
    say("system", 2),
    say("user", 30, "one"),
    say("assistant", 30),
    say("user", 5, "two"),
    say("assistant", 5),
    say("user", 5),
]


@pytest.fixture
def counter(tokenizer_json: bytes) -> PromptCounter:
    return prompt_counter(tokenizer_json, TOKENIZER_CONFIG, CHAT_TEMPLATE.encode())


async def ask(gateway: Gateway, messages: list[dict[str, Any]], strategy: str = "", **fields: Any) -> tuple[int, Any, Any]:
    headers = {CONTEXT: strategy} if strategy else {}
    key = fields.pop("key", None)
    async with gateway.post(body=chat_body(messages=messages, **fields), key=key, **headers) as answer:
        return answer.status, answer.headers, await answer.json()


def long_talk(counter: PromptCounter, window: int = WINDOW) -> list[dict[str, Any]]:
    """TALK, grown until it is just over the window."""
    talk = [dict(message) for message in TALK]
    while len(counter.chat_ids(talk)) <= window:
        talk[1]["content"] += " France"
    return talk


async def test_what_is_too_long_is_refused_unless_something_else_was_declared(gateway: Gateway, counter: PromptCounter) -> None:
    status, headers, document = await ask(gateway, long_talk(counter))
    assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
    assert not [name for name in headers if name.lower().startswith(CONTEXT)]
    assert not gateway.engine.asked and not gateway.journal.opened


@pytest.mark.parametrize(
    ("strategy", "dropped"), [("truncate-oldest", range(1, 3)), ("keep-system-and-last", range(1, 5))], ids=str
)
async def test_what_was_dropped_is_told_and_is_what_the_engine_did_not_get(
    gateway: Gateway, counter: PromptCounter, strategy: str, dropped: range
) -> None:
    talk = long_talk(counter)
    status, headers, _ = await ask(gateway, talk, strategy, max_tokens=8)
    kept = [message for number, message in enumerate(talk) if number not in dropped]
    (asked,), (opened,) = gateway.engine.asked, gateway.journal.opened
    assert (status, asked.body["messages"]) == (200, kept)
    assert "context" not in asked.body
    before, after = len(counter.chat_ids(talk)), len(counter.chat_ids(kept))
    assert headers[CONTEXT] == strategy
    assert headers[REASON] == f"over_window; prompt_tokens={before} window_tokens={WINDOW}"
    assert headers[DROPPED] == f"messages={dropped[0]}-{dropped[-1]} tokens={before - after}"
    assert (opened.prompt_tokens, opened.is_compacted, opened.compaction) == (after, True, strategy)
    assert (opened.dropped_messages, opened.dropped_tokens) == (len(dropped), before - after)


async def test_the_body_goes_before_the_header_and_that_before_the_tenant(gateway: Gateway, counter: PromptCounter) -> None:
    talk = long_talk(counter)
    key = gateway.keys.add(Tenant("acme", context="keep-system-and-last"))
    said = [
        (await ask(gateway, talk, **given, key=key))[1].get(CONTEXT)
        for given in ({}, {"strategy": "truncate-oldest"}, {"strategy": "truncate-oldest", "context": "refuse"})
    ]
    assert said == ["keep-system-and-last", "truncate-oldest", None]
    status, _, document = await ask(gateway, talk, "shrink")
    assert (status, document["error"]["param"]) == (400, CONTEXT)
    status, _, document = await ask(gateway, talk, context="shrink")
    assert (status, document["error"]["param"]) == (400, "context")


async def test_what_fits_is_left_as_it_is_and_pays_no_header(gateway: Gateway) -> None:
    _, headers, _ = await ask(gateway, [say("user", 1)], "truncate-oldest")
    assert CONTEXT not in headers
    assert gateway.journal.opened[0].is_compacted is False


async def test_an_answer_of_no_stated_length_gets_some_room_where_something_can_go(
    gateway: Gateway, counter: PromptCounter
) -> None:
    talk = long_talk(counter)
    talk[1]["content"] = talk[1]["content"].removesuffix(" France")
    assert WINDOW * 3 // 4 < len(counter.chat_ids(talk)) <= WINDOW
    _, headers, _ = await ask(gateway, talk, "truncate-oldest")
    assert headers[DROPPED].startswith("messages=1-2 ")
    assert gateway.engine.asked[0].body["max_tokens"] >= WINDOW // 4
    one = [say("user", 1)]
    while len(counter.chat_ids(one)) < WINDOW - 8:
        one[0]["content"] += " France"
    status, headers, _ = await ask(gateway, one, "truncate-oldest")  # a short answer is better than none
    assert (status, CONTEXT in headers) == (200, False)


async def test_what_may_not_be_dropped_and_does_not_fit_is_refused(gateway: Gateway) -> None:
    talk = [say("system", 260), say("user", 5), say("assistant", 5), say("user", 5)]
    for strategy in ("truncate-oldest", "keep-system-and-last", "summarise"):
        status, headers, document = await ask(gateway, talk, strategy)
        assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
        assert CONTEXT not in headers
    assert not gateway.engine.asked


async def test_plain_prompts_are_no_conversations(gateway: Gateway) -> None:
    key = gateway.keys.add(Tenant("acme", context="truncate-oldest"))
    async with gateway.post("/v1/completions", {"model": "small", "prompt": " France" * 300}, key=key) as answer:
        assert (await answer.json())["error"]["code"] == "context_length_exceeded"


async def test_a_response_is_truncated_as_openai_says_it(gateway: Gateway, counter: PromptCounter) -> None:
    client, talk = gateway.openai(), long_talk(counter)
    items: Any = [{"role": message["role"], "content": message["content"]} for message in talk]
    answer = await client.responses.with_raw_response.create(model="small", input=items, truncation="auto")
    assert answer.headers[CONTEXT] == "truncate-oldest"
    assert answer.parse().truncation == "auto"


LARGE_WINDOW = 512


@pytest.fixture
async def with_small(make_gateway: MakeGateway) -> Gateway:
    """A gateway whose small class has the longer window, so that summaries find room with a tokenizer of few words."""
    small, large = make_settings().model_dump()["models"]
    windows = [{**small, "context_window_tokens": 4096}, {**large, "context_window_tokens": LARGE_WINDOW}]
    gateway: Gateway = await make_gateway(models=windows)  # type: ignore[misc]
    assert gateway.releases.release is not None
    gateway.releases.release = replace(gateway.releases.release, context_window_tokens=4096)
    gateway.pools["large"].update([gateway.engine.endpoint])
    return gateway


async def test_auto_goes_to_the_class_with_room_and_drops_only_where_none_has_it(
    with_small: Gateway, counter: PromptCounter
) -> None:
    gateway = with_small
    key = gateway.keys.add(Tenant("globex", context="truncate-oldest"))
    _, fits, _ = await ask(gateway, long_talk(counter, LARGE_WINDOW), model="auto", key=key)
    _, cut, _ = await ask(gateway, long_talk(counter, 4096), model="auto", key=key)
    reasons = [headers["x-flotilla-model-reason"].split(";")[0] for headers in (fits, cut)]
    assert reasons[0] == "not_short+not_available+window" and reasons[1].endswith("+window")
    assert [headers["x-flotilla-model"] for headers in (fits, cut)] == ["small", "small"]
    assert [headers.get(CONTEXT) for headers in (fits, cut)] == [None, "truncate-oldest"]


async def test_a_summary_by_the_small_model_takes_the_place_of_what_is_dropped(
    with_small: Gateway, counter: PromptCounter
) -> None:
    gateway = with_small
    gateway.engine.behaviour = Behaviour(tokens=tuple(SUMMARY_ENGINE_SAYS.split(" ")))
    talk = long_talk(counter, LARGE_WINDOW)
    status, headers, _ = await ask(gateway, talk, "summarise", model="large", max_tokens=8)
    assert (status, headers[CONTEXT]) == (200, "summarise")
    assert headers[DROPPED].startswith("messages=1-2 ")
    summary, main = gateway.engine.asked
    assert summary.body["messages"][1:-1] == talk[1:3]
    assert [message["role"] for message in main.body["messages"]] == ["system", "user", "assistant", "user"]
    assert SUMMARY_ENGINE_SAYS.replace(" ", "") in main.body["messages"][1]["content"]
    assert main.body["messages"][1]["content"].endswith(talk[3]["content"])
    first, second = gateway.journal.opened
    assert (first.summary_for, second.summary_for) == (second.event_id, "")
    assert (first.tenant, second.compaction, second.dropped_messages) == (second.tenant, "summarise", 2)
    assert (first.model, second.model) == ("small", "large")
    assert [closed.output_tokens for closed in gateway.journal.closed] == [4, 4]


@pytest.mark.parametrize(
    ("case", "does", "why"),
    [
        ("refused", Behaviour(status=400), "rejected_by_engine"),
        ("late", Behaviour(delay_s=0.2), "timeout"),
        ("empty", Behaviour(tokens=(" ",)), "no_text"),
        ("limited", Behaviour(), "rate_limit_exceeded"),
    ],
    ids=str,
)
async def test_without_a_summary_the_oldest_are_dropped_and_the_reason_says_why(
    with_small: Gateway, counter: PromptCounter, monkeypatch: pytest.MonkeyPatch, case: str, does: Behaviour, why: str
) -> None:
    gateway = with_small
    key = gateway.keys.add(Tenant("globex", context="summarise"))
    real: Callable[..., Any] = FakeEngine._answer

    async def answer(self: FakeEngine, writer: Any, asked: Asked, otherwise: Behaviour) -> bool:
        is_summary = asked.body["messages"][-1]["content"].startswith("Summarise")
        return bool(await real(self, writer, asked, does if is_summary else otherwise))

    monkeypatch.setattr(FakeEngine, "_answer", answer)
    if case == "late":
        monkeypatch.setattr(aside.Aside.__init__, "__defaults__", (0.1,))
    if case == "limited":
        monkeypatch.setattr(gateway.limiter, "reserve", limited(gateway.limiter.reserve))
    talk = long_talk(counter, LARGE_WINDOW)
    status, headers, _ = await ask(gateway, talk, model="large", key=key, max_tokens=8)
    assert (status, headers[CONTEXT]) == (200, "truncate-oldest")
    assert headers[REASON].startswith(f"no_summary:{why}; ")
    assert gateway.engine.asked[-1].body["messages"] == [talk[0], *talk[3:]]
    await gateway.is_quiet()


def limited(reserve: Callable[..., Any]) -> Callable[..., Any]:
    """A limiter that refuses its first request."""
    asked: list[str] = []

    async def refusing(accounts: Any, request_id: str, cost: Any) -> Any:
        asked.append(request_id)
        if len(asked) == 1:
            raise ApiError(errors.RATE_LIMIT_EXCEEDED, "enough", retry_after_s=1)
        return await reserve(accounts, request_id, cost)

    return refusing


async def test_what_no_window_has_room_to_summarise_is_dropped(gateway: Gateway, counter: PromptCounter) -> None:
    status, headers, _ = await ask(gateway, long_talk(counter), "summarise", max_tokens=8)
    assert (status, headers[CONTEXT]) == (200, "truncate-oldest")
    assert headers[REASON].split(";")[0] in ("no_summary:too_long", "no_summary:no_room")
    assert len(gateway.engine.asked) == 1


async def test_a_client_that_leaves_takes_the_summary_with_it(with_small: Gateway, counter: PromptCounter) -> None:
    gateway = with_small
    gateway.engine.behaviour = Behaviour(delay_s=0.3)
    asking = asyncio.create_task(ask(gateway, long_talk(counter, LARGE_WINDOW), "summarise", model="large"))
    async with asyncio.timeout(5):
        while not gateway.engine.asked:
            await asyncio.sleep(0.005)
    asking.cancel()
    await asyncio.wait_for(gateway.engine.asked[0].done.wait(), 5)
    await gateway.is_quiet()
    assert len(gateway.engine.asked) == len(gateway.journal.opened) == 1


def test_random_conversations_fit_and_lose_no_system_prompt_and_no_half_of_a_pair(counter: PromptCounter) -> None:
    rng = random.Random(7)
    num_shortened = 0
    for _ in range(400):
        request = chat(rng)
        before = len(counter.chat_ids([message.plain() for message in request.messages]))
        room = rng.randrange(1, before)
        strategy: Any = rng.choice(("truncate-oldest", "keep-system-and-last"))
        short = compaction.shorten(counter, request, strategy, prompt_tokens=before, max_prompt_tokens=room)
        if short is None:
            continue
        num_shortened += 1
        kept = short.request.messages
        assert short.tokens == len(counter.chat_ids([message.plain() for message in kept])) <= room
        gone = [request.messages[number] for number in short.dropped]
        assert [message for message in request.messages if message not in gone] == kept
        assert "system" not in {message.role for message in gone}
        calls = {made.id for message in kept for made in message.tool_calls or ()}
        assert calls == {message.tool_call_id for message in kept if message.role == "tool"}
    assert num_shortened > 120


def chat(rng: random.Random) -> ChatRequest:
    messages: list[dict[str, Any]] = [say("system", rng.randrange(20))]
    for turn in range(rng.randrange(1, 12)):
        messages.append(say("user", rng.randrange(40), f"{turn}"))
        for step in range(rng.randrange(3)):
            messages.append(say("assistant", rng.randrange(5), tool_calls=call(f"{turn}-{step}")))
            messages.append(say("tool", rng.randrange(60), tool_call_id=f"{turn}-{step}"))
        messages.append(say("assistant", rng.randrange(40), f"{turn}"))
    request = parse("chat.completions", json.dumps({"model": "small", "messages": messages}).encode(), max_depth=64)
    assert isinstance(request, ChatRequest)
    return request


def test_numbers_are_told_as_ranges() -> None:
    assert [compaction.ranges(numbers) for numbers in ((), (1,), (1, 2), (1, 2, 3, 7), (1, 3))] == [
        "",
        "1",
        "1-2",
        "1-3,7",
        "1,3",
    ]
