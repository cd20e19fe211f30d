"""The choice of a replica: tables with the arithmetic, then what holds for every fleet."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import takewhile
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.routing.choice import (
    BATCH,
    FOREIGN_FADE_S,
    MUCH_SOONER,
    NEAR_TIE,
    OVER_SHARE_TOKENS,
    SHARE_FADE_S,
    SHARE_SLACK,
    SLOW_START_S,
    Choice,
    Replica,
    choose,
    fade,
    load_bound,
)
from policies.routing.prefix_index import BLOCK_TOKENS, Chain, PrefixIndex, chain_of
from policies.routing.ring import Ring

NOW_S = 100.0


def chain(letters: str) -> Chain:
    return chain_of([ord(letter) for letter in letters for _ in range(BLOCK_TOKENS)], adapter="", salt="s")


class Gateway:
    """A gateway's view of a fleet."""

    def __init__(self, replicas: list[Replica], seed: int = 0) -> None:
        self.replicas = replicas
        self.index = PrefixIndex()
        self.ring = Ring([f"engine-{number}" for number in range(len(replicas))])
        self.random = Random(seed)

    def choose(self, letters: str, *, failed: tuple[int, ...] = (), max_in_flight: int = 1000) -> Choice:
        return choose(
            self.replicas,
            self.index,
            self.ring,
            prompt_tokens=len(letters) * BLOCK_TOKENS + 1,
            chain=chain(letters),
            failed=failed,
            max_in_flight=max_in_flight,
            now_s=NOW_S,
            random=self.random,
        )

    def send(self, letters: str) -> int:
        choice = self.choose(letters)
        self.index.add(1 << choice.index, chain(letters))
        self.replicas[choice.index].num_in_flight += 1
        return choice.index


def fleet(*in_flight: int, is_ready: bool = True) -> list[Replica]:
    return [Replica(is_ready=is_ready, num_in_flight=number) for number in in_flight]


def test_the_one_that_holds_the_prompt_is_chosen_and_its_part_is_not_counted() -> None:
    gateway = Gateway(fleet(3, 1, 0))
    gateway.index.add(0b001, chain("abcdef"))
    choice = gateway.choose("abcdef")
    assert (choice.index, choice.reason, choice.uncached_tokens) == (0, "prefix", 1)


def test_a_holder_with_more_than_its_share_is_not_a_candidate() -> None:
    # The mean is (20 + 0 + 0 + 0 + 1) / 4 = 5.25, and 5.25 + 2 x sqrt(5.25) + 1 = 10.8.
    gateway = Gateway(fleet(20, 0, 0, 0))
    gateway.index.add(0b0001, chain("abcdef"))
    assert gateway.choose("abcdef").index != 0


BOUNDS = [(0.1, 1.73), (1, 4.0), (16, 25.0), (64, 81.0), (100, 125.0)]


@pytest.mark.parametrize(("mean", "bound"), BOUNDS)
def test_the_bound_leaves_chance_alone_in_small_fleets_and_a_quarter_in_large_ones(mean: float, bound: float) -> None:
    assert load_bound(mean) == pytest.approx(bound, abs=0.01)


def test_what_others_compute_at_a_replica_counts_as_queued_and_fades() -> None:
    gateway = Gateway(fleet(0, 0))
    gateway.replicas[0].foreign_tokens = 8000
    assert {gateway.choose("").index for _ in range(20)} == {1}
    fade(gateway.replicas, FOREIGN_FADE_S)
    assert gateway.replicas[0].foreign_tokens == pytest.approx(8000 / math.e)
    fade(gateway.replicas, 20 * FOREIGN_FADE_S)
    assert {gateway.choose("").index for _ in range(50)} == {0, 1}


def fleet_by_recent(*recent: float) -> list[Replica]:
    return [Replica(num_recent=number) for number in recent]


SHARES = [
    # The mean is 10, so a share is 1.05 x 10 + 1 = 11.5. At the holder of a system prompt of 4 blocks of 6: 193 tokens of work,
    # and elsewhere 449; the holder is left where it has more than four times as much, beyond 1,796.
    ("within its share", (11.5, 9.5, 9.5, 9.5), "SSSSab", 0, "prefix"),
    # 50,000 x (11.8 / 11.5 - 1) = 1,304 more is too little, and 50,000 x (12 / 11.5 - 1) = 2,174 enough.
    ("hardly over it", (11.8, 9.4, 9.4, 9.4), "SSSSab", 0, "prefix"),
    ("over it", (12.0, 9.4, 9.3, 9.3), "SSSSab", None, "least_work"),
    # 60 blocks held are 3,840 tokens more to do elsewhere: 4 x 4,033 stand against 193 + 2,174.
    ("over it with a long conversation", (12.0, 9.4, 9.3, 9.3), "S" * 60 + "ab", 0, "prefix"),
]


@pytest.mark.parametrize(("recent", "letters", "chosen", "reason"), [row[1:] for row in SHARES], ids=[row[0] for row in SHARES])
def test_a_holder_that_got_more_than_its_share_of_late_keeps_only_what_is_dear_to_move(
    recent: tuple[float, ...], letters: str, chosen: int | None, reason: str
) -> None:
    gateway = Gateway(fleet_by_recent(*recent))
    gateway.index.add(0b0001, chain(letters.rstrip("ab")))
    choice = gateway.choose(letters)
    assert choice.reason == reason
    assert choice.index == chosen if chosen is not None else choice.index != 0
    held_blocks = letters.count("S") if chosen == 0 else 0
    assert choice.uncached_tokens == (len(letters) - held_blocks) * BLOCK_TOKENS + 1, "what is charged is no work"


def test_what_was_sent_of_late_fades() -> None:
    replicas = fleet_by_recent(10)
    fade(replicas, SHARE_FADE_S)
    assert replicas[0].num_recent == pytest.approx(10 / math.e)


def test_the_holder_of_a_popular_system_prompt_gets_hardly_more_than_its_share() -> None:
    """Ten new conversations a second, each there for a second, three in four with one system prompt. By requests in flight alone
    the holder had three shares: a mean of 1.25 allows 4.5."""
    gateway, random, sent = Gateway(fleet(*[0] * 8)), Random(1), Counter[int]()
    leaving: list[int] = []
    for number in range(1000):
        letters = ("SSSS" if random.random() < 0.75 else random.choice("bcdefgh") * 4) + f"{number:04d}"[::-1]
        at = gateway.send(letters)
        gateway.replicas[at].num_recent += 1
        sent[at] += 1
        leaving.append(at)
        if len(leaving) > 10:
            gateway.replicas[leaving.pop(0)].num_in_flight -= 1
        fade(gateway.replicas, 0.1)
    assert max(sent.values()) <= 1.25 * 1000 / 8


def test_little_is_not_worth_a_queue() -> None:
    # At the holder of one block in 20: (6000 + 1217 + 64) x 8; elsewhere (1281 + 64) x 8, less than a quarter.
    gateway = Gateway(fleet(0, 0))
    gateway.index.add(0b01, chain("a"))
    gateway.replicas[0].queued_tokens = 6000
    choice = gateway.choose("a" + "b" * 19)
    assert (choice.index, choice.reason) == (1, "least_work")


def test_a_short_prompt_goes_where_the_least_work_is() -> None:
    gateway = Gateway(fleet(2, 1, 3))
    assert {gateway.choose("").index for _ in range(20)} == {1}


def test_ties_are_broken_at_random() -> None:
    gateway = Gateway(fleet(1, 1, 1, 1))
    assert {gateway.choose("").index for _ in range(100)} == {0, 1, 2, 3}


UNPLACED: list[tuple[str, list[Replica], str]] = [
    ("no replicas", [], "none_ready"),
    ("none ready", fleet(0, 0, is_ready=False), "none_ready"),
    ("all full", fleet(9, 9), "all_full"),
]


@pytest.mark.parametrize(("replicas", "reason"), [row[1:] for row in UNPLACED], ids=[row[0] for row in UNPLACED])
def test_with_nowhere_to_go_the_reason_is_told(replicas: list[Replica], reason: str) -> None:
    choice = Gateway(replicas).choose("abc", max_in_flight=9)
    assert (choice.is_placed, choice.reason) == (False, reason)


def test_ejection_counts_until_half_of_the_fleet_is_ejected() -> None:
    for num_ejected, is_panic in ((1, False), (2, False), (3, True), (4, True)):
        gateway = Gateway(fleet(0, 0, 0, 0))
        for replica in gateway.replicas[:num_ejected]:
            replica.ejected_until_s = NOW_S + 1
        chosen = [gateway.choose("") for _ in range(100)]
        assert all(choice.is_panic is is_panic for choice in chosen)
        assert {choice.index for choice in chosen} == (set(range(4)) if is_panic else set(range(num_ejected, 4)))


def test_a_replica_that_is_new_gets_less_until_it_is_warm() -> None:
    # A fifth warm, its one request counts as five: (64 + 65) x 13 against (64 + 65) x 10.
    gateway = Gateway(fleet(2, 2, 1))
    gateway.replicas[2].started_s = NOW_S - SLOW_START_S / 5
    assert gateway.choose("").index != 2
    gateway.replicas[2].started_s = NOW_S - SLOW_START_S
    assert gateway.choose("").index == 2


REPLICAS = st.builds(
    Replica,
    is_ready=st.booleans(),
    num_in_flight=st.integers(0, 20),
    queued_tokens=st.integers(0, 10_000),
    num_recent=st.floats(0, 20),
    ejected_until_s=st.sampled_from([NOW_S - 1, NOW_S + 1]),
    started_s=st.sampled_from([NOW_S - 1, NOW_S - 100]),
)
PROMPTS = st.text("abc", max_size=6)
HELD = st.lists(st.tuples(st.integers(0, 7), PROMPTS), max_size=10)


@settings(deadline=None)
@given(replicas=st.lists(REPLICAS, max_size=8), held=HELD, asked=PROMPTS, failed=st.sets(st.integers(0, 7), max_size=2))
def test_whoever_is_chosen_is_ready_has_room_and_has_not_failed_this(
    replicas: list[Replica], held: list[tuple[int, str]], asked: str, failed: set[int]
) -> None:
    gateway = Gateway(replicas)
    failed = {n for n in failed if n < len(replicas)}
    for replica, letters in held:
        if replica < len(replicas):
            gateway.index.add(1 << replica, chain(letters))
    before = [dataclasses.replace(replica) for replica in replicas]
    choice = gateway.choose(asked, failed=tuple(failed), max_in_flight=15)
    assert replicas == before, "a choice changes nothing"
    able = [n for n, one in enumerate(replicas) if one.is_ready and n not in failed]
    trusted = [n for n in able if replicas[n].ejected_until_s <= NOW_S]
    assert choice.is_panic == (2 * len(trusted) < len(able))
    allowed = [n for n in (able if choice.is_panic else trusted) if replicas[n].num_in_flight < 15]
    assert choice.is_placed == bool(allowed)
    if choice.is_placed:
        assert choice.index in allowed
        assert 1 <= choice.uncached_tokens <= len(asked) * BLOCK_TOKENS + 1


def num_shared(letters: str, asked: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(letters, asked, strict=False)))


def walked(gateway: Gateway, held: list[tuple[int, str]], asked: str, failed: set[int]) -> tuple[set[int], str]:
    """Whom the rules allow and by which, the slow way: replica by replica, prompt by prompt, as `choice` says them."""
    replicas = gateway.replicas
    able = [n for n, one in enumerate(replicas) if one.is_ready and n not in failed]
    trusted = [n for n in able if replicas[n].ejected_until_s <= NOW_S]
    loads = {}
    for n in able if 2 * len(trusted) < len(able) else trusted:
        warm = max(min((NOW_S - replicas[n].started_s) / SLOW_START_S, 1), 0.1)
        loads[n] = replicas[n].num_in_flight / warm
    bound = load_bound((sum(replicas[n].num_in_flight for n in loads) + 1) / max(len(loads), 1))
    share = (1 + SHARE_SLACK) * sum(replicas[n].num_recent for n in loads) / max(len(loads), 1) + 1
    if any(load < bound for load in loads.values()):
        loads = {n: load for n, load in loads.items() if load < bound}
    shared = dict.fromkeys(loads, 0)
    for n, letters in held:
        if n in shared:
            shared[n] = max(shared[n], num_shared(letters, asked))
    tokens = len(asked) * BLOCK_TOKENS + 1
    work = {}
    for n in loads:
        over = OVER_SHARE_TOKENS * max(replicas[n].num_recent / share - 1, 0)
        work[n] = (replicas[n].queued_tokens + tokens - shared[n] * BLOCK_TOKENS + BLOCK_TOKENS + over) * (loads[n] + BATCH)
    least = min(work.values())
    nearest: set[int] = set()
    if asked:
        most = max(shared.values())
        holding = [n for n in shared if shared[n] == most]
        longest = max((num_shared(letters, asked) for n, letters in held if n < len(replicas)), default=0)
        if len(holding) == 1 and most:
            nearest = set(holding)
        elif longest < len(asked):
            nearest = {gateway.ring.first(chain(asked)[longest], holding)}
        elif most:  # each holds the prompt whole
            nearest = {n for n in holding if work[n] == min(work[n] for n in holding)}
    if nearest and min(work[n] for n in nearest) <= MUCH_SOONER * least:
        return nearest, "prefix" if any(letters[:1] == asked[:1] for n, letters in held if n < len(replicas)) else "ring"
    return {n for n in work if work[n] <= NEAR_TIE * least}, "least_work"


@settings(deadline=None)
@given(
    replicas=st.lists(REPLICAS, min_size=1, max_size=8), held=HELD, asked=PROMPTS, failed=st.sets(st.integers(0, 7), max_size=2)
)
def test_the_choice_is_what_its_rules_say_when_they_are_walked_through(
    replicas: list[Replica], held: list[tuple[int, str]], asked: str, failed: set[int]
) -> None:
    gateway = Gateway(replicas)
    held = [(n, letters) for n, letters in held if n < len(replicas) and letters]
    failed = {n for n in failed if n < len(replicas)}
    for replica, letters in held:
        gateway.index.add(1 << replica, chain(letters))
    choice = gateway.choose(asked, failed=tuple(failed))
    if choice.is_placed:
        allowed, reason = walked(gateway, held, asked, failed)
        assert choice.index in allowed
        assert choice.reason == reason


@settings(deadline=None)
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=120), num=st.integers(2, 8))
def test_no_traffic_gives_a_replica_more_than_its_share(prompts: list[str], num: int) -> None:
    """Equal prompts, shared prefixes, whatever: nothing ends here, so in flight is all that was sent."""
    gateway = Gateway(fleet(*[0] * num))
    for sent, letters in enumerate(prompts, 1):
        chosen = gateway.send(letters)
        assert gateway.replicas[chosen].num_in_flight <= load_bound(sent / num) + 1


@settings(deadline=None)
@given(prompts=st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=40))
def test_gateways_that_never_spoke_place_cold_prompts_alike(prompts: list[str]) -> None:
    gateways = [Gateway(fleet(*[0] * 8), seed) for seed in (1, 2)]
    for letters in prompts:
        first, second = (gateway.choose(letters).index for gateway in gateways)
        assert first == second


def test_a_conversation_stays_at_one_replica_whichever_gateway_takes_its_next_turn() -> None:
    """Four gateways that know a common system prompt; each turn goes to another of them."""
    gateways = [Gateway(fleet(*[0] * 8), seed) for seed in range(4)]
    for gateway in gateways:
        for replica in range(8):
            gateway.index.add(1 << replica, chain("SSS"))
    for name in "abcdefghij":
        at = set()
        for turn in range(1, 9):
            gateway = gateways[(turn * 7 + ord(name)) % 4]
            letters = "SSS" + name * turn
            choice = gateway.choose(letters)
            gateway.index.add(1 << choice.index, chain(letters))
            at.add(choice.index)
        assert len(at) == 1


@settings(deadline=None)
@given(names=st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=12), key=st.integers(0, 2**64 - 1))
def test_a_ring_moves_only_the_keys_of_whoever_leaves(names: set[str], key: int) -> None:
    ordered = sorted(names)
    ring, everyone = Ring(ordered), range(len(ordered))
    owner = ring.first(key, everyone)
    shuffled = ordered[::-1]
    assert shuffled[Ring(shuffled).first(key, everyone)] == ordered[owner], "the order of names does not matter"
    for leaving in range(len(ordered)):
        rest = ordered[:leaving] + ordered[leaving + 1 :]
        after = rest[Ring(rest).first(key, range(len(rest)))]
        assert after == ordered[ring.first(key, [n for n in everyone if n != leaving])], "leaving is being left out"
        assert leaving == owner or after == ordered[owner]
    assert ring.first(key, ()) == -1


def test_a_ring_shares_keys_out_evenly_enough() -> None:
    ring, keys = Ring([f"engine-{number}" for number in range(16)]), Random(1)
    counts = Counter(ring.first(keys.getrandbits(64), range(16)) for _ in range(8000))
    assert max(counts.values()) < 1.6 * 500
    assert min(counts.values()) > 0.5 * 500
