"""Everything that a twin can be told to do wrong, and that the ground truth knows of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from serving.twin.faults import FaultPlan
from tests.serving.twin.conftest import Asker, Start


async def broken_stream(twin: Asker, **fields: Any) -> tuple[bytes, bool]:
    """All bytes that came of a stream, and whether it ended as HTTP ends it."""
    body = {"model": "small", "prompt": "the people", "max_tokens": 8, "temperature": 0, "stream": True, **fields}
    data = b""
    async with twin.session.post(f"{twin.base}/v1/completions", json=body) as answer:
        try:
            async for piece in answer.content.iter_any():
                data += piece
        except aiohttp.ClientError:
            return data, False
    return data, True


async def test_a_cut_comes_at_its_token(twin: Asker) -> None:
    twin.fault(kind="cut", at_token=3)
    data, is_whole = await broken_stream(twin)
    assert (data.count(b"data: "), is_whole) == (3, False)
    record = twin.records[-1]
    assert (record.outcome, record.sent_tokens, record.generated_tokens) == ("cut", 3, 4)


async def test_a_hang_holds_its_slot_and_makes_nothing(twin: Asker) -> None:
    twin.fault(kind="hang", at_token=2, times=1)
    asking = asyncio.create_task(broken_stream(twin))
    await twin.until(lambda: bool(twin.records) and twin.records[0].generated_tokens == 2)
    await twin.complete("another", 20)  # others go on
    assert twin.records[-1].generated_tokens == 2 and len(twin.twin.engine.running) == 1
    asking.cancel()
    await twin.until(lambda: not twin.twin.engine.running)


async def test_a_hang_before_the_first_token(twin: Asker) -> None:
    twin.fault(kind="hang")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(broken_stream(twin), 0.2)
    assert twin.twin.stats.generation_tokens == 0


async def test_a_drip_takes_its_time_for_each_token_and_keeps_nobody_else(twin: Asker) -> None:
    twin.fault({"kind": "drip", "delay_s": 0.05, "times": 1}, {"kind": "drip", "delay_s": 60, "times": 1})
    data, is_whole = await broken_stream(twin, max_tokens=5)
    assert is_whole and data.count(b'"text"') == 5
    record = twin.records[0]
    assert record.ended_s is not None and record.ended_s - record.arrived_s >= 4 * 0.05
    dripping = asyncio.create_task(broken_stream(twin, max_tokens=5))
    await twin.until(lambda: twin.records[-1].sent_tokens == 1)
    await twin.complete("another", 50)  # long before the sixty seconds are over
    assert not dripping.done()
    dripping.cancel()


@pytest.mark.parametrize(("factor", "told"), [(0.0, 0), (2.0, 16), (-1.0, -8)])
async def test_usage_can_lie(twin: Asker, factor: float, told: int) -> None:
    twin.fault(kind="lie_usage", factor=factor)
    events = await twin.stream(max_tokens=8)
    assert events[-1]["usage"]["completion_tokens"] == told
    assert twin.records[-1].generated_tokens == 8


@pytest.mark.parametrize(("kind", "num_with_usage", "has_totals"), [("drop_final_usage", 8, False), ("drop_usage", 0, False)])
async def test_usage_can_be_missing(twin: Asker, kind: str, num_with_usage: int, has_totals: bool) -> None:
    twin.fault(kind=kind)
    events = await twin.stream(max_tokens=8)
    assert sum("usage" in event for event in events) == num_with_usage
    assert any(not event["choices"] for event in events) is has_totals


async def test_a_refusal_has_its_status_and_generates_nothing(twin: Asker) -> None:
    twin.fault(kind="refuse", status=503, times=1)
    status, document = await twin.post("/v1/completions", model="small", prompt="one")
    assert (status, document["error"]["code"]) == (503, 503)
    assert twin.records[-1].outcome == "refused"
    assert (await twin.post("/v1/completions", model="small", prompt="one"))[0] == 200


async def test_a_death_takes_all_connections_along_and_nobody_listens(twin: Asker) -> None:
    twin.fault({"kind": "hang", "at_token": 1, "times": 1}, {"kind": "die", "at_token": 2})
    port = twin.twin.port
    bystander = asyncio.create_task(broken_stream(twin))
    await twin.until(lambda: bool(twin.records) and twin.records[0].sent_tokens == 1)
    data, is_whole = await broken_stream(twin)
    assert (data.count(b'"text"'), is_whole) == (2, False)
    assert (await bystander)[1] is False
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
    assert [record.outcome for record in twin.records] == ["died", "died"]


async def test_a_truncated_stream_ends_in_good_order_in_the_middle_of_an_event(twin: Asker) -> None:
    twin.fault(kind="truncate", at_token=2)
    data, is_whole = await broken_stream(twin)
    assert is_whole and not data.endswith(b"\n\n") and data.count(b"\n\n") == 2


async def test_a_garbled_event_is_not_json_and_the_others_are(twin: Asker) -> None:
    twin.fault(kind="garble", at_token=2)
    events = await twin.raw_events(max_tokens=4)
    good = []
    for event in events[:-1]:
        try:
            good.append(json.loads(event))
        except ValueError:
            assert len(good) == 2
    assert len(good) == len(events) - 2 and events[-1] == "[DONE]"


async def test_a_split_stream_is_cut_inside_characters_and_says_the_same(twin: Asker) -> None:
    whole = (await twin.complete("the people", 200))["choices"][0]["text"]
    twin.fault(kind="split")
    reader, writer = await asyncio.open_connection("127.0.0.1", twin.twin.port)
    body = b'{"model":"small","prompt":"the people","max_tokens":200,"temperature":0,"stream":true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: "
    writer.write(head + b"%d\r\n\r\n" % len(body) + body)
    data = await reader.read()
    writer.close()
    events = [part for part in data.split(b"\n\n") if b'"choices"' in part]
    texts = [json.loads(event[event.index(b"data: ") + 6 :])["choices"][0]["text"] for event in events]
    assert "".join(texts) == whole and not whole.isascii()


async def test_wrong_text_is_another_answer_each_time_the_same(twin: Asker) -> None:
    right = (await twin.complete("one"))["choices"][0]["text"]
    twin.fault(kind="wrong_text")
    wrong = [(await twin.complete("one"))["choices"][0]["text"] for _ in range(2)]
    assert wrong[0] == wrong[1] != right


async def test_a_frozen_engine_is_healthy_and_makes_no_progress_until_it_thaws(twin: Asker) -> None:
    twin.switch(frozen=True)
    asking = asyncio.create_task(twin.complete("one", 4))
    await twin.until(lambda: bool(twin.twin.engine.waiting))
    assert (await twin.get("/health"))[0] == 200
    assert twin.twin.stats.generation_tokens == 0
    twin.twin.set_faults(FaultPlan())
    assert (await asking)["usage"]["completion_tokens"] == 4


async def test_a_dead_engine_says_so(twin: Asker) -> None:
    twin.switch(dead=True)
    assert (await twin.get("/health"))[0] == 503
    assert (await twin.post("/v1/completions", model="small", prompt="one"))[0] == 500


async def test_a_silent_twin_answers_only_its_own_side(twin: Asker) -> None:
    twin.switch(silent=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(twin.get("/health"), 0.1)
    assert (await twin.get("/twin/state"))[0] == 200


async def test_metrics_can_be_stale_or_absent(twin: Asker) -> None:
    before = (await twin.get("/metrics"))[1]
    twin.switch(stale_metrics=True)
    await twin.complete("one")
    assert (await twin.get("/metrics"))[1] == before
    twin.switch(no_metrics=True)
    assert (await twin.get("/metrics"))[0] == 404


async def test_the_same_seed_and_order_meet_the_same_faults(start: Start) -> None:
    async def outcomes(seed: int) -> list[str]:
        twin = await start(fault_seed=seed)
        twin.fault(kind="refuse", probability=0.5)
        for _ in range(20):
            await twin.post("/v1/completions", model="small", prompt="one", max_tokens=1)
        return [record.outcome for record in twin.records]

    first, again, other = await outcomes(3), await outcomes(3), await outcomes(4)
    assert first == again != other
    assert {"refused", "length"} == set(first)


async def test_faults_are_set_over_http_and_mistakes_are_named(twin: Asker) -> None:
    status, plan = await twin.post("/twin/faults", faults=[{"kind": "cut", "at_token": 3}])
    assert status == 200 and plan["faults"][0]["at_token"] == 3
    status, said = await twin.post("/twin/faults", faults=[{"kind": "cut", "at_tokn": 3}])
    assert status == 400 and "at_tokn" in said["error"]
    status, records = await twin.get("/twin/requests?since=0")
    assert (status, records) == (200, "[]")


@pytest.mark.parametrize("kind", ["truncate", "garble", "split"])
async def test_an_answer_without_events_has_no_fault_of_events(twin: Asker, kind: str) -> None:
    twin.fault(kind=kind)
    assert (await twin.complete("one"))["usage"]["completion_tokens"] == 8
