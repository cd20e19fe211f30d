"""Evacuation is said by somebody, never by silence, and never of every region."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.failover.controls import Decision, Verdict, decide_evacuated, settle
from policies.failover.items import Control, pack, unpack

EAST, WEST = "us-east-2", "us-west-2"
SOUTH = "eu-south-1"


def control(region: str, *, is_evacuated: bool = True, at_s: float = 1.0) -> Control:
    return Control(region, is_evacuated, "engines talk nonsense", "r1", "kim", at_s)


@pytest.mark.parametrize(
    ("controls", "in_the_west", "in_the_east"),
    [
        (None, Verdict.UNSURE, Verdict.UNSURE),
        ([], Verdict.SERVING, Verdict.SERVING),
        ([control(WEST)], Verdict.SERVING, Verdict.SERVING),
        ([control(EAST)], Verdict.EVACUATED, Verdict.EVACUATED),
        ([control(EAST, is_evacuated=False)], Verdict.SERVING, Verdict.SERVING),
        ([control(EAST), control(WEST, is_evacuated=False)], Verdict.EVACUATED, Verdict.EVACUATED),
        ([control(EAST, at_s=1.0), control(WEST, at_s=2.0)], Verdict.EVACUATED, Verdict.EVACUATED),
        ([control(EAST, at_s=2.0), control(WEST, at_s=1.0)], Verdict.SERVING, Verdict.SERVING),
        ([control(EAST), control(WEST)], Verdict.EVACUATED, Verdict.EVACUATED),  # of two at once, by name
        ([control(EAST, at_s=1.0), control(SOUTH, at_s=2.0)], Verdict.EVACUATED, Verdict.EVACUATED),
        # The south was first and the east second: the west still serves and says so, whatever the east says of itself.
        ([control(EAST, at_s=2.0), control(SOUTH, at_s=1.0)], Verdict.EVACUATED, Verdict.SERVING),
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
    for number, (named, is_evacuated) in enumerate(said):
        known[named] = control(named, is_evacuated=is_evacuated, at_s=float(number))
        for here, region in verdicts:
            verdicts[here, region] = settle(verdicts[here, region], decide_evacuated(known, region, here))
        out = {region for (_, region), verdict in verdicts.items() if verdict is Verdict.EVACUATED}
        assert out < set(REGIONS)


@given(st.sets(st.sampled_from(REGIONS), min_size=1), st.permutations(REGIONS))
def test_after_a_partition_regions_agree_whatever_they_said_in_it(evacuated: set[str], order: list[str]) -> None:
    """The incident: each side of a partition had failed the other over, and went on saying so once both knew of it."""
    known = {region: control(region, at_s=float(order.index(region))) for region in evacuated}
    for before in (Verdict.SERVING, Verdict.EVACUATED):
        said = {(here, it): settle(before, decide_evacuated(known, it, here)) for here in REGIONS for it in REGIONS}
        assert all(verdict is not Verdict.EVACUATED for (_, it), verdict in said.items() if it not in known)
        out = {it for (_, it), verdict in said.items() if verdict is Verdict.EVACUATED}
        first = min(evacuated, key=order.index)
        assert out == ({first} if evacuated == set(REGIONS) else evacuated)


def test_an_item_is_read_by_a_reader_that_is_older_than_its_writer() -> None:
    assert unpack(Control, {**pack(control(EAST)), "colour": "red"}) == control(EAST)


def test_an_item_without_a_field_is_named() -> None:
    values = pack(control(EAST))
    del values["reason"]
    with pytest.raises(ValueError, match="control us-east-2: reason is missing"):
        unpack(Control, values)
