"""Hedging: who waits longer than nearly all do is asked for at a second engine too, answered once and billed once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from twin_fleet import Fleet, answer_of, running_fleet

from policies.routing.hedging import MIN_SAMPLES
from serving.gateway.route import Pool
from serving.metering.events import Outcome


def teach(pool: Pool, seconds: float = 0.02) -> None:
    """First tokens took so long of late."""
    assert pool.times is not None
    for _ in range(MIN_SAMPLES):
        pool.times.saw(0, seconds)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with running_fleet(2, hedging=True) as running:
        teach(running.gateway.pools["small"])
        running.prefer(0)
        yield running


async def outcomes(fleet: Fleet) -> list[list[str]]:
    """How each twin's requests ended, once none runs."""
    async with asyncio.timeout(5):
        while any(twin.truth.running for twin in fleet.twins):
            await asyncio.sleep(0.005)
    return [[record.outcome for record in twin.truth.records()] for twin in fleet.twins]


async def test_the_second_engine_answers_for_one_that_is_slow_and_that_one_is_told_to_stop(fleet: Fleet) -> None:
    fleet.switch(0, frozen=True)
    events = await fleet.events(resume=False, max_tokens=20)
    assert events[-1] == b"data: [DONE]"
    assert await outcomes(fleet) == [["aborted"], ["length"]]
    (bill,) = fleet.gateway.journal.closed
    assert (bill.outcome, bill.output_tokens, bill.attempts, bill.engines) == (Outcome.FINISHED, 20, 2, ("twin-0", "twin-1"))
    assert bill.prompt_tokens == fleet.twins[1].truth._ended[0].prompt_tokens, "the prompt is billed once"
    assert fleet.gateway.metric('flotilla_hedges_total{first="two",model="small"}') == 1


async def test_the_first_engine_may_still_be_first(fleet: Fleet) -> None:
    fleet.switch(0, frozen=True)
    fleet.switch(1, frozen=True)
    streaming = asyncio.create_task(fleet.events(resume=False, max_tokens=20))
    async with asyncio.timeout(5):
        while not fleet.twins[1].truth.num_arrived:
            await asyncio.sleep(0.005)
    fleet.switch(0)
    assert len(answer_of(await streaming)) > 20
    fleet.switch(1)
    assert await outcomes(fleet) == [["length"], ["aborted"]]
    assert fleet.gateway.metric('flotilla_hedges_total{first="one",model="small"}') == 1


async def test_a_request_that_is_quick_enough_is_not_hedged(fleet: Fleet) -> None:
    teach(fleet.gateway.pools["small"], 30.0)
    await fleet.events(resume=False)
    assert fleet.bill.attempts == 1


async def test_hedges_spend_the_budget_for_retries(fleet: Fleet) -> None:
    pool = fleet.gateway.pools["small"]
    while pool.retries.retry():
        pass
    fleet.switch(0, frozen=True)
    streaming = asyncio.create_task(fleet.events(resume=False, max_tokens=20))
    await asyncio.sleep(0.2)
    assert fleet.twins[1].truth.num_arrived == 0
    fleet.switch(0)
    await streaming
    assert fleet.bill.attempts == 1


async def test_one_that_fails_leaves_the_answer_to_the_other(fleet: Fleet) -> None:
    fleet.switch(0, frozen=True)
    fleet.fault(1, kind="refuse")
    streaming = asyncio.create_task(fleet.events(resume=False, max_tokens=20))
    async with asyncio.timeout(5):
        while not fleet.twins[1].truth.num_arrived:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    fleet.switch(0)
    assert (await streaming)[-1] == b"data: [DONE]"
    assert await outcomes(fleet) == [["length"], ["refused"]]


async def test_a_client_that_leaves_meanwhile_stops_both(fleet: Fleet) -> None:
    fleet.switch(0, frozen=True)
    fleet.switch(1, frozen=True)
    streaming = asyncio.create_task(fleet.events(resume=False))
    async with asyncio.timeout(5):
        while not fleet.twins[1].truth.num_arrived:
            await asyncio.sleep(0.005)
    streaming.cancel()
    assert await outcomes(fleet) == [["aborted"], ["aborted"]]
    await fleet.gateway.is_quiet()
    assert fleet.bill.outcome is Outcome.NOT_SERVED
    pool = fleet.gateway.pools["small"]
    assert [engine.replica.num_in_flight for engine in pool.engines] == [0, 0], "both seats are free again"


async def test_it_is_off_unless_it_is_asked_for() -> None:
    async with running_fleet(2) as plain:
        assert plain.gateway.pools["small"].times is None
