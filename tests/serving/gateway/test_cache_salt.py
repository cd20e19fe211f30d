"""Who may find whose prompts in prefix caches: a tenant its own, and those of the trust group that it opted into; nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_support import PEPPER, SALT, KeyBook, chat_body
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_fleet import Fleet, running_fleet

from policies.routing.prefix_index import chain_of
from serving.gateway.auth import Authenticator
from serving.gateway.tenants import TENANT_ID, TRUST_GROUP, Tenant

LONG = "Answer politely, in full sentences, and never name a price. " * 12
names = st.from_regex(TENANT_ID, fullmatch=True)
tenants = st.builds(Tenant, id=names, trust_group=st.none() | st.from_regex(TRUST_GROUP, fullmatch=True) | names)


async def salt_of(tenant: Tenant) -> str:
    book = KeyBook()
    key = book.add(tenant)
    doorman = Authenticator(book.find_key, pepper=PEPPER, salt_secret=SALT, key_cache_s=60)
    try:
        return (await doorman.authenticate({b"authorization": f"Bearer {key}".encode()})).cache_salt
    finally:
        doorman.close()


@settings(max_examples=40)
@given(st.lists(tenants, min_size=2, max_size=2), st.booleans())
async def test_two_tenants_share_a_salt_exactly_where_they_opted_into_one_group(pair: list[Tenant], is_named_alike: bool) -> None:
    """A group that is called like a tenant would open that tenant's cache to whoever joins the group."""
    one, other = pair
    if is_named_alike:
        other = Tenant(other.id, trust_group=one.id)
    shares = one.id == other.id and one.trust_group == other.trust_group
    shares |= one.trust_group is not None and one.trust_group == other.trust_group
    salts = await salt_of(one), await salt_of(other)
    assert (salts[0] == salts[1]) == shares
    chains = [set(chain_of(range(200), adapter="", salt=salt)) for salt in salts]
    assert len(chains[0]) == 3
    assert (chains[0] == chains[1], bool(chains[0] & chains[1])) == (shares, shares)


async def cached_tokens(fleet: Fleet, key: str) -> tuple[int, int, Any]:
    """What a twin found in its cache, what the bill says, and why the engine was chosen."""
    body = chat_body(
        messages=[{"role": "system", "content": LONG}, {"role": "user", "content": "Hi"}], max_tokens=1, temperature=0
    )
    before = sum(record.cached_tokens for record in fleet.records)
    async with fleet.gateway.post(body=body, key=key) as answer:
        assert answer.status == 200, await answer.text()
    await fleet.gateway.is_quiet()
    return sum(record.cached_tokens for record in fleet.records) - before, fleet.bill.cached_tokens, fleet.bill.routing_reason


@pytest.mark.parametrize(
    ("second", "is_hit"),
    [
        (Tenant("one"), True),
        (Tenant("two"), False),
        (Tenant("two", trust_group="shop"), False),
        (Tenant("two", trust_group="one"), False),
    ],
    ids=["itself", "another", "another in a group", "another in a group called like the first"],
)
async def test_no_other_tenant_finds_a_prompt_at_an_engine(second: Tenant, is_hit: bool) -> None:
    async with running_fleet(1) as fleet:
        first_key, second_key = fleet.gateway.keys.add(Tenant("one")), fleet.gateway.keys.add(second)
        assert (await cached_tokens(fleet, first_key))[:2] == (0, 0)
        found, billed, reason = await cached_tokens(fleet, second_key)
        assert (found > 100, billed == found, reason) == (is_hit, True, "prefix" if is_hit else "ring")


async def test_those_of_a_group_find_each_others_prompts_and_an_outsider_none() -> None:
    async with running_fleet(2) as fleet:
        keys = [
            fleet.gateway.keys.add(Tenant(name, trust_group=group))
            for name, group in (("one", "shop"), ("two", "shop"), ("three", "other"), ("four", None))
        ]
        found = [(await cached_tokens(fleet, key))[0] > 100 for key in keys]
        assert found == [False, True, False, False]
