"""The choice of a replica: a table, and what must hold for any fleet."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.routing.least_loaded import Choice, Replica, choose

NOW_S = 100.0
IDLE, BUSY, FULL = Replica(True, 0), Replica(True, 3), Replica(True, 4)
GONE = Replica(False, 0)
EJECTED = Replica(True, 0, ejected_until_s=NOW_S + 1)
FORGIVEN = Replica(True, 0, ejected_until_s=NOW_S)
FAILED = Replica(True, 0, has_failed_this=True)

CASES: list[tuple[str, list[Replica], Choice]] = [
    ("no fleet", [], Choice(-1, "none_ready")),
    ("none ready", [GONE, GONE], Choice(-1, "none_ready")),
    ("the one that is ready", [GONE, BUSY], Choice(1, "least_loaded")),
    ("the idle one", [BUSY, IDLE, BUSY], Choice(1, "least_loaded")),
    ("all full", [FULL, FULL], Choice(-1, "all_full")),
    ("full and gone", [FULL, GONE], Choice(-1, "all_full")),
    ("not the ejected one, though idle", [EJECTED, BUSY], Choice(1, "least_loaded")),
    ("an ejection that is over", [FORGIVEN, BUSY], Choice(0, "least_loaded")),
    ("all ejected: one is tried", [GONE, EJECTED], Choice(1, "all_ejected")),
    ("the ejected one does not relieve full ones", [EJECTED, FULL], Choice(-1, "all_full")),
    ("not the one that failed this request", [FAILED, BUSY], Choice(1, "least_loaded")),
    ("only the one that failed this request", [FAILED, GONE], Choice(-1, "none_ready")),
]


@pytest.mark.parametrize(("replicas", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_chooses(replicas: list[Replica], expected: Choice) -> None:
    assert choose(replicas, max_in_flight=4, now_s=NOW_S, random=Random(1)) == expected


def test_equals_are_chosen_evenly() -> None:
    """A fixed order would send every gateway that starts cold to the same replica."""
    random = Random(1)
    chosen = Counter(choose([IDLE] * 4, max_in_flight=4, now_s=NOW_S, random=random).index for _ in range(4000))
    assert all(900 < count < 1100 for count in chosen.values())


replicas_ = st.builds(Replica, st.booleans(), st.integers(0, 5), st.floats(90, 110), st.booleans())


@given(st.lists(replicas_, max_size=12), st.integers(1, 6))
def test_never_places_where_it_must_not_and_always_where_it_can(replicas: list[Replica], max_in_flight: int) -> None:
    choice = choose(replicas, max_in_flight=max_in_flight, now_s=NOW_S, random=Random(1))
    usable = [replica for replica in replicas if replica.is_ready and not replica.has_failed_this]
    if choice.is_placed:
        chosen = replicas[choice.index]
        assert chosen in usable
        assert chosen.num_in_flight < max_in_flight
    else:
        assert (choice.reason == "none_ready") == (not usable)
        trusted = [replica for replica in usable if replica.ejected_until_s <= NOW_S]
        assert all(replica.num_in_flight >= max_in_flight for replica in trusted or usable)
