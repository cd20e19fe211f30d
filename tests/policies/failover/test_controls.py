"""Evacuation is said by somebody, never by silence, and never of every region."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.failover.controls import Decision, Verdict, decide_evacuated, settle
from policies.failover.items import Control, pack, unpack

EAST, WEST = "us-east-2", "us-west-2"
SOUTH = "eu-south-1"


def control(region: str, *, is_evacuated: bool = True) -> Control:
    return Control(region, is_evacuated, "engines talk nonsense", "r1", "kim", 1.0)


@pytest.mark.parametrize(
    ("controls", "in_the_west", "in_the_east"),
    [
        (None, Verdict.UNSURE, Verdict.UNSURE),
        ([], Verdict.SERVING, Verdict.SERVING),
        ([control(WEST)], Verdict.SERVING, Verdict.SERVING),
        ([control(EAST)], Verdict.EVACUATED, Verdict.EVACUATED),
        ([control(EAST, is_evacuated=False)], Verdict.SERVING, Verdict.SERVING),
        ([control(EAST), control(WEST, is_evacuated=False)], Verdict.EVACUATED, Verdict.EVACUATED),
        ([control(EAST), control(WEST)], Verdict.UNSURE, Verdict.UNSURE),
        ([control(EAST), control(SOUTH)], Verdict.EVACUATED, Verdict.UNSURE),
    ],
)
def test_what_the_controls_say_of_the_east(controls: list[Control] | None, in_the_west: Verdict, in_the_east: Verdict) -> None:
    by_region = None if controls is None else {item.region: item for item in controls}
    assert decide_evacuated(by_region, EAST, WEST).verdict is in_the_west
    assert decide_evacuated(by_region, EAST, EAST).verdict is in_the_east


@pytest.mark.parametrize("before", [Verdict.SERVING, Verdict.EVACUATED])
def test_who_is_unsure_says_what_was_said_before(before: Verdict) -> None:
    assert settle(before, Decision(Verdict.UNSURE, "no answer")) is before


REGIONS = ("a", "b", "c")


@given(st.lists(st.tuples(st.sampled_from(REGIONS), st.booleans()), max_size=12))
def test_no_series_of_controls_takes_every_region_out(said: list[tuple[str, bool]]) -> None:
    """Operators who do not know of each other, one region each, in one bad hour: the last evacuation must have no effect."""
    known: dict[str, Control] = {}
    verdicts = {(here, region): Verdict.SERVING for here in REGIONS for region in REGIONS}
    for named, is_evacuated in said:
        known[named] = control(named, is_evacuated=is_evacuated)
        for here, region in verdicts:
            verdicts[here, region] = settle(verdicts[here, region], decide_evacuated(known, region, here))
        out = {region for (_, region), verdict in verdicts.items() if verdict is Verdict.EVACUATED}
        assert out < set(REGIONS)


def test_an_item_is_read_by_a_reader_that_is_older_than_its_writer() -> None:
    assert unpack(Control, {**pack(control(EAST)), "colour": "red"}) == control(EAST)


def test_an_item_without_a_field_is_named() -> None:
    values = pack(control(EAST))
    del values["reason"]
    with pytest.raises(ValueError, match="control us-east-2: reason is missing"):
        unpack(Control, values)
