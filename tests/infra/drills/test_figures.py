"""What the drill of a lost region makes of what it saw; the drill itself is `test_region_loss.py`."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from infra.drills.judge import judge
from infra.drills.load import Asked
from infra.drills.region_loss import time_until
from infra.drills.streams import Seen
from infra.drills.timeline import Mark, timeline
from infra.drills.two_regions import Holdings
from serving.metering.rows import LedgerRow


@pytest.mark.parametrize(
    ("failed_at_s", "until_s"),
    [
        ([], 0.0),  # nobody noticed
        ([0.1, 2.9], 3.0),  # the last half second that begins a stretch with failures
        ([-4.0, -0.1], 0.0),  # before the loss
        ([0.1, 19.6], 20.0),  # one in two thousand would be 99.95 %, but the last second alone is not
    ],
)
def test_the_time_until_requests_are_served_ends_with_the_last_half_second_from_which_too_few_are(
    failed_at_s: list[float], until_s: float
) -> None:
    begun = [(number / 10 - 5, True) for number in range(250)] + [(at_s, False) for at_s in failed_at_s]
    assert time_until(begun, 0.999) == until_s


def test_one_failure_in_two_thousand_is_no_outage() -> None:
    begun = [(number / 100, True) for number in range(4000)]
    assert time_until([*begun, (5.0, False)], 0.999) == 0.0


@pytest.mark.parametrize(
    ("seen", "left", "why", "is_served"),
    [
        (Seen(status=200, is_done=True), False, "", True),
        (Seen(status=200), True, "", True),
        (Seen(status=200), False, "broke off", False),
        (Seen(status=200), True, "broke off", False),
        (Seen(status=503), True, "503", False),
        (Seen(), False, "no answer", False),
    ],
)
def test_who_left_was_served_and_whose_answer_broke_off_was_not(seen: Seen, left: bool, why: str, is_served: bool) -> None:
    assert Asked(0.0, 1.0, seen, left, why).is_served is is_served


TEXTS = ["key_id", "model", "release_id", "region", "gateway", "endpoint", "source", "finish_reason", "price_version"]
NUMBERS = [
    "opened_at_ms",
    "closed_at_ms",
    "attempts",
    "ttft_us",
    "counted_prompt_tokens",
    "prompt_tokens",
    "cached_tokens",
    "input_micro_usd_per_mtok",
    "cached_input_micro_usd_per_mtok",
    "output_micro_usd_per_mtok",
    "cost_pico_usd",
    "schema",
]


def row(request_id: str, outcome: str, output_tokens: int, event_id: str = "") -> LedgerRow:
    """What is billed; all that does not matter here is empty."""
    rest: dict[str, Any] = {**dict.fromkeys(TEXTS, ""), **dict.fromkeys(NUMBERS, 0)}
    told = {"event_id": event_id or f"e-{request_id}", "request_id": request_id, "tenant": "t"}
    return LedgerRow(**told, outcome=outcome, output_tokens=output_tokens, **rest)


WHOLE = Seen("a", 200, 10, True, 10)
BROKEN = Seen("a", 200, 60)


@pytest.mark.parametrize(
    ("answer", "rows", "wrong"),
    [
        (WHOLE, [row("a", "finished", 10)], []),
        (WHOLE, [row("a", "finished", 9)], ["inexact"]),
        (WHOLE, [], ["lost"]),
        (WHOLE, [row("a", "finished", 10), row("a", "finished", 10, "again")], ["doubled"]),
        (BROKEN, [row("a", "gateway_crash", 40)], []),
        (BROKEN, [row("a", "gateway_crash", 10)], ["under"]),
        (BROKEN, [row("a", "client_cancelled", 59)], ["under"]),
    ],
)
def test_a_bill_whose_twin_died_is_held_against_its_client(answer: Seen, rows: list[LedgerRow], wrong: list[str]) -> None:
    verdict = judge({}, {"a": answer}, rows, {one.event_id: one.request_id for one in rows}, some_twins_died=True)
    assert list(verdict.wrong) == wrong


def test_what_is_gone_or_another_thing_later_is_lost() -> None:
    before = Holdings({"k1": "a", "k2": "b"}, {"r": "1"}, {}, {"s": "x"}, {"row": "1"})
    after = Holdings({"k1": "a", "k3": "c"}, {"r": "2"}, {}, {"s": "x", "t": "y"}, {"row": "1"})
    assert before.lost_in(after) == {"keys": 1, "registry": 1, "releases": 0, "archived": 0, "rows": 0}


def test_the_picture_is_well_formed_and_names_what_was_done() -> None:
    text = timeline("<lost>", [(-1.5, True), (0.2, False), (3.0, True)], [Mark(0.0, "lost & gone")], ["served: 66 %"])
    words = [element.text for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert "<lost>" in words and "lost & gone +0 s" in words and "served: 66 %" in words
    ElementTree.fromstring(timeline("nothing was asked", [], [], []))
