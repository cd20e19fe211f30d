"""What survivors carry, and who is shed first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.failover.capacity import Fleet, committed_load, plan_class, shed

PLACES = 32


def fleet(num_ready: int, max_engines: int, **in_flight: int) -> Fleet:
    return Fleet(num_ready, max_engines, PLACES, in_flight)


@pytest.mark.parametrize(
    ("lost", "survivors", "floors", "shed_now", "shed_most"),
    [
        # 20 + 30 in flight fit into 2 × 32.
        (fleet(2, 4, standard=30), {"west": fleet(2, 4, standard=20)}, {"west": 2}, 0, 0),
        # 60 + 60 = 120 want 4 engines of 32; 2 hold 64 now, 56 are shed until the others are ready.
        (fleet(2, 4, standard=60), {"west": fleet(2, 4, standard=60)}, {"west": 4}, 56, 0),
        # 200 are more than 4 × 32 = 128: 72 are shed however many start.
        (fleet(4, 4, standard=120), {"west": fleet(3, 4, standard=80)}, {"west": 4}, 104, 72),
        # 90 want 3 engines; the least full of what it may have is first, by name where both are alike.
        (fleet(3, 4, standard=90), {"south": fleet(0, 4), "west": fleet(0, 4)}, {"south": 2, "west": 1}, 90, 0),
        (fleet(3, 4, standard=90), {}, {}, 90, 90),
        (None, {"west": fleet(1, 4, standard=10)}, {"west": 1}, 0, 0),
    ],
)
def test_what_survivors_carry(
    lost: Fleet | None, survivors: dict[str, Fleet], floors: dict[str, int], shed_now: int, shed_most: int
) -> None:
    plan = plan_class("small", lost, survivors)
    assert plan.engines == floors
    assert (sum(plan.shed_now.values()), sum(plan.shed_most.values())) == (shed_now, shed_most)
    assert plan.is_carried == (shed_most == 0)


def test_who_has_moved_already_is_not_counted_twice() -> None:
    """The incident: 87 requests a second were refused their failover, as those that had moved were counted again."""
    lost, survivors = fleet(1, 8, standard=110, batch=30), {"west": fleet(8, 8, standard=223)}
    assert plan_class("small", lost, survivors).wanted == 363
    plan = plan_class("small", lost, survivors, has_moved=True)
    assert plan.wanted == 253, "223 of standard are here; of batch nobody has come, so its last word counts"
    assert plan.is_carried


COUNTS = st.integers(0, 500)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_nobody_is_shed_while_a_lower_band_has_a_place(interactive: int, standard: int, batch: int, places: int) -> None:
    wanted = {"interactive": interactive, "standard": standard, "batch": batch}
    gone = shed(wanted, places)
    assert sum(gone.values()) == max(0, sum(wanted.values()) - places)
    if gone["interactive"]:
        assert gone["standard"] == standard
    if gone["standard"]:
        assert gone["batch"] == batch


def test_committed_load_is_shared_by_those_that_are_left() -> None:
    assert committed_load({"small": 100}, 3) == ["small: 100 requests a minute are committed, 50 by each of 2"]
