"""Registered prompts: asked by id, in the version that was named, counted as if they had been sent, and there for nobody else."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from botocore.exceptions import EndpointConnectionError
from gateway_support import CHAT_TEMPLATE, TOKENIZER_CONFIG, Gateway, chat_body
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_world import empty, prompt_table
from tokenizers import Tokenizer

from serving.gateway import prompt_table as prompt_table_module
from serving.gateway import registered
from serving.gateway.heads import Heads
from serving.gateway.messages import Message
from serving.gateway.prompt_table import Prompt, PromptChanged, PromptMissing, PromptTable, Warm
from serving.gateway.prompts import PromptCounter, prompt_counter
from serving.gateway.tenants import Tenant
from tests.serving.gateway.test_openai_client import ASK

SYSTEM = {"role": "system", "content": "You are a shop. Be brief."}
POLITE = {"role": "system", "content": "You are a shop. Be polite."}


@pytest.fixture(scope="module")
def aws() -> Iterator[tuple[PromptTable, Any]]:
    with prompt_table() as made:
        yield made


@pytest.fixture
def world(aws: tuple[PromptTable, Any]) -> tuple[PromptTable, Any]:
    """The table, empty."""
    table, client = aws
    empty(client)
    return table, client


@pytest.fixture
def table(world: tuple[PromptTable, Any]) -> PromptTable:
    return world[0]


@pytest.fixture
async def gateway(make_gateway: Any, table: PromptTable) -> Gateway:
    made: Gateway = await make_gateway(prompts=table)
    return made


async def ask(gateway: Gateway, method: str, path: str = "", body: Any = None, key: str = "") -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key or gateway.key}"}
    async with gateway.http.request(method, f"{gateway.base_url}/v1/prompts{path}", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def register(gateway: Gateway, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    status, made = await ask(gateway, "POST", body={"messages": list(messages or (SYSTEM,)), **fields})
    assert status == 201, made
    return dict(made)


def asked_messages(gateway: Gateway) -> list[Any]:
    return list(gateway.engine.asked[-1].body["messages"])


# The routes.


async def test_a_prompt_is_registered_shown_listed_and_deleted(gateway: Gateway) -> None:
    made = await register(gateway, SYSTEM, name="shop", models=["SmolLM2", "small"])
    assert made["id"].startswith("pmpt_")
    assert (made["object"], made["version"], made["name"], made["models"]) == ("prompt", "1", "shop", ["small"])
    assert made["messages"] == [SYSTEM] and made["tokens"]["small"] > 5
    assert await ask(gateway, "GET", f"/{made['id']}") == (200, made)
    status, listed = await ask(gateway, "GET")
    assert (status, [(entry["id"], entry["version"], entry["name"]) for entry in listed["data"]]) == (
        200,
        [(made["id"], "1", "shop")],
    )
    assert await ask(gateway, "DELETE", f"/{made['id']}") == (
        200,
        {"id": made["id"], "object": "prompt.deleted", "deleted": True},
    )
    for method, path in (("GET", f"/{made['id']}"), ("DELETE", f"/{made['id']}")):
        status, refused = await ask(gateway, method, path)
        assert (status, refused["error"]["code"]) == (404, "prompt_not_found")
    assert (await ask(gateway, "GET"))[1]["data"] == []


async def test_versions_are_counted_and_the_latest_answers_where_none_is_named(gateway: Gateway) -> None:
    made = await register(gateway, SYSTEM, name="shop", models=["small"])
    status, second = await ask(gateway, "POST", f"/{made['id']}", {"messages": [POLITE]})
    assert (status, second["version"], second["name"], second["models"]) == (201, "2", "shop", ["small"])
    client = gateway.openai()
    for version, expected in ((None, POLITE), ("1", SYSTEM), ("2", POLITE)):
        prompt = {"id": made["id"], **({"version": version} if version else {})}
        raw = await client.chat.completions.with_raw_response.create(model="small", messages=ASK, extra_body={"prompt": prompt})
        assert asked_messages(gateway) == [expected, *ASK]
        assert "prompt" not in gateway.engine.asked[-1].body
        assert raw.headers["x-flotilla-prompt"] == f"{made['id']}@{version or 2}"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(
            model="small", messages=ASK, extra_body={"prompt": {"id": made["id"], "version": "3"}}
        )
    assert (caught.value.code, caught.value.param) == ("prompt_not_found", "prompt")
    assert gateway.num_asked == 3


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_openais_client_names_a_prompt_in_a_response(gateway: Gateway, is_streamed: bool) -> None:
    made = await register(gateway)
    prompt: Any = {"id": made["id"], "version": "1"}
    answer: Any = await gateway.openai().responses.create(
        model="small", input="Hi", instructions="In French.", prompt=prompt, stream=is_streamed
    )
    if is_streamed:
        answer = [event async for event in answer][-1].response
    assert (answer.output_text, answer.prompt.id) == (" Paris.", made["id"])
    assert [message["content"] for message in asked_messages(gateway)] == [SYSTEM["content"], "In French.", "Hi"]


async def test_a_prompt_is_billed_like_its_messages_and_counts_like_them(gateway: Gateway) -> None:
    made = await register(gateway)
    client = gateway.openai()
    await client.chat.completions.create(model="small", messages=[SYSTEM, *ASK])  # type: ignore[list-item]
    for _ in range(2):
        await client.chat.completions.create(model="small", messages=ASK, extra_body={"prompt": {"id": made["id"]}})
    assert len({opened.prompt_tokens for opened in gateway.journal.opened}) == 1
    assert len({(closed.prompt_tokens, closed.cached_tokens, closed.cost_pico_usd) for closed in gateway.journal.closed}) == 1
    counted = await client.responses.input_tokens.count(model="small", input="Hello", extra_body={"prompt": {"id": made["id"]}})
    assert counted.input_tokens > made["tokens"]["small"]


async def test_nobody_else_sees_asks_or_deletes_it(gateway: Gateway) -> None:
    """The refusal is the one of an id that nobody has, or it would tell that somebody has it."""
    made = await register(gateway)
    other = gateway.keys.add(Tenant("other", trust_group="shop"))
    refusals = []
    for prompt_id in (made["id"], "pmpt_" + "0" * 24):
        seen = [
            await ask(gateway, *call, key=other)
            for call in (("GET", f"/{prompt_id}"), ("DELETE", f"/{prompt_id}"), ("POST", f"/{prompt_id}", {"messages": [POLITE]}))
        ]
        async with gateway.post(body=chat_body(prompt={"id": prompt_id}), key=other) as answer:
            seen.append((answer.status, await answer.json()))
        assert [status for status, _ in seen] == [404] * 4
        refusals.append(json.dumps(seen).replace(prompt_id, "ID"))
    assert refusals[0] == refusals[1]
    assert (await ask(gateway, "GET", key=other))[1]["data"] == []
    assert gateway.num_asked == 0
    assert (await ask(gateway, "GET", f"/{made['id']}"))[0] == 200


REFUSALS: list[tuple[str, Any, int, str, str | None]] = [
    ("no messages", {"messages": []}, 400, "invalid_value", "messages"),
    ("a tool's message", {"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
    ("empty content", {"messages": [{"role": "system", "content": ""}]}, 400, "invalid_value", "messages[0].content"),
    ("a field too many", {"messages": [SYSTEM], "cache_salt": "x"}, 400, "unsupported_parameter", "cache_salt"),
    ("another's model", {"messages": [SYSTEM], "models": ["huge"]}, 404, "model_not_found", "model"),
    ("too large", {"messages": [{"role": "system", "content": "RANDOM"}]}, 413, "prompt_too_large", "messages"),
]


@pytest.mark.parametrize(("what", "body", "status", "code", "param"), REFUSALS, ids=[case[0] for case in REFUSALS])
async def test_what_cannot_be_registered_is_refused_by_name(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, what: str, body: Any, status: int, code: str, param: str | None
) -> None:
    if what == "too large":
        monkeypatch.setattr(prompt_table_module, "MAX_PACKED_BYTES", 1000)
        body["messages"][0]["content"] = random.Random(1).randbytes(1000).hex()
    found, refused = await ask(gateway, "POST", body=body)
    assert (found, refused["error"]["code"], refused["error"]["param"]) == (status, code, param), refused
    assert (await ask(gateway, "GET"))[1]["data"] == []


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ({}, "prompt.id"),
        ({"id": "x", "version": "new"}, "prompt.version"),
        ({"id": "x", "variables": {"a": "b"}}, "prompt.variables"),
    ],
)
async def test_a_reference_that_is_none_is_refused(gateway: Gateway, prompt: Any, param: str) -> None:
    async with gateway.post(body=chat_body(prompt=prompt)) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, param)


async def test_without_its_table_a_known_prompt_goes_on_and_an_unknown_one_is_503(
    gateway: Gateway, table: PromptTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await register(gateway)
    body = chat_body(prompt={"id": made["id"]})
    async with gateway.post(body=body) as answer:
        assert answer.status == 200

    def down(*_: Any) -> Any:
        raise EndpointConnectionError(endpoint_url="http://table")

    monkeypatch.setattr(registered, "FRESH_S", 0.0)
    monkeypatch.setattr(table, "_find", down)
    async with gateway.post(body=body) as answer:
        assert answer.status == 200
    async with gateway.post(body=chat_body(prompt={"id": "pmpt_1"})) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "prompts_unavailable")
    async with gateway.post() as answer:
        assert answer.status == 200, "whoever names no prompt needs no table"


async def test_a_deleted_prompt_answers_no_longer_than_it_is_remembered(
    gateway: Gateway, table: PromptTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gateway deleted it."""
    made = await register(gateway)
    body = chat_body(prompt={"id": made["id"]})
    async with gateway.post(body=body) as answer:
        assert answer.status == 200
    table.delete("acme", made["id"])
    monkeypatch.setattr(registered, "FRESH_S", 0.0)
    async with gateway.post(body=body) as answer:
        assert answer.status == 404


# The table.


def test_the_table_keeps_what_was_written_and_another_life_reads_it(world: tuple[PromptTable, Any]) -> None:
    table, client = world
    messages = (Message("system", "a"), Message("user", "b"))
    first = table.create("acme", "shop", ("small", "large"), messages)
    second = table.add_version("acme", first.id, None, ("small",), (Message("system", "c"),))
    again = PromptTable("prompts", near=client, home=client)
    assert [again.find("acme", first.id, version) for version in (1, 2, None)] == [first, second, second]
    assert again.warm(10) == [Warm("acme", first.id, 2, ("small",))]
    table.delete("acme", first.id)
    assert client.scan(TableName="prompts")["Count"] == 0
    with pytest.raises(PromptMissing):
        table.find("acme", first.id, 1)


def test_what_a_replica_has_not_yet_is_read_at_home(world: tuple[PromptTable, Any]) -> None:
    table, home = world

    class Behind:
        def get_item(self, **_: Any) -> dict[str, Any]:
            return {}

    made = table.create("acme", "", ("small",), (Message("system", "a"),))
    near: Any = Behind()
    assert PromptTable("prompts", near=near, home=home).find("acme", made.id, None) == made


def test_of_two_that_register_a_version_at_once_one_comes_second(table: PromptTable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = table.create("acme", "", ("small",), (Message("system", "a"),))
    real, num_stale = table._find, 1

    def stale(client: Any, tenant: str, prompt_id: str, version: int | None) -> Prompt | None:
        nonlocal num_stale
        num_stale -= 1
        return made if num_stale >= 0 else real(client, tenant, prompt_id, version)

    table.add_version("acme", made.id, None, None, (Message("system", "b"),))
    monkeypatch.setattr(table, "_find", stale)
    assert table.add_version("acme", made.id, None, None, (Message("system", "c"),)).version == 3
    num_stale = 100
    with pytest.raises(PromptChanged):
        table.add_version("acme", made.id, None, None, (Message("system", "d"),))


# Counted once.


@pytest.fixture(scope="session")
def counter(tokenizer_json: bytes) -> PromptCounter:
    return prompt_counter(tokenizer_json, TOKENIZER_CONFIG, CHAT_TEMPLATE.encode())


texts = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(["<|im_end|>", "\n", " ", "<|im_start|>user\n"])
conversations = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user", "assistant"]), texts),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3), conversations)
def test_a_prompt_that_is_remembered_gives_the_ids_of_the_whole(counter: PromptCounter, prompt: list[str], rest: Any) -> None:
    given_ = [{"role": "system", "content": text} for text in prompt]
    expected = counter.chat_ids([*given_, *rest])
    for _ in range(2):
        assert counter.prompted_ids(repr(prompt), len(given_), [*given_, *rest]) == expected
    assert counter.heads.knows(repr(prompt))


def test_a_prompt_is_encoded_once_however_many_requests_begin_with_it(tokenizer_json: bytes) -> None:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    encoded: list[str] = []

    def encode(text: str) -> list[int]:
        encoded.append(text)
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    heads = Heads(encode, ["<|im_start|>", "<|im_end|>"])
    system = "Be brief. " * 500
    for number in range(5):
        text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{number}<|im_end|>\n"
        heads.ids("p", text, lambda probe: f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{probe}<|im_end|>\n")
        if not number:
            encoded.clear()
    assert sum(map(len, encoded)) < len(system) / 10


def test_a_tokenizer_that_looks_behind_special_tokens_has_its_prompts_counted_whole() -> None:
    """One that marks the beginning of each text would count a token more for each cut."""
    heads = Heads(lambda text: [0, *text.encode()], ["<s>"])
    text = "<s>system: a<s>user: b"
    assert heads.ids("p", text, lambda probe: f"<s>system: a<s>user: {probe}") == [0, *text.encode()]
    assert not heads.knows("p")
