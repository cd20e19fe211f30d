"""The table of docs/streams.md: by what an engine does wrong, how its stream ends, what the text is and what is billed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_support import chat_body
from twin_fleet import Fleet, answer_of, running_fleet, split

from serving.metering.events import CountSource, Outcome

FINAL, RUNNING, COUNTED = CountSource.ENGINE_FINAL, CountSource.ENGINE_RUNNING, CountSource.COUNTED
LENGTH, AT = 40, 7


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with running_fleet(1) as running:
        yield running


OUTCOMES: list[tuple[str, dict[str, Any], str, int, CountSource]] = [
    ("nothing", {"kind": "split", "probability": 0}, "", LENGTH, FINAL),
    ("each event in two pieces, cut inside characters", {"kind": "split"}, "", LENGTH, FINAL),
    ("a token each 20 ms", {"kind": "drip", "at_token": 30, "delay_s": 0.02}, "", LENGTH, FINAL),
    ("the connection breaks", {"kind": "cut", "at_token": AT}, "engine_lost", AT, RUNNING),
    ("the stream ends inside an event", {"kind": "truncate", "at_token": AT}, "engine_lost", AT, RUNNING),
    ("an event is not JSON", {"kind": "garble", "at_token": AT}, "engine_lost", AT, RUNNING),
    ("an event tells of a failure", {"kind": "error", "at_token": AT}, "engine_lost", AT, RUNNING),
    ("no totals", {"kind": "drop_final_usage"}, "", LENGTH, RUNNING),
    ("no counts at all", {"kind": "drop_usage"}, "", LENGTH, COUNTED),
    ("counts of zero", {"kind": "lie_usage", "factor": 0}, "", LENGTH, COUNTED),
    ("counts below zero", {"kind": "lie_usage", "factor": -3}, "", LENGTH, COUNTED),
    ("half of the tokens", {"kind": "lie_usage", "factor": 0.5}, "", LENGTH, COUNTED),
    ("more tokens than were allowed", {"kind": "lie_usage", "factor": 100}, "", LENGTH, COUNTED),
]


@pytest.mark.parametrize(
    ("fault", "code", "num_tokens", "source"), [row[1:] for row in OUTCOMES], ids=[row[0] for row in OUTCOMES]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_each_fault_has_its_outcome(
    fleet: Fleet, path: str, fault: dict[str, Any], code: str, num_tokens: int, source: CountSource
) -> None:
    whole = answer_of(await fleet.events(path, resume=False, max_tokens=LENGTH))
    fleet.fault(0, **fault)
    events = await fleet.events(path, resume=False, max_tokens=LENGTH)
    if code:
        assert b'"code":"%b"' % code.encode() in events[-1]
        assert whole.startswith(answer_of(events))
    else:
        assert events[-1] == b"data: [DONE]"
        assert answer_of(events) == whole
    first, bill = fleet.gateway.journal.closed
    assert (bill.output_tokens, bill.source) == (num_tokens, source)
    assert bill.outcome is (Outcome.ENGINE_LOST if code else Outcome.FINISHED)
    assert bill.prompt_tokens == first.prompt_tokens
    assert fleet.gateway.metric('flotilla_usage_disputed_total{model="small"}') == (source is COUNTED)


async def test_a_plain_answer_shows_what_is_billed_and_not_what_its_engine_made_up(fleet: Fleet) -> None:
    fleet.fault(0, kind="lie_usage", factor=100)
    async with fleet.gateway.post(body=chat_body(temperature=0, max_tokens=LENGTH)) as answer:
        assert (await answer.json())["usage"]["completion_tokens"] == fleet.bill.output_tokens == LENGTH


async def test_several_choices_are_checked_together(fleet: Fleet) -> None:
    fleet.fault(0, kind="lie_usage", factor=0)
    async with fleet.gateway.post(body=chat_body(temperature=1, max_tokens=LENGTH, n=3, stream=True)) as answer:
        assert (await split(answer))[-1] == b"data: [DONE]"
    assert (fleet.bill.output_tokens, fleet.bill.source) == (3 * LENGTH, COUNTED)


async def test_a_resumed_answer_is_billed_by_the_tokens_that_came(fleet: Fleet) -> None:
    async with running_fleet(2) as two:
        two.prefer(0)
        two.fault(0, kind="cut", at_token=AT)
        two.fault(1, kind="lie_usage", factor=1.5)
        await two.events(max_tokens=LENGTH)
        assert two.bill.output_tokens == LENGTH
