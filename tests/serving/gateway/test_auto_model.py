"""`model: "auto"` through the gateway: who answers, what the client and the bill are told, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import MakeGateway
from gateway_support import RELEASE_ID, Gateway, chat_body, make_settings

from serving.gateway.releases import LoadedRelease
from serving.gateway.tenants import Tenant

ROOM = 2048
"""Windows, in tokens, where a test says no other."""
REASON = "x-flotilla-model-reason"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def three_classes(**windows: int) -> list[dict[str, Any]]:
    served = make_settings().model_dump()["models"][0]
    return [
        {**served, "model_class": name, "aliases": [], "context_window_tokens": windows.get(name, ROOM)}
        for name in ("small", "medium", "large")
    ]


@pytest.fixture
async def gateway(make_gateway: MakeGateway) -> Gateway:
    return await serving(make_gateway)


async def serving(make_gateway: Any, **windows: int) -> Gateway:
    gateway: Gateway = await make_gateway(models=three_classes(**windows))
    assert gateway.releases.release is not None
    gateway.releases.release = replace(gateway.releases.release, context_window_tokens=ROOM)
    for pool in gateway.pools.values():
        pool.update([gateway.engine.endpoint])
    return gateway


async def ask(gateway: Gateway, key: str | None = None, needs: str = "", **fields: Any) -> tuple[int, Any, Any]:
    headers = {"x-flotilla-needs": needs} if needs else {}
    async with gateway.post(body=chat_body(model="auto", **fields), key=key, **headers) as answer:
        return answer.status, answer.headers, await answer.json()


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("needs", "fields", "expected"),
    [
        ("", {}, "small short_and_simple"),
        ("reasoning", {}, "medium declared_reasoning"),
        ("coding", {}, "large declared_coding"),
        (" coding , reasoning ", {}, "large declared_coding"),
        ("", {"metadata": {"flotilla_needs": "long_context"}}, "large declared_long_context"),
        ("reasoning", {"metadata": {"flotilla_needs": "coding"}}, "large declared_coding"),
        ("", {"metadata": {"needs": "what it means is the client's own"}}, "small short_and_simple"),
        ("", {"messages": user("Mend this:\n```py\nx =\n```")}, "large code_fence"),
        ("", {"tools": [TOOL]}, "medium tools"),
        ("", {"tools": [TOOL], "tool_choice": "none"}, "small short_and_simple"),
        ("", {"response_format": {"type": "json_object"}}, "medium response_format"),
        ("", {"response_format": {"type": "text"}}, "small short_and_simple"),
    ],
)
async def test_the_answer_and_its_bill_name_the_class_and_why(
    gateway: Gateway, needs: str, fields: dict[str, Any], expected: str
) -> None:
    status, headers, _ = await ask(gateway, needs=needs, **fields)
    model_class, reason = expected.split()
    assert (status, headers["x-flotilla-model"]) == (200, model_class)
    told, features = headers[REASON].split("; ")
    assert told == reason
    (asked,), (opened,) = gateway.engine.asked, gateway.journal.opened
    assert asked.body["model"] == opened.model == model_class
    assert "metadata" not in asked.body
    assert (opened.asked_model, opened.model_reason) == ("auto", reason)
    assert features.split()[0] == f"prompt_tokens={opened.prompt_tokens}"  # all three have one tokenizer here


async def test_whoever_names_a_class_is_told_nothing_and_needs_change_nothing(gateway: Gateway) -> None:
    async with gateway.post(body=chat_body(model="small"), **{"x-flotilla-needs": "coding"}) as answer:
        assert answer.status == 200
        assert not [name for name in answer.headers if name.lower().startswith("x-flotilla-model")]
    (opened,) = gateway.journal.opened
    assert (opened.model, opened.asked_model, opened.model_reason) == ("small", "", "")


@pytest.mark.parametrize(
    ("tenant", "needs", "expected"),
    [
        (Tenant("floor", auto_floor="medium"), "", "medium short_and_simple+floor"),
        (Tenant("cap", auto_ceiling="medium"), "coding", "medium declared_coding+ceiling"),
        (Tenant("two", models=("small", "medium")), "coding", "medium declared_coding+not_available"),
        (Tenant("top", models=("large",)), "", "large short_and_simple+not_available"),
    ],
)
async def test_a_tenants_own_bounds_hold(gateway: Gateway, tenant: Tenant, needs: str, expected: str) -> None:
    _, headers, _ = await ask(gateway, gateway.keys.add(tenant), needs)
    assert [headers["x-flotilla-model"], headers[REASON].split(";")[0]] == expected.split()


async def test_a_tenant_that_may_use_nothing_within_its_bounds_finds_no_such_model(gateway: Gateway) -> None:
    key = gateway.keys.add(Tenant("shut", models=("small",), auto_floor="large"))
    status, _, document = await ask(gateway, key)
    assert (status, document["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(("needs", "metadata"), [("speed", ""), ("", "coding,speed")])
async def test_a_need_that_is_not_known_is_refused_by_name(gateway: Gateway, needs: str, metadata: str) -> None:
    status, _, document = await ask(gateway, needs=needs, metadata={"flotilla_needs": metadata})
    assert (status, document["error"]["code"]) == (400, "invalid_value")
    assert "`speed`" in document["error"]["message"]
    assert not gateway.engine.asked


async def test_a_prompt_too_long_for_its_class_goes_to_the_next_that_has_the_room(make_gateway: MakeGateway) -> None:
    gateway = await serving(make_gateway, small=256, medium=256)
    _, headers, _ = await ask(gateway, messages=user("word " * 60), max_tokens=250)
    assert [headers["x-flotilla-model"], headers[REASON].split(";")[0]] == ["large", "not_short+window"]
    _, headers, _ = await ask(gateway, needs="coding", max_tokens=2048)
    assert not gateway.engine.asked[1:], "not even the largest has the room"
    capped = gateway.keys.add(Tenant("cap", auto_ceiling="medium"))
    status, _, document = await ask(gateway, capped, messages=user("word " * 60), max_tokens=250)
    assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
    assert len(gateway.engine.asked) == 1


async def test_a_class_without_a_release_does_not_answer(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    release: LoadedRelease | None = gateway.releases.release
    monkeypatch.setattr(gateway.releases, "get", lambda model_class: None if model_class == "small" else release)
    _, headers, _ = await ask(gateway)
    assert headers[REASON].startswith("short_and_simple+not_available; ")
    assert (headers["x-flotilla-model"], gateway.journal.opened[0].release_id) == ("medium", RELEASE_ID)
    monkeypatch.setattr(gateway.releases, "get", lambda _: None)
    status, _, document = await ask(gateway)
    assert (status, document["error"]["code"]) == (503, "model_not_ready")


async def test_responses_completions_and_counts_take_auto_and_embeddings_do_not(gateway: Gateway) -> None:
    client = gateway.openai()
    answer = await client.responses.create(model="auto", input="Hello", metadata={"flotilla_needs": "coding"})
    assert answer.model == "large"
    await client.completions.create(model="auto", prompt="Hello")
    await client.completions.create(model="auto", prompt=[1] * 250)
    assert [opened.model for opened in gateway.journal.opened] == ["large", "small", "medium"]
    async with gateway.post("/v1/responses/input_tokens", {"model": "auto", "input": "Hello"}) as counted:
        assert (await counted.json())["input_tokens"] > 0
    async with gateway.post("/v1/embeddings", {"model": "auto", "input": "Hello"}) as refused:
        assert (await refused.json())["error"]["code"] == "model_not_found"


async def test_a_refusal_after_the_choice_names_the_class(gateway: Gateway) -> None:
    gateway.pools["small"].update([])
    status, headers, _ = await ask(gateway)
    assert (status, headers["x-flotilla-model"]) == (503, "small")


async def test_the_card_of_auto_has_the_largest_window(make_gateway: MakeGateway) -> None:
    gateway = await serving(make_gateway, small=256)
    card: Any = await gateway.openai().models.retrieve("auto")
    assert (card.id, card.model_class, card.max_model_len) == ("auto", "auto", ROOM)
