"""How fast sizes follow wishes: as a HorizontalPodAutoscaler does, and never down on silence."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.autoscaling.pace import Pace, Pacer, wish_for

SYNC_S = 15


def trajectory(pacer: Pacer, wishes: list[int | None], start: int) -> list[int]:
    """Sizes after each wish, a sync apart."""
    sizes, current = list[int](), start
    for index, wish in enumerate(wishes):
        current = pacer.size(wish, current, index * SYNC_S)
        sizes.append(current)
    return sizes


@pytest.mark.parametrize(
    ("total", "current", "wish"),
    [(500, 1, 16), (500, 15, 15), (500, 14, 16), (0, 3, 0), (31, 1, 1), (33, 0, 2)],
)
def test_a_wish_is_the_work_over_the_target_unless_it_is_near_enough(total: float, current: int, wish: int) -> None:
    """32 each. 500 / (32 × 15) = 1.04, within a tenth; 500 / (32 × 14) = 1.12, beyond."""
    assert wish_for(total, 32, current) == wish


def test_growing_takes_two_a_minute() -> None:
    """Two at once, and two more when those are a minute old: at 60 s the first two still count, at 75 s they do not."""
    sizes = trajectory(Pacer(Pace(), 1, 100), [10] * 10, start=4)
    assert sizes == [6, 6, 6, 6, 8, 8, 8, 8, 10, 10]


def test_shrinking_waits_fifteen_minutes_and_then_takes_one_every_five() -> None:
    syncs_a_minute = 60 // SYNC_S
    wishes: list[int | None] = [10, *([4] * (30 * syncs_a_minute))]
    sizes = trajectory(Pacer(Pace(), 1, 100), wishes, start=10)
    first_drop = sizes.index(9)
    assert first_drop * SYNC_S / 60 == pytest.approx(15, abs=0.5)
    assert sizes.index(8) * SYNC_S / 60 == pytest.approx(20, abs=0.5)


def test_a_short_dip_shrinks_nothing() -> None:
    wishes: list[int | None] = [10, *([2] * 40), *([10] * 40)]
    assert set(trajectory(Pacer(Pace(), 1, 100), wishes, start=10)) == {10}


def test_silence_changes_nothing() -> None:
    """An outage of monitoring must not become one of serving."""
    assert trajectory(Pacer(Pace(), 1, 100), [None] * 400, start=7) == [7] * 400


wishes = st.lists(st.one_of(st.none(), st.integers(0, 500)), min_size=1, max_size=200)


@given(wishes=wishes, minimum=st.integers(1, 20), room=st.integers(0, 80), start=st.integers(1, 100))
def test_a_size_stays_within_its_bounds_whatever_is_wished(wishes: list[int | None], minimum: int, room: int, start: int) -> None:
    begun = min(max(start, minimum), minimum + room)
    sizes = trajectory(Pacer(Pace(), minimum, minimum + room), wishes, begun)
    assert all(minimum <= size <= minimum + room for size in sizes)


@given(wishes=wishes)
def test_a_size_never_changes_faster_than_its_pace(wishes: list[int | None]) -> None:
    """In any minute at most two more; in any five at most one less."""
    sizes = [50, *trajectory(Pacer(Pace(), 1, 100), wishes, 50)]
    changes = [after - before for before, after in itertools.pairwise(sizes)]
    for index in range(len(changes)):
        assert sum(change for change in changes[index : index + 60 // SYNC_S] if change > 0) <= 2
        assert sum(change for change in changes[index : index + 300 // SYNC_S] if change < 0) >= -1
