"""What is drained gets nothing new and finishes what it has; what is in quarantine is left and refused, at every gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import boto3
import pytest
from gateway_support import Behaviour, Gateway, chat_body, make_tenants_table
from moto import mock_aws

from serving.gateway.exclusions import LEARNT_FOR_MS, POLL_S, REFUSE_AFTER_S, Exclusion, Exclusions, ExclusionTable

MakeGateway = Callable[..., Awaitable[Gateway]]

HOW_SOON_S = 3.0
"""What docs/operations.md promises."""


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExclusionTable]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with mock_aws():
        client = boto3.client("dynamodb", region_name="us-east-2")
        make_tenants_table(client)
        yield ExclusionTable(client, "tenants", "us-east-2")


def obeyed(table: ExclusionTable, gateway: Gateway, name: str = "gateway-0-0") -> Exclusions:
    return Exclusions(table, gateway=name, pools=gateway.pools)


async def asked_of(gateway: Gateway, num: int = 6) -> list[int]:
    """Requests that came to each engine of `num` new ones."""
    before = [len(engine.asked) for engine in gateway.engines]
    for number in range(num):
        async with gateway.post(body=chat_body(messages=[{"role": "user", "content": f"Hello {number}"}])) as answer:
            assert answer.status == 200, await answer.text()
    return [len(engine.asked) - was for engine, was in zip(gateway.engines, before, strict=True)]


async def test_a_drained_engine_finishes_what_it_has_and_gets_nothing_new(
    make_gateway: MakeGateway, table: ExclusionTable
) -> None:
    gateway = await make_gateway(num_engines=2)
    exclusions = obeyed(table, gateway)
    for engine in gateway.engines:
        engine.behaviour = Behaviour(tokens=["x"] * 20, delay_s=0.05)
    client = gateway.openai()
    stream = await client.chat.completions.create(**chat_body(), stream=True)
    (busy,) = [number for number, engine in enumerate(gateway.engines) if engine.asked]
    name = gateway.engines[busy].endpoint.name
    table.put(Exclusion("drain", "engine", name, "ann"))
    await exclusions.refresh()
    gateway.engines[1 - busy].behaviour = Behaviour()
    assert (await asked_of(gateway))[busy] == 0
    assert len([chunk async for chunk in stream]) >= 20
    table.end("drain", "engine", name, by="ann")
    await exclusions.refresh()
    assert gateway.pools["small"].num_able(0.0) == 2


async def test_what_waits_at_an_engine_in_quarantine_is_asked_elsewhere(make_gateway: MakeGateway, table: ExclusionTable) -> None:
    gateway = await make_gateway(num_engines=2)
    exclusions = obeyed(table, gateway)
    hung, other = gateway.engines
    hung.behaviour = Behaviour(hang_after=0)
    table.put(Exclusion("drain", "engine", other.endpoint.name))
    await exclusions.refresh()
    waiting = asyncio.create_task(asked_of(gateway, 1))
    async with asyncio.timeout(5):
        while not hung.asked:
            await asyncio.sleep(0.01)
    table.end("drain", "engine", other.endpoint.name, by="ann")
    table.put(Exclusion("quarantine", "engine", hung.endpoint.name))
    await exclusions.refresh()
    assert await waiting == [1, 1]
    await asyncio.wait_for(hung.asked[0].done.wait(), 5)
    assert hung.asked[0].is_aborted


async def test_a_request_that_engines_died_of_at_one_gateway_is_refused_by_all_until_it_is_cleared(
    make_gateway: MakeGateway, table: ExclusionTable
) -> None:
    """Two gateways would give it to four engines."""
    first = await make_gateway(num_engines=2)
    second = await make_gateway()
    exclusions = [obeyed(table, first), obeyed(table, second, "gateway-1-0")]
    for engine in first.engines:
        engine.behaviour = Behaviour(cut_after=0)
    async with first.post() as answer:
        assert answer.status == 503
    for each in exclusions:
        await each.refresh()
    (found,) = table.list()
    assert (found.how, found.kind, found.by) == ("quarantine", "request", "gateway-0-0")
    assert found.until_ms is not None and found.until_ms - found.since_ms == pytest.approx(LEARNT_FOR_MS, abs=1000)
    for gateway in (first, second):
        async with gateway.post(key=gateway.key) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (400, "request_quarantined")
            assert found.name in await answer.text()
    assert len(second.engine.asked) == 0
    table.end("quarantine", "request", found.name, by="ann")
    for each in exclusions:
        await each.refresh()
    for engine in first.engines:
        engine.behaviour = Behaviour()
    for gateway in (first, second):
        async with gateway.post() as answer:
            assert answer.status == 200, await answer.text()
    assert table.list() == [], "nor does the gateway that learnt it write it again"


async def test_a_drained_gateway_is_not_ready_at_once_and_refuses_later(gateway: Gateway, table: ExclusionTable) -> None:
    """Load balancers take a while to notice; whoever was refused meanwhile would have been served."""
    own, other = obeyed(table, gateway), obeyed(table, gateway, "gateway-1-0")
    drain = table.put(Exclusion("drain", "gateway", "gateway-0", "ann"))
    for each in (own, other):
        await each.refresh()
    assert (own.why_drained, other.why_drained) == ("drained by ann", "")
    late_ms = drain.since_ms + int(REFUSE_AFTER_S * 1000)
    assert (own.refuses(late_ms - 1), own.refuses(late_ms), other.refuses(late_ms)) == (False, True, False)
    table.end("drain", "gateway", "gateway-0", by="ann")
    await own.refresh()
    assert (own.why_drained, own.refuses(late_ms)) == ("", False)


async def test_whoever_still_comes_to_a_drained_gateway_is_told_to_ask_again(gateway: Gateway) -> None:
    gateway.pipeline.is_refusing = lambda: True
    async with gateway.post() as answer:
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert (await answer.json())["error"]["code"] == "draining"
    assert gateway.journal.opened == []


async def test_what_cannot_be_read_stays_as_it_is(gateway: Gateway, table: ExclusionTable, monkeypatch: Any) -> None:
    exclusions = obeyed(table, gateway)
    table.put(Exclusion("drain", "gateway", "gateway-0", "ann"))
    await exclusions.refresh()
    monkeypatch.setattr(table, "_table", type(table._table)(table._table.client, "nowhere"))
    await exclusions.refresh()
    assert exclusions.why_drained == "drained by ann"


def test_what_is_over_holds_no_more(table: ExclusionTable) -> None:
    table.put(Exclusion("quarantine", "request", "00" * 16, until_ms=1))
    assert table.list() == []


def test_gateways_look_often_enough_for_what_is_promised() -> None:
    assert HOW_SOON_S - 1 >= POLL_S
