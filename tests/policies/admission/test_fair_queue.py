"""The queue's promises: fairness within its bound, also over gateways; reserved shares; deadlines; room in a full queue."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.fair_queue import FairQueue
from policies.admission.lanes import CREDIT_TOKENS, OUTPUT_WEIGHT, RESERVED, Band, Ticket
from tests.policies.admission.queue_sim import first_token_p99_s, waits_of_others

FOREVER_S = 1e9
LONG_S = 1e3
"""After so long nobody knows what was."""
L_MAX = 1000
"""Prompt tokens of the longest request here; answers have none, so that costs are known beforehand."""


def ask(
    tenant: str, tokens: int = 100, *, band: Band = "standard", weight: int = 1, deadline_s: float = FOREVER_S, output: int = 0
) -> Ticket:
    return Ticket(tenant, band, weight, tokens, output, deadline_s, 0.0)


def fill(queue: FairQueue, tickets: list[Ticket]) -> None:
    for ticket in tickets:
        assert queue.enter(ticket, 1, 0.0) == (None, None)


def tell_each_other(queues: list[FairQueue]) -> None:
    charges = [queue.take_charges() for queue in queues]
    for here, queue in enumerate(queues):
        for there, told in enumerate(charges):
            for (band, tenant), tokens in told.items():
                if here != there:
                    queue.merge(band, tenant, tokens)  # type: ignore[arg-type]


def served(queue: FairQueue) -> list[Ticket]:
    out = []
    while (ticket := queue.next(0.0)) is not None:
        out.append(ticket)
    return out


credits_tokens = st.sampled_from([0.0, CREDIT_TOKENS])
"""Without it the bound is VTC's own (arXiv:2401.00588, theorem 4.4)."""
sizes = st.lists(st.integers(1, L_MAX), min_size=30, max_size=60)


@settings(deadline=None)
@given(sizes, sizes, st.integers(1, 4), st.integers(1, 4), credits_tokens)
def test_two_tenants_that_wait_all_the_time_differ_by_no_more_than_twice_the_dearest_request_and_the_credit(
    ones: list[int], twos: list[int], one_weight: int, two_weight: int, credit: float
) -> None:
    """In tokens over weight."""
    queue = FairQueue(10_000, credit)
    fill(queue, [ask("one", size, weight=one_weight) for size in ones] + [ask("two", size, weight=two_weight) for size in twos])
    had: Counter[str] = Counter()
    left = {"one": len(ones), "two": len(twos)}
    while all(left.values()):
        ticket = queue.next(0.0)
        assert ticket is not None
        had[ticket.tenant] += ticket.prompt_tokens
        left[ticket.tenant] -= 1
        assert abs(had["one"] / one_weight - had["two"] / two_weight) <= 2 * L_MAX + credit


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 12), st.integers(0, 2**32), credits_tokens)
def test_over_gateways_the_bound_grows_by_what_they_have_not_told_each_other(
    num: int, every: int, seed: int, credit: float
) -> None:
    """D is what others may charge between two merges: `every` requests each of the other gateways."""
    rng = random.Random(seed)
    queues = [FairQueue(10_000, credit) for _ in range(num)]
    for queue in queues:
        fill(queue, [ask(tenant, rng.randint(1, L_MAX)) for tenant in ("one", "two") for _ in range(200)])
    had: Counter[str] = Counter()
    bound = 2 * (L_MAX + (num - 1) * every * L_MAX) + credit
    for step in range(100):
        for queue in queues:
            ticket = queue.next(0.0)
            assert ticket is not None
            had[ticket.tenant] += ticket.prompt_tokens
            assert abs(had["one"] - had["two"]) <= bound
        if step % every == every - 1:
            tell_each_other(queues)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(RESERVED)), st.integers(1, L_MAX)), min_size=1, max_size=200))
def test_a_band_that_waits_gets_its_reserved_share_but_for_one_request_a_band(asked: list[tuple[Band, int]]) -> None:
    queue = FairQueue(10_000)
    fill(queue, [ask(band, size, band=band) for band, size in asked])
    waiting = Counter(band for band, _ in asked)
    total, had = 0, Counter[str]()
    for ticket in served(queue):
        total += ticket.prompt_tokens
        had[ticket.band] += ticket.prompt_tokens
        waiting[ticket.band] -= 1
        for band, share in RESERVED.items():
            if waiting[band]:
                assert had[band] >= share * total - len(RESERVED) * L_MAX


def test_the_highest_band_goes_first_and_the_lowest_is_not_starved() -> None:
    queue = FairQueue(10_000)
    fill(queue, [ask(band, band=band) for band in RESERVED for _ in range(400)])
    first = Counter(ticket.band for ticket in [queue.next(0.0) for _ in range(400)] if ticket is not None)
    assert first["interactive"] > 290
    assert 60 <= first["standard"] <= 90
    assert 10 <= first["batch"] <= 25


@pytest.mark.parametrize("credit_tokens", [0.0, 1000.0])
def test_a_tenant_that_comes_back_is_lifted_so_that_idling_saves_up_no_more_than_the_credit(credit_tokens: float) -> None:
    """Requests of 100 tokens: a credit of 1,000 is ten of them."""
    queue = FairQueue(10_000, credit_tokens)
    fill(queue, [ask("busy") for _ in range(150)])
    for _ in range(50):
        queue.next(0.0)
    fill(queue, [ask("idle") for _ in range(50)])
    first = Counter(ticket.tenant for ticket in [queue.next(0.0) for _ in range(60)] if ticket is not None)
    assert abs(first["idle"] - first["busy"] - credit_tokens / 100) <= 2


def test_a_tenant_that_nobody_competed_with_owes_nothing_for_it() -> None:
    queue = FairQueue(10_000, 0.0)
    for _ in range(50):
        queue.pass_by(ask("alone"), 0.0)
    fill(queue, [ask(tenant) for tenant in ("late", "alone") for _ in range(20)])
    first = Counter(ticket.tenant for ticket in served(queue)[:20])
    assert abs(first["late"] - first["alone"]) <= 2


def test_within_a_tenant_the_earliest_deadline_goes_first() -> None:
    queue = FairQueue(10)
    fill(queue, [ask("one", deadline_s=at_s) for at_s in (3.0, 1.0, 2.0)])
    assert [ticket.deadline_s for ticket in served(queue)] == [1.0, 2.0, 3.0]


def test_the_charge_is_put_right_when_the_request_has_ended() -> None:
    queue = FairQueue(10)
    before = -CREDIT_TOKENS
    ticket = ask("one", 1000, output=4000)
    queue.pass_by(ticket, 0.0)
    queue.ended(ticket, uncached_tokens=300, output_tokens=50, now_s=1.0)
    assert queue.counter("standard", "one") - before == pytest.approx(300 + OUTPUT_WEIGHT * 50)
    assert queue.take_charges() == {("standard", "one"): pytest.approx(400)}


def test_a_full_queue_makes_room_for_whoever_waits_with_less() -> None:
    queue = FairQueue(3)
    flood = [ask("flood") for _ in range(3)]
    fill(queue, flood)
    refusal, pushed = queue.enter(ask("small"), 1, 0.0)
    assert refusal is None
    assert pushed is flood[-1]
    refusal, pushed = queue.enter(ask("flood"), 1, 0.0)
    assert refusal is not None
    assert (refusal.reason, pushed) == ("full", None)


def test_a_full_queue_of_a_high_band_makes_no_room_for_a_lower_one() -> None:
    queue = FairQueue(1)
    fill(queue, [ask("high", band="interactive")])
    refusal, pushed = queue.enter(ask("low", band="batch"), 1, 0.0)
    assert refusal is not None
    assert (refusal.reason, pushed) == ("full", None)


def test_a_request_that_would_wait_past_its_deadline_is_refused_at_once() -> None:
    """One slot, requests of 100 tokens that take 1 s: the fourth that waits goes out after 3 s."""
    queue = FairQueue(10)
    taught = ask("one")
    queue.pass_by(taught, 0.0)
    queue.ended(taught, uncached_tokens=100, output_tokens=0, now_s=1.0)
    for _ in range(3):
        assert queue.enter(ask("one", deadline_s=3.5), 1, 1.0) == (None, None)
    refusal, _ = queue.enter(ask("one", deadline_s=3.5), 1, 1.0)
    assert refusal is not None
    assert refusal.reason == "deadline"
    assert refusal.predicted_wait_s == pytest.approx(3.0)


def test_the_flood_of_one_tenant_is_not_what_another_waits_for() -> None:
    queue = FairQueue(1000)
    taught = ask("flood")
    queue.pass_by(taught, 0.0)
    queue.ended(taught, uncached_tokens=100, output_tokens=0, now_s=1.0)
    fill(queue, [ask("flood") for _ in range(100)])
    small = ask("small", deadline_s=3.0)
    assert queue.enter(small, 1, 1.0) == (None, None)
    assert small.predicted_wait_s <= 1.0


def test_who_has_left_is_not_sent_and_leaves_no_trace() -> None:
    queue = FairQueue(10)
    gone, there = ask("one", deadline_s=1.0), ask("one", deadline_s=2.0)
    fill(queue, [gone, there])
    queue.leave(gone)
    queue.leave(gone)
    assert served(queue) == [there]
    assert queue.num_waiting == 0


def spend(queue: FairQueue, tenant: str, *, band: Band = "standard", num: int = 60) -> None:
    """So many requests of 100 tokens, that the tenant has no credit left; all but the last three end."""
    for number in range(num):
        ticket = ask(tenant, band=band)
        queue.pass_by(ticket, 0.0)
        if number < num - 3:
            queue.ended(ticket, uncached_tokens=100, output_tokens=0, now_s=0.0)


def test_tenants_with_credit_go_in_order_of_arrival_and_before_those_without() -> None:
    """By counters `often` would come last, having asked once more than its equals."""
    queue = FairQueue(100)
    spend(queue, "flood")
    queue.pass_by(ask("often"), 0.0)
    fill(queue, [ask("flood")])
    for number, tenant in enumerate(("often", "one", "two")):
        waiting = ask(tenant)
        waiting.entered_s = number + 1.0
        fill(queue, [waiting])
    assert [ticket.tenant for ticket in served(queue)] == ["often", "one", "two", "flood"]


@pytest.mark.parametrize(
    ("num_with_credit", "now_s", "kept"),
    [
        (0, 0.0, 0),  # nobody has any: nothing stays idle
        (1, 0.0, 1),
        (3, 0.0, 3),
        (9, 0.0, 4),  # 0.2 x 20
        (3, 5.0, 1),  # 3 / e
        (3, 60.0, 0),
    ],
)
def test_whoever_has_no_credit_leaves_as_many_slots_as_those_who_have_had_of_late(
    num_with_credit: int, now_s: float, kept: int
) -> None:
    queue = FairQueue(100)
    spend(queue, "flood")
    later_s = LONG_S + now_s
    for number in range(num_with_credit):
        queue.pass_by(ask(f"small-{number}"), LONG_S)
    fill(queue, [ask("flood")])
    assert queue.next(later_s, kept, 20) is None
    assert queue.next(later_s, kept + 1, 20) is not None


def test_whoever_has_credit_takes_the_last_slot() -> None:
    queue = FairQueue(100)
    spend(queue, "flood")
    queue.pass_by(ask("small"), LONG_S)
    fill(queue, [ask("flood"), ask("small")])
    small = queue.next(LONG_S, 1, 20)
    assert small is not None
    assert small.tenant == "small"


def test_what_is_kept_for_other_gateways_is_no_more_than_half_and_nothing_where_nobody_has_credit() -> None:
    queue = FairQueue(100)
    spend(queue, "flood")
    assert queue.kept_back("standard", 20, 63, LONG_S) == 0
    queue.pass_by(ask("small"), LONG_S)
    assert [queue.kept_back("standard", 20, shy, LONG_S) for shy in (0, 3, 63)] == [1, 4, 10]


def test_a_lower_band_without_credit_leaves_slots_to_a_higher_one_and_not_the_other_way_round() -> None:
    queue = FairQueue(100)
    spend(queue, "low", band="batch")
    spend(queue, "high", band="interactive")
    queue.pass_by(ask("small", band="standard"), LONG_S)
    assert queue.kept_back("batch", 20, 0, LONG_S) == 1
    assert queue.kept_back("interactive", 20, 0, LONG_S) == 0


def test_the_only_two_requests_of_a_tenant_are_no_flood() -> None:
    queue = FairQueue(100)
    spend(queue, "often", num=61)
    for name in ("small", "smaller"):
        queue.pass_by(ask(name), 0.0)
    for _ in range(3):
        queue.ended(ask("often"), uncached_tokens=0, output_tokens=0, now_s=0.0)
    fill(queue, [ask("often"), ask("often")])
    assert queue.next(0.0, 1, 20) is not None


@pytest.mark.parametrize(("num_gateways", "max_ratio"), [(1, 1.2), (4, 1.4)])
def test_beside_a_flood_others_wait_about_as_long_as_alone(num_gateways: int, max_ratio: float) -> None:
    """In virtual time: 199 tenants at 0.85 of their share beside one that asks for 50 times its own, in bursts. By counters alone
    it is 1.8 and 2."""
    alone, beside = (waits_of_others(num_gateways, flood=flood, lasts_s=60.0, seed=3) for flood in (False, True))
    assert len(alone) == len(beside), "nobody is refused"
    assert first_token_p99_s(beside) <= max_ratio * first_token_p99_s(alone)
    assert max(beside) <= 2.0
