"""Broken answers go on at another engine, for clients that opted in: what they read, what is billed, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from gateway_support import CHAT_TEMPLATE, TOKENIZER_CONFIG, chat_body
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_fleet import Fleet, answer_of, running_fleet, split

from policies.capacity.step_law import StepLaw
from serving.gateway import resume, validate
from serving.gateway.prompts import PromptCounter, prompt_counter
from serving.gateway.resume import Transcript
from serving.metering.events import CountSource, Outcome
from serving.stop_strings import HeldText

QUICK = {"connect_s": 0.3, "first_token_s": 1, "gap_s": 0.3, "request_s": 30}
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with running_fleet(2, timeouts=QUICK) as running:
        yield running


def without_times(events: list[bytes]) -> list[Any]:
    """Events as documents, less what two answers never share."""
    found = [json.loads(event[6:]) if event.startswith(b"data: {") else event for event in events]
    return [{key: value for key, value in event.items() if key not in ("id", "created")} if isinstance(event, dict) else event
            for event in found]  # fmt: skip


BREAKS: list[tuple[str, dict[str, Any]]] = [
    ("its connection breaks", {"kind": "cut", "at_token": 7}),
    ("it dies", {"kind": "die", "at_token": 7}),
    ("it ends in mid-event", {"kind": "truncate", "at_token": 7}),
    ("it sends what is no event", {"kind": "garble", "at_token": 7}),
    ("it hangs with this request", {"kind": "hang", "at_token": 7}),
]


@pytest.mark.parametrize("fault", [row[1] for row in BREAKS], ids=[row[0] for row in BREAKS])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_broken_stream_goes_on_elsewhere_as_if_nothing_had_happened(
    fleet: Fleet, path: str, fault: dict[str, Any]
) -> None:
    whole = await fleet.events(path, resume=False, **USAGE)
    fleet.prefer(0)
    fleet.fault(0, **fault)
    events = await fleet.events(path, **USAGE)
    assert len({json.loads(event[6:])["id"] for event in events if event.startswith(b"data: {")}) == 1, "one answer"
    assert answer_of(events) == answer_of(whole)
    assert without_times(events)[-3]["choices"] == without_times(whole)[-3]["choices"], "it ends for the same reason"
    counts, expected = (without_times(found)[-2]["usage"] for found in (events, whole))
    assert [counts[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")] == [
        expected[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    ]
    assert events[-1] == b"data: [DONE]"
    assert b'"token_ids":[' not in b"".join(events), "nobody asked for ids"
    first, bill = fleet.gateway.journal.closed
    assert (bill.outcome, bill.source, bill.attempts) == (Outcome.FINISHED, CountSource.ENGINE_FINAL, 2)
    assert (bill.prompt_tokens, bill.output_tokens) == (first.prompt_tokens, first.output_tokens), "one bill, the prompt once"
    assert len(fleet.gateway.journal.opened) == len(fleet.gateway.journal.closed)
    assert fleet.gateway.metric('flotilla_resumes_total{model="small"}') == 1


async def test_an_answer_that_ends_by_itself_after_the_seam_ends_there() -> None:
    async with running_fleet(2, mean_answer_tokens=20) as talkers:
        whole = await talkers.events(resume=False, max_tokens=500)
        talkers.prefer(0)
        talkers.fault(0, kind="cut", at_token=3)
        events = await talkers.events(max_tokens=500)
        assert answer_of(events) == answer_of(whole)
        assert b'"finish_reason":"stop"' in events[-2]
        first, bill = talkers.gateway.journal.closed
        assert bill.output_tokens == first.output_tokens > 3


@pytest.mark.parametrize("num_before", range(4, 9))
async def test_a_stop_string_that_begins_before_the_seam_is_found_behind_it(fleet: Fleet, num_before: int) -> None:
    """The lost engine had held its beginning back; the next one never saw it."""
    whole = await fleet.events(resume=False)
    stop = answer_of(whole[: num_before + 1])[-3:] + answer_of(whole[num_before + 1 :])[:4]
    plain = await fleet.events(resume=False, stop=["never said", stop], **USAGE)
    fleet.prefer(0)
    fleet.fault(0, kind="cut", at_token=num_before)
    events = await fleet.events(stop=["never said", stop], **USAGE)
    assert answer_of(events) == answer_of(plain)
    ending, expected = (
        next(event for event in without_times(found) if event["choices"][0]["finish_reason"]) for found in (events, plain)
    )
    assert (ending["choices"][0]["finish_reason"], ending["choices"][0]["stop_reason"]) == ("stop", stop)
    assert ending["choices"] == expected["choices"]
    *_, first, bill = fleet.gateway.journal.closed
    assert (bill.outcome, bill.output_tokens, bill.finish_reason) == (Outcome.FINISHED, first.output_tokens, "stop")
    async with asyncio.timeout(2):
        while any(record.outcome == "running" for record in fleet.records):
            await asyncio.sleep(0.01)


async def test_a_plain_answer_goes_on_too(fleet: Fleet) -> None:
    body = chat_body(temperature=0, max_tokens=40)
    async with fleet.gateway.post(body=body) as answer:
        whole = await answer.json()
    fleet.prefer(0)
    fleet.fault(0, kind="cut", at_token=7)
    async with fleet.gateway.post(body=body, **{"x-flotilla-resume": "true"}) as answer:
        assert answer.headers["x-flotilla-resume"] == "true"
        again = await answer.json()
    assert again["choices"] == whole["choices"]
    assert again["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


async def test_a_sampled_answer_goes_on_the_same_way_each_time_without_repeating_its_draws(fleet: Fleet) -> None:
    answers = []
    for _ in range(2):
        fleet.prefer(0)
        fleet.fault(0, kind="cut", at_token=7)
        answers.append(answer_of(await fleet.events(temperature=1, seed=2**63 - 1)))
    assert answers[0] == answers[1]
    asked = [record for record in fleet.records if record.endpoint == resume.PATH]
    assert [record.sent_tokens for record in asked] == [33, 33]


async def test_an_answer_may_break_twice_and_then_no_more() -> None:
    async with running_fleet(4) as unlucky:
        whole = answer_of(await unlucky.events(resume=False))
        unlucky.fault_all(kind="truncate", at_token=7)
        events = await unlucky.events()
        assert b'"code":"engine_lost"' in events[-1]
        assert answer_of(events) == whole[: len(answer_of(events))]
        bill = unlucky.bill
        assert (bill.outcome, bill.output_tokens, bill.attempts) == (Outcome.ENGINE_LOST, 21, 3)


async def test_a_request_whose_first_two_engines_broke_off_goes_on_nowhere() -> None:
    async with running_fleet(4) as unlucky:
        unlucky.fault_all(kind="cut", at_token=7)
        assert b'"code":"engine_lost"' in (await unlucky.events())[-1]
        assert (unlucky.bill.outcome, unlucky.bill.output_tokens, unlucky.bill.attempts) == (Outcome.ENGINE_LOST, 14, 2)
        body = chat_body(stream=True, temperature=0, max_tokens=40)
        async with unlucky.gateway.post(body=body, **{"x-flotilla-resume": "true"}) as answer:
            assert (await answer.json())["error"]["code"] == "request_quarantined"


async def test_a_stream_that_has_not_opted_in_ends_in_an_error_and_costs_no_ids(fleet: Fleet) -> None:
    fleet.fault_all(kind="cut", at_token=7)
    async with fleet.gateway.post(body=chat_body(stream=True, temperature=0, max_tokens=40)) as answer:
        assert "x-flotilla-resume" not in answer.headers
        assert b'"code":"engine_lost"' in (await split(answer))[-1]
    assert fleet.gateway.metric('flotilla_resumes_total{model="small"}') == 0


async def test_with_nobody_to_go_on_it_breaks_as_it_would_have_and_what_came_is_billed_once(fleet: Fleet) -> None:
    fleet.prefer(0)
    fleet.fault(0, kind="cut", at_token=7)
    fleet.fault(1, kind="refuse")
    events = await fleet.events()
    assert b'"code":"engine_lost"' in events[-1]
    assert (fleet.bill.outcome, fleet.bill.output_tokens, fleet.bill.attempts) == (Outcome.ENGINE_LOST, 7, 2)


async def test_streams_leave_an_engine_that_makes_no_progress() -> None:
    """Nothing breaks, and nothing comes."""
    async with running_fleet(2, limits={"speed": 1, "law": StepLaw(0.01, 0, 0, 0)}) as slow:
        whole = answer_of(await slow.events(resume=False))
        slow.prefer(0)
        streaming = asyncio.create_task(slow.events())
        while not any(record.sent_tokens > 5 for record in slow.twins[0].truth.running.values()):
            await asyncio.sleep(0.005)
        slow.switch(0, frozen=True)
        pool, now_s = slow.gateway.pools["small"], asyncio.get_running_loop().time()
        pool.speed.saw(1000, 0.5)
        assert [engine.endpoint.name for engine in pool.check(now_s + 4)] == ["twin-0"]
        assert answer_of(await asyncio.wait_for(streaming, 5)) == whole


POSSIBLE: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"stop": ["a"], "seed": 3, "temperature": 0.5, "n": 1, "user": "x", "logprobs": False}, True),
    ({"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.1, "top_k": 4}, True),
    ({"n": 2}, False),
    ({"logprobs": True}, False),
    ({"presence_penalty": 0.5}, False),
    ({"frequency_penalty": -0.5}, False),
    ({"response_format": {"type": "json_object"}}, False),
]


@pytest.mark.parametrize(("fields", "expected"), POSSIBLE)
def test_only_what_an_engine_continues_alike_can_be_resumed(fields: dict[str, Any], expected: bool) -> None:
    request = validate.parse("chat.completions", json.dumps(chat_body(**fields)).encode(), max_depth=64)
    assert resume.is_possible(request) is expected


async def test_what_cannot_be_resumed_is_served_and_says_so(fleet: Fleet) -> None:
    body = chat_body(n=2, temperature=1)
    async with fleet.gateway.post(body=body, **{"x-flotilla-resume": "true"}) as answer:
        assert answer.status == 200
        assert "x-flotilla-resume" not in answer.headers


# The seam itself, at every place, with a tokenizer that cuts characters into bytes.


def engine_events(counter: PromptCounter, prompt: list[int], ids: list[int], stop: list[str], limit: int) -> list[bytes]:
    """What vLLM sends for an answer of `ids`, each event with one."""
    step, held, events = counter.decoder(prompt), HeldText(stop), []
    for number, token_id in enumerate(ids[:limit], 1):
        found = held.add(step(token_id))
        finish = "stop" if found else "length" if number == limit else None
        choice = {"index": 0, "text": held.take(is_last=bool(finish)), "logprobs": None, "finish_reason": finish}
        choice |= {"stop_reason": found, "prompt_token_ids": prompt if number == 1 else None, "token_ids": [token_id]}
        usage = {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + number, "completion_tokens": number}
        document = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "small", "choices": [choice]}
        events.append(b"data: " + msgspec.json.encode({**document, "usage": usage}))
        if finish:
            break
    return events


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="ab größe東京🚢\n", min_size=1, max_size=30),
    cut=st.integers(1, 200),
    stop=st.lists(st.text(alphabet="ab grö東", min_size=1, max_size=4), max_size=2),
)
def test_wherever_it_is_cut_the_text_is_the_same(tokenizer_json: bytes, text: str, cut: int, stop: list[str]) -> None:
    counter = prompt_counter(tokenizer_json, TOKENIZER_CONFIG, CHAT_TEMPLATE.encode())
    prompt, ids = counter.text_ids("Hello"), counter.text_ids(text)
    limit = len(ids)
    whole = engine_events(counter, prompt, ids, stop, limit)
    cut = min(cut, len(whole))
    request = validate.parse("completions", json.dumps({"model": "small", "prompt": "Hello", "stop": stop}).encode(), max_depth=9)
    transcript = Transcript(request, model="small", max_tokens=limit, cache_salt="", counter=counter)
    shown = [event for one in whole[:cut] for event in transcript.record(one)]
    if transcript.is_finished:
        assert cut == len(whole)
        return
    assert transcript.can_go_on()
    asked = json.loads(transcript.request())
    assert asked["prompt"] == [*prompt, *ids[:cut]]
    for event in engine_events(counter, asked["prompt"], ids[cut:], [], asked["max_tokens"]):
        shown += transcript.go_on(event)
    shown = shown[: -2 if transcript.is_cut else None]
    assert answer_of(shown) == answer_of(whole)
    endings = [json.loads(events[-1][6:]) for events in (shown, whole)]
    assert endings[0]["usage"] == endings[1]["usage"]
    for name in ("finish_reason", "stop_reason"):
        assert endings[0]["choices"][0][name] == endings[1]["choices"][0][name]
