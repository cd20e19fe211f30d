"""Stored conversations: what was acknowledged is there, for its tenant alone, in one order, and sealed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import openai
import pytest
from botocore.exceptions import EndpointConnectionError
from conftest import MakeGateway
from gateway_support import Behaviour, Gateway
from moto import mock_aws

from serving.gateway import conversations as conversations_module
from serving.gateway.conversation_store import (
    HOLD_MS,
    MAX_TTL_S,
    ConversationBusy,
    ConversationChanged,
    ConversationMissing,
    ConversationStore,
    ConversationsUnavailable,
)
from serving.gateway.messages import Message
from serving.gateway.tenants import Tenant
from serving.metering.events import Outcome

REGION = "us-east-2"
NOW_S = 1_795_000_000
NOW_MS = NOW_S * 1000
SECRET = "the word is swordfish"


@dataclass
class Stored:
    """A store, and what lies behind it."""

    store: ConversationStore
    s3: Any
    dynamodb: Any

    def bodies(self) -> dict[str, bytes]:
        listed = self.s3.list_objects_v2(Bucket="bodies").get("Contents", [])
        return {found["Key"]: self.s3.get_object(Bucket="bodies", Key=found["Key"])["Body"].read() for found in listed}


@pytest.fixture
def stored() -> Iterator[Stored]:
    with mock_aws():
        options = {"region_name": REGION, "aws_access_key_id": "x", "aws_secret_access_key": "x"}
        dynamodb, s3 = boto3.client("dynamodb", **options), boto3.client("s3", **options)
        dynamodb.create_table(
            TableName="conversations",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )
        s3.create_bucket(Bucket="bodies", CreateBucketConfiguration={"LocationConstraint": REGION})
        yield Stored(ConversationStore(dynamodb, "conversations", s3, "bodies"), s3, dynamodb)


@pytest.fixture
async def gateway(make_gateway: MakeGateway, stored: Stored) -> Gateway:
    gateway: Gateway = await make_gateway(conversations=stored.store)  # type: ignore[misc]
    return gateway


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
SAID = {"role": "assistant", "content": " Paris."}


async def make(gateway: Gateway, *items: dict[str, Any], key: str | None = None, **fields: Any) -> str:
    async with gateway.post("/v1/conversations", {"items": [*items], **fields}, key=key) as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["id"])


async def shown(gateway: Gateway, conversation: str) -> Any:
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with gateway.http.get(f"{gateway.base_url}/v1/conversations/{conversation}", headers=headers) as answer:
        return await answer.json()


# Through a gateway.


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_chat_goes_on_with_what_was_said_before(gateway: Gateway, is_streamed: bool) -> None:
    client: Any = gateway.openai()
    made = await client.conversations.create(items=[SYSTEM], metadata={"topic": "France"})
    for question in ("Hello", "Again"):
        answer = await client.chat.completions.create(
            model="small", messages=[user(question)], stream=is_streamed, extra_body={"conversation": made.id}
        )
        if is_streamed:
            _ = [chunk async for chunk in answer]
    assert gateway.engine.asked[1].body["messages"] == [SYSTEM, user("Hello"), SAID, user("Again")]
    assert "conversation" not in gateway.engine.asked[1].body
    found = await client.conversations.retrieve(made.id)
    assert (found.id, found.metadata, found.revision) == (made.id, {"topic": "France"}, 3)
    assert found.messages == [SYSTEM, user("Hello"), SAID, user("Again"), SAID]
    assert (await client.conversations.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(made.id)


async def test_a_response_goes_on_with_it_too_and_calls_of_tools_are_kept(gateway: Gateway) -> None:
    client: Any = gateway.openai()
    conversation = await make(gateway)
    gateway.engine.behaviour = Behaviour(tokens=('{"a"', ":1}"), call="look", finish_reason="tool_calls")
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    answer = await client.responses.create(model="small", input="Look", tools=[tool], conversation=conversation)
    assert answer.output[0].type == "function_call"
    gateway.engine.behaviour = Behaviour()
    output = {"type": "function_call_output", "call_id": "call_1", "output": "seen"}
    await client.responses.create(model="small", input=[output], tools=[tool], conversation={"id": conversation})
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    assert (await shown(gateway, conversation))["messages"] == [
        user("Look"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "seen", "tool_call_id": "call_1"},
        SAID,
    ]


async def test_another_tenants_conversation_is_not_there(gateway: Gateway) -> None:
    conversation, other = await make(gateway), gateway.keys.add(Tenant("globex"))
    headers = {"authorization": f"Bearer {other}"}
    url = f"{gateway.base_url}/v1/conversations/{conversation}"
    for method in ("GET", "DELETE"):
        async with gateway.http.request(method, url, headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "conversation_not_found")
    for name in (conversation, "conv_0", "../" + conversation):
        body = {"model": "small", "messages": [user("Hi")], "conversation": name}
        async with gateway.post(body=body, key=other) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "conversation_not_found")
    assert not gateway.num_asked
    assert (await shown(gateway, conversation))["revision"] == 1


async def test_a_second_turn_at_once_is_refused_before_it_costs_anything(gateway: Gateway) -> None:
    conversation = await make(gateway)
    gateway.engine.behaviour = Behaviour(delay_s=0.1)
    body = {"model": "small", "messages": [user("One")], "conversation": conversation}

    async def first() -> int:
        async with gateway.post(body=body) as answer:
            return int(answer.status)

    asking = asyncio.create_task(first())
    async with asyncio.timeout(5):
        while not gateway.num_asked:
            await asyncio.sleep(0.005)
    async with gateway.post(body=body) as second:
        assert (second.status, (await second.json())["error"]["code"]) == (409, "conversation_busy")
        assert second.headers["retry-after"] == "1"
    assert await asking == 200
    assert gateway.num_asked == 1
    assert (await shown(gateway, conversation))["messages"] == [user("One"), SAID]


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_turn_that_another_overtook_is_told_and_not_stored(gateway: Gateway, stored: Stored, is_streamed: bool) -> None:
    """Its hold ran out: the revision decides."""
    conversation = await make(gateway)
    gateway.engine.behaviour = Behaviour(delay_s=0.1)
    body = {"model": "small", "messages": [user("Slow")], "conversation": conversation, "stream": is_streamed}

    async def ask() -> tuple[int, bytes]:
        async with gateway.post(body=body) as answer:
            return answer.status, await answer.read()

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(5):
        while not gateway.num_asked:
            await asyncio.sleep(0.005)
    later_ms = conversations_module._now_ms() + HOLD_MS + 1
    held = stored.store.begin("acme", conversation, now_ms=later_ms)
    stored.store.append(held, [Message("user", "Fast")], now_s=later_ms // 1000)
    status, said = await asking
    assert status == (200 if is_streamed else 409)
    assert b"conversation_changed" in said and b"[DONE]" not in said
    assert (await shown(gateway, conversation))["messages"] == [user("Fast")]
    assert gateway.journal.closed[0].outcome is Outcome.FINISHED


@pytest.mark.parametrize("how", ["refused", "broken", "left"])
async def test_a_turn_without_a_whole_answer_stores_nothing_and_holds_nothing(gateway: Gateway, how: str) -> None:
    conversation = await make(gateway)
    gateway.engine.behaviour = {
        "refused": Behaviour(status=400),
        "broken": Behaviour(cut_after=2),
        "left": Behaviour(delay_s=0.3),
    }[how]
    body = {"model": "small", "messages": [user("One")], "conversation": conversation, "stream": True}

    async def ask() -> None:
        async with gateway.post(body=body) as answer:
            await answer.read()

    asking = asyncio.create_task(ask())
    if how == "left":
        async with asyncio.timeout(5):
            while not gateway.num_asked:
                await asyncio.sleep(0.005)
        asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    gateway.engine.behaviour = Behaviour()
    async with asyncio.timeout(5):
        while True:
            async with gateway.post(body=body) as again:
                if b"[DONE]" in await again.read():
                    break
            await asyncio.sleep(0.02)
    assert (await shown(gateway, conversation))["messages"] == [user("One"), SAID]


async def test_while_the_store_does_not_answer_nothing_is_generated_and_other_chats_are_served(
    gateway: Gateway, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await make(gateway)

    def silent(**_: Any) -> None:
        raise EndpointConnectionError(endpoint_url="dynamodb")

    monkeypatch.setattr(stored.dynamodb, "update_item", silent)
    async with gateway.post(body={"model": "small", "messages": [user("One")], "conversation": conversation}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "conversation_unavailable")
    assert not gateway.num_asked
    async with gateway.post() as answer:
        assert answer.status == 200


async def test_what_the_window_has_no_room_for_is_still_stored(gateway: Gateway) -> None:
    conversation = await make(gateway, SYSTEM)
    body = {"model": "small", "max_tokens": 8, "conversation": conversation, "context": "truncate-oldest"}
    for number in range(4):
        async with gateway.post(body={**body, "messages": [user(f"{number}" + " France" * 60)]}) as answer:
            assert answer.status == 200
            told = answer.headers.get("x-flotilla-context-dropped")
    assert told is not None and told.startswith("messages=1-")
    assert len(gateway.engine.asked[-1].body["messages"]) < len((await shown(gateway, conversation))["messages"]) == 9


async def test_a_conversation_has_an_end(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = await make(gateway, user("a"), SAID)
    monkeypatch.setattr(conversations_module, "MAX_MESSAGES", 2)
    async with gateway.post(body={"model": "small", "messages": [user("b")], "conversation": conversation}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "conversation_full")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ttl_s": MAX_TTL_S + 1}, "ttl_s"),
        ({"items": [{"role": "user"}]}, "items[0].content"),
        ({"tenant": "globex"}, "tenant"),
    ],
)
async def test_a_conversation_that_cannot_be_made_is_refused_by_name(gateway: Gateway, body: Any, param: str) -> None:
    async with gateway.post("/v1/conversations", body) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, param)


async def test_a_stored_conversation_has_one_answer(gateway: Gateway) -> None:
    body = {"model": "small", "messages": [user("b")], "conversation": await make(gateway), "n": 2}
    async with gateway.post(body=body) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "n")


async def test_conversations_count_as_requests(make_gateway: MakeGateway, stored: Stored, valkey: Any) -> None:
    gateway: Any = await make_gateway(conversations=stored.store, cache_url=valkey.connection_url)  # type: ignore[misc]
    key = gateway.keys.add(Tenant("slow", requests_per_min=1))
    await make(gateway, key=key)
    async with gateway.post("/v1/conversations", {}, key=key) as answer:
        assert answer.status == 429


# The store alone.


def talk(text: str) -> list[Message]:
    return [Message("user", text)]


def test_bodies_are_sealed_and_are_gone_with_their_key(stored: Stored) -> None:
    made = stored.store.create("acme", talk(SECRET), {"note": "x"}, ttl_s=60, now_s=NOW_S)
    ((name, body),) = stored.bodies().items()
    assert name.startswith(f"conversations/acme/{made.id}/")
    assert SECRET.encode() not in body
    assert stored.store.get("acme", made.id, now_s=NOW_S).messages == talk(SECRET)
    stored.s3.put_object(Bucket="bodies", Key=name, Body=body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(ConversationsUnavailable):
        stored.store.get("acme", made.id, now_s=NOW_S)
    stored.store.delete("acme", made.id, now_s=NOW_S)
    items = stored.dynamodb.scan(TableName="conversations")["Items"]
    assert not items, "the key is nowhere"
    with pytest.raises(ConversationMissing):
        stored.store.delete("acme", made.id, now_s=NOW_S)


def test_a_body_of_one_conversation_is_none_of_another(stored: Stored) -> None:
    one, two = (stored.store.create("acme", talk(text), {}, ttl_s=60, now_s=NOW_S) for text in ("one", "two"))
    first, second = stored.bodies()
    stored.s3.copy_object(Bucket="bodies", Key=second, CopySource={"Bucket": "bodies", "Key": first})
    with pytest.raises(ConversationsUnavailable):
        for made in (one, two):
            stored.store.get("acme", made.id, now_s=NOW_S)


def test_it_expires_so_long_after_its_last_turn(stored: Stored) -> None:
    made = stored.store.create("acme", [], {}, ttl_s=60, now_s=NOW_S)
    held = stored.store.begin("acme", made.id, now_ms=NOW_MS + 50_000)
    stored.store.append(held, talk("b"), now_s=NOW_S + 50)
    assert stored.store.get("acme", made.id, now_s=NOW_S + 109).expires_at_s == NOW_S + 110
    for act in (
        lambda: stored.store.get("acme", made.id, now_s=NOW_S + 110),
        lambda: stored.store.begin("acme", made.id, now_ms=NOW_MS + 110_000),
        lambda: stored.store.delete("acme", made.id, now_s=NOW_S + 110),
    ):
        with pytest.raises(ConversationMissing):
            act()


def test_of_two_turns_at_once_one_is_stored(stored: Stored) -> None:
    made = stored.store.create("acme", talk("a"), {}, ttl_s=600, now_s=NOW_S)
    one = stored.store.begin("acme", made.id, now_ms=NOW_MS)
    with pytest.raises(ConversationBusy):
        stored.store.begin("acme", made.id, now_ms=NOW_MS + HOLD_MS)
    two = stored.store.begin("acme", made.id, now_ms=NOW_MS + HOLD_MS + 1)
    stored.store.append(two, talk("two"), now_s=NOW_S)
    with pytest.raises(ConversationChanged):
        stored.store.append(one, talk("one"), now_s=NOW_S)
    stored.store.release(one)  # frees nothing that is not its own
    found = stored.store.get("acme", made.id, now_s=NOW_S)
    assert (found.revision, found.messages) == (2, [*talk("a"), *talk("two")])


def test_writes_whose_answers_were_lost_are_no_conflicts(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 sends again what timed out, though it may have been done."""
    made = stored.store.create("acme", [], {}, ttl_s=600, now_s=NOW_S)
    update = stored.dynamodb.update_item

    def twice(**request: Any) -> Any:
        update(**request)
        return update(**request)

    monkeypatch.setattr(stored.dynamodb, "update_item", twice)
    held = stored.store.begin("acme", made.id, now_ms=NOW_MS)
    assert stored.store.append(held, talk("b"), now_s=NOW_S).revision == 2
