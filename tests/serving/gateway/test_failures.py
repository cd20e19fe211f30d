"""Engines that break, clients that leave, disks that fill: what the client is told, what the engine sees, what is billed."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import aiohttp
import openai
import pytest
from gateway_support import Behaviour, FakeEngine, Gateway, chat_body, make_settings

from serving.gateway.dispatch import Dispatcher
from serving.gateway.engine_http import KEEPALIVE_S
from serving.metering.events import CountSource, Outcome

LONG = ["x"] * 200
QUICK = {"connect_s": 0.3, "first_token_s": 0.3, "gap_s": 0.3, "request_s": 30}


async def read_events(answer: aiohttp.ClientResponse) -> list[bytes]:
    return [event for event in (await answer.content.read()).split(b"\n\n") if event]


async def code_of(answer: aiohttp.ClientResponse) -> str:
    code: str = (await answer.json())["error"]["code"]
    return code


async def within(seconds: float, event: asyncio.Event) -> None:
    async with asyncio.timeout(seconds):
        await event.wait()


# Before the first event: another engine may be asked, once.

FAILS_BEFORE: list[tuple[str, Behaviour, int, str]] = [
    ("breaks off at its head", Behaviour(cut_after=0), 503, "engine_unavailable"),
    ("answers 500", Behaviour(status=500), 502, "engine_error"),
    ("answers 503", Behaviour(status=503), 503, "engine_unavailable"),
    ("does not know the model", Behaviour(status=404), 502, "engine_error"),
    ("sends it elsewhere", Behaviour(status=307), 502, "engine_error"),
    ("tells of a failure first", Behaviour(error_after=0), 502, "engine_error"),
]


@pytest.mark.parametrize(("behaviour"), [row[1] for row in FAILS_BEFORE], ids=[row[0] for row in FAILS_BEFORE])
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_an_engine_that_fails_before_its_first_token_is_replaced_unnoticed(
    make_gateway: Any, behaviour: Behaviour, is_streamed: bool
) -> None:
    gateway: Gateway = await make_gateway(num_engines=2)
    broken, sound = gateway.engines
    broken.behaviour = behaviour
    sound.behaviour = Behaviour(tokens=["a", "b"])
    num_sent = num_after = 0
    while num_after < 4:  # ties are broken at random: when the broken one is met is chance, that it is left alone then is not
        async with gateway.post(body=chat_body(stream=is_streamed)) as answer:
            assert answer.status == 200
            await answer.read()
        num_sent += 1
        num_after += bool(broken.asked)
    assert len(broken.asked) == 1, "it is passed over for a while"
    assert len(sound.asked) == num_sent
    assert [closed.outcome for closed in gateway.journal.closed] == [Outcome.FINISHED] * num_sent
    assert sum(closed.output_tokens for closed in gateway.journal.closed) == 2 * num_sent, "the failed attempt is not billed"
    assert sorted(closed.attempts for closed in gateway.journal.closed) == [1] * (num_sent - 1) + [2]
    assert gateway.metric('flotilla_retries_total{model="small"}') == 1


@pytest.mark.parametrize(("behaviour", "status", "code"), [row[1:] for row in FAILS_BEFORE], ids=[row[0] for row in FAILS_BEFORE])
async def test_two_failures_are_told_honestly_and_nothing_is_billed(
    make_gateway: Any, behaviour: Behaviour, status: int, code: str
) -> None:
    gateway: Gateway = await make_gateway(num_engines=3)
    for engine in gateway.engines:
        engine.behaviour = behaviour
    async with gateway.post(body=chat_body(stream=True)) as answer:
        assert (answer.status, await code_of(answer)) == (status, code)
        assert int(answer.headers["retry-after"]) > 0
    assert gateway.num_asked == 2, "never a third"
    (closed,) = gateway.journal.closed
    assert (closed.outcome, closed.source, closed.attempts) == (Outcome.NOT_SERVED, CountSource.NONE, 2)
    assert (closed.prompt_tokens, closed.output_tokens) == (0, 0)


async def test_an_engine_that_is_gone_is_a_503_and_back_when_it_is_back(gateway: Gateway) -> None:
    """kill -9 of the only engine, between requests and under a kept connection."""
    async with gateway.post() as answer:
        assert answer.status == 200
    await gateway.engine.stop()
    async with gateway.post() as answer:
        assert (answer.status, await code_of(answer)) == (503, "engine_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    replacement = FakeEngine()
    await replacement.start()
    gateway.engines.append(replacement)
    gateway.pools["small"].update([replacement.endpoint])
    async with gateway.post() as answer:
        assert answer.status == 200


async def test_a_refusal_of_the_request_itself_is_not_tried_elsewhere(make_gateway: Any) -> None:
    gateway: Gateway = await make_gateway(num_engines=2)
    for engine in gateway.engines:
        engine.behaviour = Behaviour(status=400, error="this grammar cannot be compiled")
    async with gateway.post() as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert (error["code"], error["message"]) == ("rejected_by_engine", "this grammar cannot be compiled")
    assert gateway.num_asked == 1
    assert gateway.journal.closed[0].outcome is Outcome.NOT_SERVED


async def test_no_engine_is_an_honest_503(gateway: Gateway) -> None:
    gateway.pools["small"].update([])
    async with gateway.post() as answer:
        assert (answer.status, await code_of(answer)) == (503, "engine_unavailable")
        assert int(answer.headers["retry-after"]) > 0


async def test_full_engines_are_an_honest_503(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(hang_after=1)
    running = [await gateway.post(body=chat_body(stream=True)) for _ in range(4)]  # max_in_flight_per_engine
    async with gateway.post(**{"x-flotilla-deadline-ms": "50"}) as answer:
        assert (answer.status, await code_of(answer)) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) > 0
    for answer in running:
        answer.close()
    await gateway.is_quiet()
    gateway.engine.behaviour = Behaviour()
    async with gateway.post() as answer:
        assert answer.status == 200, "seats are given back"


async def test_an_engine_that_never_begins_is_a_504(make_gateway: Any) -> None:
    gateway: Gateway = await make_gateway(timeouts=QUICK)
    gateway.engine.behaviour = Behaviour(hang_after=0)
    async with gateway.post(body=chat_body(stream=True)) as answer:
        assert (answer.status, await code_of(answer)) == (504, "engine_timeout")
    assert gateway.journal.closed[0].outcome is Outcome.NOT_SERVED
    await within(2, gateway.engine.asked[0].done)
    assert gateway.engine.asked[0].is_aborted


async def test_retries_have_a_budget_so_that_an_outage_is_not_answered_with_twice_the_load(make_gateway: Any) -> None:
    gateway: Gateway = await make_gateway(num_engines=8)
    for engine in gateway.engines:
        engine.behaviour = Behaviour(status=500)
    for _ in range(40):
        async with gateway.post() as answer:
            assert answer.status == 502
    assert gateway.num_asked <= 1.2 * 40 + 3
    assert gateway.num_asked > 40


async def test_a_request_that_took_two_engines_down_is_not_given_a_third(make_gateway: Any) -> None:
    gateway: Gateway = await make_gateway(num_engines=4)
    for engine in gateway.engines:
        engine.behaviour = Behaviour(cut_after=0)
    poison = chat_body(seed=666)
    async with gateway.post(body=poison) as answer:
        assert answer.status == 503
    async with gateway.post(body=poison) as answer:
        assert (answer.status, await code_of(answer)) == (400, "request_quarantined")
    assert gateway.num_asked == 2
    for engine in gateway.engines:
        engine.behaviour = Behaviour()
    async with gateway.post() as answer:
        assert answer.status == 200, "others are served"


async def test_an_engine_that_makes_no_progress_is_left_and_whoever_waits_there_asks_elsewhere(make_gateway: Any) -> None:
    """Its process hangs, or its core alone does: its connections stay open, and its health check may well answer."""
    gateway: Gateway = await make_gateway(num_engines=2)
    pool, (hung, sound) = gateway.pools["small"], gateway.engines
    pool.update([hung.endpoint])
    hung.behaviour = Behaviour(hang_after=0)
    now = asyncio.get_running_loop().time
    waiting = asyncio.create_task(read_some(gateway, True))
    while not hung.asked:
        await asyncio.sleep(0.005)
    pool.update([hung.endpoint, sound.endpoint])
    assert pool.check(now() + 1000) == [], "nothing is known of its speed: it may be a long prompt"
    pool.speed.saw(1000, 0.5)
    assert pool.check(now() + 2.5) == []
    assert [engine.endpoint for engine in pool.check(now() + 4.5)] == [hung.endpoint], "2 x 2,048 / 2,000 is less than 3 s"
    await asyncio.wait_for(waiting, 5)
    assert len(sound.asked) == 1
    await within(2, hung.asked[0].done)
    assert hung.asked[0].is_aborted
    assert gateway.journal.closed[0].attempts == 2
    async with gateway.post() as answer:
        assert answer.status == 200
    assert len(hung.asked) == 1, "it is passed over"


async def test_a_probe_tells_who_answers_and_who_does_not(make_gateway: Any) -> None:
    gateway: Gateway = await make_gateway(num_engines=2)
    alive, gone = gateway.engines
    await gone.stop()
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    dispatcher = Dispatcher(0.5)
    assert await dispatcher.is_well(alive.endpoint, 5)
    assert not await dispatcher.is_well(gone.endpoint, 5)
    hung = dataclasses.replace(alive.endpoint, port=silent.sockets[0].getsockname()[1])
    assert not await dispatcher.is_well(hung, 0.1)
    await dispatcher.aclose()
    silent.close()
    await gone.start()


async def test_a_probe_leaves_no_connection_open(make_gateway: Any) -> None:
    """One kept open told each idle engine's supervisor that it might hang, and a canary was asked every ten seconds."""
    gateway: Gateway = await make_gateway()
    (engine,) = gateway.engines
    dispatcher = Dispatcher(0.5)
    assert await dispatcher.is_well(engine.endpoint, 5)
    async with asyncio.timeout(KEEPALIVE_S / 2):
        while engine.num_open:
            await asyncio.sleep(0.01)
    await dispatcher.aclose()


# After the first event: an honest end, and what arrived is billed once.

BREAKS: list[tuple[str, Behaviour]] = [
    ("breaks the connection", Behaviour(tokens=LONG, cut_after=5)),
    ("tells of a failure", Behaviour(tokens=LONG, error_after=5)),
    ("goes silent", Behaviour(tokens=LONG, hang_after=5)),
]


@pytest.mark.parametrize("behaviour", [row[1] for row in BREAKS], ids=[row[0] for row in BREAKS])
async def test_an_engine_lost_in_mid_stream_ends_in_an_error_event_and_is_billed_once(
    make_gateway: Any, behaviour: Behaviour
) -> None:
    gateway: Gateway = await make_gateway(num_engines=2, timeouts=QUICK)
    for engine in gateway.engines:
        engine.behaviour = behaviour
    async with gateway.post(body=chat_body(stream=True)) as answer:
        assert answer.status == 200
        events = await read_events(answer)
    assert b'"code":"engine_lost"' in events[-1]
    assert not any(b"[DONE]" in event for event in events)
    assert sum(b'"content":"x"' in event for event in events) == 5
    (closed,) = gateway.journal.closed
    assert (closed.outcome, closed.source, closed.output_tokens) == (Outcome.ENGINE_LOST, CountSource.ENGINE_RUNNING, 5)
    assert closed.prompt_tokens > 1000, "the engine's own count"
    assert gateway.num_asked == 1


async def test_the_openai_client_sees_a_broken_stream_as_an_error(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(tokens=LONG, cut_after=5)
    stream = await gateway.openai().chat.completions.create(model="small", messages=chat_body()["messages"], stream=True)
    with pytest.raises(openai.APIError) as caught:
        [chunk async for chunk in stream]
    assert caught.value.code == "engine_lost"


@pytest.mark.parametrize("behaviour", [row[1] for row in BREAKS], ids=[row[0] for row in BREAKS])
async def test_an_engine_lost_in_a_plain_answer_is_a_502(make_gateway: Any, behaviour: Behaviour) -> None:
    gateway: Gateway = await make_gateway(timeouts=QUICK)
    gateway.engine.behaviour = behaviour
    async with gateway.post() as answer:
        assert (answer.status, await code_of(answer)) == (502, "engine_lost")
    assert gateway.journal.closed[0].output_tokens == 5


async def test_an_engine_that_aborts_has_not_finished(gateway: Gateway) -> None:
    """vLLM stopped with requests running calls that a finish reason."""
    gateway.engine.behaviour = Behaviour(finish_reason="abort")
    async with gateway.post(body=chat_body(stream=True)) as answer:
        events = await read_events(answer)
    assert b'"code":"engine_lost"' in events[-1]
    assert gateway.journal.closed[0].outcome is Outcome.ENGINE_LOST
    assert gateway.journal.closed[0].output_tokens == 3


async def test_totals_without_an_end_are_a_complete_answer(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(omits_done=True)
    async with gateway.post(body=chat_body(stream=True)) as answer:
        assert (await read_events(answer))[-1] == b"data: [DONE]"
    assert gateway.journal.closed[0].outcome is Outcome.FINISHED


async def test_a_request_that_takes_too_long_is_ended(make_gateway: Any) -> None:
    gateway: Gateway = await make_gateway(timeouts={**QUICK, "request_s": 0.5})
    gateway.engine.behaviour = Behaviour(tokens=LONG, delay_s=0.05)
    async with gateway.post(body=chat_body(stream=True)) as answer:
        events = await read_events(answer)
    assert b'"code":"engine_lost"' in events[-1]
    await within(2, gateway.engine.asked[0].done)
    assert gateway.engine.asked[0].is_aborted


# Silence.


@pytest.mark.parametrize("has_fast_path", [True, False])
async def test_a_silent_stream_carries_comments_that_clients_skip(make_gateway: Any, has_fast_path: bool) -> None:
    """Load balancers and clients cut connections on which nothing comes; a long prompt takes longer than they wait."""
    timeouts = {**QUICK, "first_token_s": 5, "gap_s": 5, "heartbeat_s": 0.05}
    gateway: Gateway = await make_gateway(timeouts=timeouts, has_fast_path=has_fast_path)
    gateway.engine.behaviour = Behaviour(delay_s=0.3)
    async with gateway.post(body=chat_body(stream=True)) as answer:
        events = await read_events(answer)
    comments = [event for event in events if event.startswith(b":")]
    assert events[0] in comments, "before the first token too"
    assert len(comments) > 4
    stream = await gateway.openai().chat.completions.create(model="small", messages=chat_body()["messages"], stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == " Paris."


@pytest.mark.parametrize("has_fast_path", [True, False])
async def test_a_sign_of_life_does_not_wait_for_the_event_that_it_stands_in_for(make_gateway: Any, has_fast_path: bool) -> None:
    timeouts = {**QUICK, "first_token_s": 600, "gap_s": 600, "heartbeat_s": 0.05}
    gateway: Gateway = await make_gateway(timeouts=timeouts, has_fast_path=has_fast_path)
    gateway.engine.behaviour = Behaviour(hang_after=0)
    async with gateway.post(body=chat_body(stream=True)) as answer:
        async with asyncio.timeout(10):
            assert await answer.content.readuntil(b"\n\n") == b": the engine is working\n\n"
        assert gateway.engine.asked[0].sent_tokens == 0


async def test_a_failure_after_a_sign_of_life_is_an_event(make_gateway: Any) -> None:
    gateway: Gateway = await make_gateway(timeouts={**QUICK, "heartbeat_s": 0.05})
    gateway.engine.behaviour = Behaviour(hang_after=0)
    async with gateway.post(body=chat_body(stream=True)) as answer:
        assert answer.status == 200
        events = await read_events(answer)
    assert b'"code":"engine_timeout"' in events[-1]
    assert gateway.journal.closed[0].outcome is Outcome.NOT_SERVED
    async with gateway.post(body=chat_body()) as answer:
        assert answer.status == 504, "a plain answer can still become an error"


# Clients that leave.


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_stops_the_engine_and_pays_for_what_arrived(gateway: Gateway, is_streamed: bool) -> None:
    gateway.engine.behaviour = Behaviour(tokens=LONG, delay_s=0.01)
    asking = asyncio.create_task(read_some(gateway, is_streamed))
    await asyncio.sleep(0.3)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    (asked,) = gateway.engine.asked
    await within(1, asked.done)
    assert asked.is_aborted
    await gateway.is_quiet()
    (closed,) = gateway.journal.closed
    assert (closed.outcome, closed.source) == (Outcome.CLIENT_GONE, CountSource.ENGINE_RUNNING)
    assert 0 <= asked.sent_tokens - closed.output_tokens <= 1, "within one engine step"
    assert closed.output_tokens > 5


async def read_some(gateway: Gateway, is_streamed: bool) -> None:
    async with gateway.post(body=chat_body(stream=is_streamed)) as answer:
        await answer.read()


async def test_a_client_that_leaves_before_the_first_token_pays_nothing(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(hang_after=0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await read_some(gateway, True)
    await gateway.is_quiet()
    (closed,) = gateway.journal.closed
    assert (closed.outcome, closed.prompt_tokens, closed.output_tokens) == (Outcome.NOT_SERVED, 0, 0)
    await within(1, gateway.engine.asked[0].done)
    assert gateway.engine.asked[0].is_aborted
    assert gateway.pools["small"].take(1, (), []).engine.replica.num_in_flight == 1, "its seat is free again"


async def test_a_reader_that_stops_reading_stops_its_engine(make_gateway: Any) -> None:
    """Back-pressure all the way: the gateway holds no more than sockets do, and cuts such a client after the gap limit."""
    gateway: Gateway = await make_gateway(timeouts={**QUICK, "gap_s": 0.5})
    gateway.engine.behaviour = Behaviour(tokens=["y" * 20_000] * 600)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.base_url.rsplit(":", 1)[1]), limit=1024)
    body = b'{"model":"small","stream":true,"messages":[{"role":"user","content":"x"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n"
    writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    await reader.readline()
    async with asyncio.timeout(5):
        while not gateway.journal.closed:
            await asyncio.sleep(0.02)
    (closed,) = gateway.journal.closed
    assert closed.outcome is Outcome.CLIENT_GONE
    assert 0 < closed.output_tokens < 600, "not all was read from the engine"
    writer.close()


# Disks that fill in mid-stream.


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_an_answer_whose_bill_is_not_durable_is_not_called_complete(gateway: Gateway, is_streamed: bool) -> None:
    gateway.engine.behaviour = Behaviour(delay_s=0.05)
    async with asyncio.TaskGroup() as group:
        group.create_task(break_journal_soon(gateway))
        async with gateway.post(body=chat_body(stream=is_streamed)) as answer:
            body = await answer.read()
    assert b'"code":"metering_unavailable"' in body
    assert b"[DONE]" not in body
    assert answer.status == (200 if is_streamed else 503)


async def break_journal_soon(gateway: Gateway) -> None:
    while not gateway.journal.opened:
        await asyncio.sleep(0.005)
    gateway.journal.is_broken = True


async def test_a_hundred_streams_some_left_some_broken_are_each_billed_once(make_gateway: Any) -> None:
    roomy = make_settings().models[0].model_copy(update={"max_in_flight_per_engine": 1000})
    gateway: Gateway = await make_gateway(num_engines=3, models=[roomy.model_dump()])
    gateway.engines[0].behaviour = Behaviour(tokens=LONG[:40], delay_s=0.002, cut_after=20)
    for engine in gateway.engines[1:]:
        engine.behaviour = Behaviour(tokens=LONG[:40], delay_s=0.002)

    async def client(number: int) -> None:
        async with gateway.post(body=chat_body(stream=number % 2 == 0)) as answer:
            if number % 5 == 0:
                await answer.content.readany()
            else:
                await answer.read()

    await asyncio.gather(*(client(number) for number in range(100)))
    await gateway.is_quiet()
    assert len(gateway.journal.opened) == len(gateway.journal.closed) == 100
    assert len({closed.open.event_id for closed in gateway.journal.closed}) == 100
    sent = sum(asked.sent_tokens for engine in gateway.engines for asked in engine.asked)
    billed = sum(closed.output_tokens for closed in gateway.journal.closed)
    left = sum(closed.outcome is Outcome.CLIENT_GONE for closed in gateway.journal.closed)
    broken = sum(closed.outcome is Outcome.ENGINE_LOST for closed in gateway.journal.closed)
    assert billed <= sent <= billed + left + broken
    assert gateway.metric('flotilla_in_flight_requests{model="small"}') == 0
