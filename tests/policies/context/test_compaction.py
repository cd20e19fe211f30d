"""What of an over-long conversation goes, and what never does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.context.compaction import PINNED_ROLES, STRATEGIES, Compaction, Size, Strategy, decide_compaction, least_kept

ROLES = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}


def talk(text: str) -> list[Size]:
    """`s10 u50 a40>x t30<x`: roles and tokens, calls behind `>` and the call that a result belongs to behind `<`."""
    sizes = []
    for word in text.split():
        body, _, call = word.partition(">")
        body, _, answers = body.partition("<")
        sizes.append(Size(ROLES[word[0]], int(body[1:]), tuple(filter(None, call.split(","))), answers))
    return sizes


@pytest.mark.parametrize(
    ("strategy", "conversation", "room", "dropped", "reason"),
    [
        ("truncate-oldest", "s10 u50 a40 u20", 120, (), "fits"),  # 120 of 120
        ("truncate-oldest", "s10 u50 a40 u20", 119, (1, 2), "dropped"),  # a question goes with its answer
        ("refuse", "s10 u50 a40 u20", 119, (), "refused"),
        ("truncate-oldest", "s10 u50 a40 u20 a5 u5", 80, (1, 2), "dropped"),  # 130 - 90 = 40: no more than has to
        ("truncate-oldest", "s10 u50 a40 u20 a5 u5", 39, (1, 2, 3, 4), "dropped"),  # 15 are left
        ("keep-system-and-last", "s10 u50 a40 u20 a5 u5", 80, (1, 2, 3, 4), "dropped"),
        ("summarise", "s10 u50 a40 u20", 60, (1, 2), "dropped"),
        ("truncate-oldest", "s10 u50 a40 u20", 29, (), "rest_too_long"),  # system and question have 30
        ("truncate-oldest", "u50 a40 d10 u20", 60, (0, 1), "dropped"),  # what a developer says stays where it stands
        ("truncate-oldest", "u9 a9>x t90<x a9 u9", 20, (0, 1, 2, 3), "dropped"),
        # An agent at work: one question and many steps. The question and the last step stay.
        ("truncate-oldest", "s10 u10 a5>x t50<x a5>y t50<y a5>z t50<z", 140, (2, 3), "dropped"),  # 185 - 55 = 130
        ("truncate-oldest", "s10 u10 a5>x t50<x a5>y t50<y a5>z t50<z", 80, (2, 3, 4, 5), "dropped"),  # 75
        ("truncate-oldest", "s10 u10 a5>x t50<x a5>y t50<y a5>z t50<z", 70, (), "rest_too_long"),
        ("keep-system-and-last", "u9 a9 s10 u10 a5>x t50<x a5>y t50<y", 140, (0, 1), "dropped"),
        ("keep-system-and-last", "u9 a9 s10 u10 a5>x t50<x a5>y t50<y", 100, (), "rest_too_long"),  # steps are no part of it
        # A result that comes only after the next question holds both turns together.
        ("truncate-oldest", "u9 a9 u9 a9>x u9 t9<x a9 u9", 60, (0, 1), "dropped"),  # 72 - 18 = 54
        ("truncate-oldest", "u9 a9 u9 a9>x u9 t9<x a9 u9", 50, (0, 1, 2, 3, 4, 5, 6), "dropped"),
        ("truncate-oldest", "u9 a9>x u9 t9<x", 30, (), "rest_too_long"),  # one of them is the last question
        ("truncate-oldest", "a9 a9 a9", 20, (0,), "dropped"),  # nobody asked anything
        ("truncate-oldest", "s9", 5, (), "rest_too_long"),
        ("truncate-oldest", "", 0, (), "fits"),
    ],
)
def test_what_goes(strategy: Strategy, conversation: str, room: int, dropped: tuple[int, ...], reason: str) -> None:
    decision = decide_compaction(talk(conversation), strategy=strategy, max_prompt_tokens=room)
    assert (decision.dropped, decision.reason) == (dropped, reason)


def test_an_id_that_comes_again_means_the_nearest_call() -> None:
    sizes = talk("u9 a9>x t9<x u9 a9>x t9<x u9")
    assert decide_compaction(sizes, strategy="truncate-oldest", max_prompt_tokens=40).dropped == (0, 1, 2)


def test_what_comes_with_every_prompt_counts() -> None:
    sizes = talk("s10 u50 a40 u20")
    assert decide_compaction(sizes, strategy="truncate-oldest", max_prompt_tokens=120, fixed_tokens=1).kept_tokens == 31
    refused = decide_compaction(sizes, strategy="truncate-oldest", max_prompt_tokens=120, fixed_tokens=91)
    assert refused.reason == "rest_too_long"


@st.composite
def conversations(draw: st.DrawFn) -> list[Size]:
    """Any order of roles; results answer calls before them, or none at all."""
    sizes: list[Size] = []
    ids = st.sampled_from("abc")
    for role in draw(st.lists(st.sampled_from(sorted(ROLES.values())), max_size=24)):
        calls = tuple(draw(st.lists(ids, max_size=2, unique=True))) if role == "assistant" else ()
        answers = draw(ids) if role == "tool" else ""
        sizes.append(Size(role, draw(st.integers(0, 50)), calls, answers))
    return sizes


def pairs(sizes: Sequence[Size]) -> list[tuple[int, int]]:
    """Each result with the nearest call before it."""
    found, called = [], dict[str, int]()
    for number, size in enumerate(sizes):
        if size.answers in called:
            found.append((called[size.answers], number))
        called.update(dict.fromkeys(size.calls, number))
    return found


@given(conversations(), st.sampled_from(STRATEGIES), st.integers(0, 600), st.integers(0, 40))
def test_whatever_is_asked_nothing_is_lost_that_may_not_be(sizes: list[Size], strategy: Strategy, room: int, fixed: int) -> None:
    decision = decide_compaction(sizes, strategy=strategy, max_prompt_tokens=room, fixed_tokens=fixed)
    assert sorted((*decision.kept, *decision.dropped)) == list(range(len(sizes)))
    assert decision.kept_tokens == fixed + sum(sizes[number].tokens for number in decision.kept)
    assert (decision.kept_tokens <= room) == (decision.reason in ("fits", "dropped"))
    assert bool(decision.dropped) == (decision.reason == "dropped")
    dropped = set(decision.dropped)
    assert not [number for number in dropped if sizes[number].role in PINNED_ROLES]
    assert all((call in dropped) == (result in dropped) for call, result in pairs(sizes))
    questions = [number for number, size in enumerate(sizes) if size.role == "user"]
    assert not questions or questions[-1] not in dropped
    spoken = [number for number, size in enumerate(sizes) if size.role not in PINNED_ROLES]
    assert not spoken or spoken[-1] not in dropped
    assert set(least_kept(sizes, strategy)) <= set(decision.kept)


@given(conversations(), st.integers(0, 600), st.integers(0, 600))
def test_more_room_never_drops_more(sizes: list[Size], one: int, other: int) -> None:
    def decide(room: int) -> Compaction:
        return decide_compaction(sizes, strategy="truncate-oldest", max_prompt_tokens=room)

    small, large = decide(min(one, other)), decide(max(one, other))
    if small.reason != "rest_too_long":
        assert set(large.dropped) <= set(small.dropped)


@given(conversations(), st.integers(0, 600))
def test_it_is_too_long_only_where_the_least_is(sizes: list[Size], room: int) -> None:
    for strategy in ("truncate-oldest", "keep-system-and-last"):
        decision = decide_compaction(sizes, strategy=strategy, max_prompt_tokens=room)
        least = sum(sizes[number].tokens for number in least_kept(sizes, strategy))
        assert (decision.reason == "rest_too_long") == (least > room)
