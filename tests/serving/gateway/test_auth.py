"""Keys and who they belong to: looked up once, shared, renewed, revoked in time, and safe without the table."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import msgspec
import pytest
from botocore.exceptions import EndpointConnectionError
from gateway_support import PEPPER, SALT, KeyBook
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway import auth, keys
from serving.gateway.auth import Authenticator, Principal
from serving.gateway.errors import ApiError
from serving.gateway.tenants import KeyRecord, Tenant

DOWN = EndpointConnectionError(endpoint_url="http://table")


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def authenticator(book: KeyBook, key_cache_s: float = 60.0) -> Authenticator:
    return Authenticator(book.find_key, pepper=PEPPER, salt_secret=SALT, key_cache_s=key_cache_s)


async def refusal(doorman: Authenticator, key: str) -> str:
    with pytest.raises(ApiError) as caught:
        await doorman.authenticate(bearer(key))
    return caught.value.kind.code


def change(book: KeyBook, key: str, **changes: Any) -> None:
    (key_id,) = [key_id for key_id in book.found if key_id in key]
    record, tenant = book.found[key_id]
    book.found[key_id] = (KeyRecord(msgspec.structs.replace(record.key, **changes), record.digest), tenant)


def revoke(book: KeyBook, key: str) -> None:
    change(book, key, revoked_at_ms=1)


def test_a_key_is_what_it_says() -> None:
    key = keys.mint()
    assert key.secret.startswith("fl_live_")
    assert len(key.secret) == 8 + 30 + 6
    assert key.key_id == key.secret[8:18]
    assert key.secret not in repr(key)
    assert keys.parse(key.secret) == key
    assert keys.mint() != key


@given(st.integers(8, 43), st.sampled_from("aZ09"))
def test_any_one_typing_error_is_noticed_without_a_look_up(at: int, replacement: str) -> None:
    secret = keys.mint().secret
    changed = secret[:at] + replacement + secret[at + 1 :]
    assert (keys.parse(changed) is None) == (changed != secret)


@pytest.mark.parametrize("text", ["", "fl_live_", "sk-1", " ", "fl_live_" + "é" * 36, "fl_live_" + "0" * 36 + "\n"])
def test_what_is_no_key_is_none(text: str) -> None:
    assert keys.parse(text) is None


def test_a_stored_digest_knows_its_key_and_needs_its_pepper() -> None:
    key = keys.mint()
    stored = keys.digest(PEPPER, key)
    assert keys.matches(PEPPER, key, stored)
    assert not keys.matches(PEPPER, keys.mint(), stored)
    assert not keys.matches(b"another", key, stored)


async def test_a_key_that_was_good_makes_no_other_of_its_id_good() -> None:
    """A key that comes again is known by a proof in memory and not by its digest."""
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book)
    for _ in range(2):
        assert (await doorman.authenticate(bearer(key))).tenant.id == "acme"
    body = key[:18] + keys.mint().secret[18:38]
    assert await refusal(doorman, body + keys._checksum(body)) == "invalid_api_key"
    assert (await doorman.authenticate(bearer(key))).tenant.id == "acme"


async def test_a_key_is_read_once_for_many_requests_at_once() -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book)
    principals = await asyncio.gather(*(doorman.authenticate(bearer(key)) for _ in range(50)))
    assert {principal.tenant.id for principal in principals} == {"acme"}
    assert book.num_reads == 1


async def test_a_key_that_nobody_has_is_remembered_too() -> None:
    book = KeyBook()
    doorman, unknown = authenticator(book), keys.mint().secret
    assert [await refusal(doorman, unknown) for _ in range(3)] == ["invalid_api_key"] * 3
    assert book.num_reads == 1


async def test_a_revoked_key_is_refused_within_the_caches_time() -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book, key_cache_s=0.2)
    await doorman.authenticate(bearer(key))
    revoke(book, key)
    began_s = time.monotonic()
    while time.monotonic() - began_s < 5:  # in use all the time: renewal in the background must not stretch it
        try:
            await doorman.authenticate(bearer(key))
        except ApiError as error:
            assert error.kind.code == "invalid_api_key"
            break
        await asyncio.sleep(0.005)
    assert time.monotonic() - began_s < 2


async def test_a_key_in_use_is_renewed_without_its_requests_waiting() -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book)
    await doorman.authenticate(bearer(key))
    (entry,) = doorman._entries.values()
    entry.read_at_s -= 40  # of the 60 for which it is trusted
    table_answers, find_key = threading.Event(), book.find_key
    doorman._lookup = lambda key_id: find_key(key_id) if table_answers.wait(10) else None
    for _ in range(3):
        await doorman.authenticate(bearer(key))
    assert book.num_reads == 1
    table_answers.set()
    await asyncio.gather(*doorman._reads.values())
    assert book.num_reads == 2
    (entry,) = doorman._entries.values()
    assert asyncio.get_running_loop().time() - entry.read_at_s < 30


async def test_without_the_table_known_keys_go_on_and_unknown_ones_get_503() -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book, key_cache_s=0.02)
    await doorman.authenticate(bearer(key))
    book.error = DOWN
    for _ in range(10):
        await asyncio.sleep(0.01)
        assert (await doorman.authenticate(bearer(key))).tenant.id == "acme"
    assert await refusal(doorman, book.add(Tenant("new"))) == "auth_unavailable"


async def test_without_the_table_a_revoked_key_stays_revoked() -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book, key_cache_s=0.02)
    revoke(book, key)
    assert await refusal(doorman, key) == "invalid_api_key"
    book.error = DOWN
    await asyncio.sleep(0.05)
    assert await refusal(doorman, key) == "invalid_api_key"


async def test_a_known_key_is_trusted_for_a_day_and_no_longer(monkeypatch: Any) -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book, key_cache_s=0.01)
    await doorman.authenticate(bearer(key))
    book.error = DOWN
    monkeypatch.setattr(auth, "TRUST_WITHOUT_TABLE_S", 0.1)
    monkeypatch.setattr(auth, "RETRY_TABLE_S", 0.01)
    await asyncio.sleep(0.15)
    assert await refusal(doorman, key) == "auth_unavailable"


async def test_the_table_is_asked_again_when_it_is_back(monkeypatch: Any) -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book, key_cache_s=0.01)
    monkeypatch.setattr(auth, "RETRY_TABLE_S", 0.05)
    await doorman.authenticate(bearer(key))
    book.error = DOWN
    await asyncio.sleep(0.02)
    await doorman.authenticate(bearer(key))
    book.error = None
    revoke(book, key)
    async with asyncio.timeout(2):
        while await is_let_in(doorman, key):
            await asyncio.sleep(0.01)


async def is_let_in(doorman: Authenticator, key: str) -> bool:
    try:
        principal: Principal = await doorman.authenticate(bearer(key))
    except ApiError:
        return False
    return principal.tenant.id == "acme"


async def test_a_flood_of_unknown_keys_holds_up_neither_known_ones_nor_memory(monkeypatch: Any) -> None:
    monkeypatch.setattr(auth, "MAX_LOOKUPS", 20)
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book)
    await doorman.authenticate(bearer(key))
    table_answers, find_key = threading.Event(), book.find_key
    known = keys.parse(key)
    assert known is not None
    doorman._lookup = lambda key_id: find_key(key_id) if key_id == known.key_id or table_answers.wait(10) else None
    flood = [asyncio.create_task(refusal(doorman, keys.mint().secret)) for _ in range(50)]
    await asyncio.sleep(0.05)
    doorman._entries[known.key_id].read_at_s -= 100
    assert (await doorman.authenticate(bearer(key))).tenant.id == "acme"
    table_answers.set()
    codes = await asyncio.gather(*flood)
    assert sorted(set(codes)) == ["auth_unavailable", "invalid_api_key"]
    assert codes.count("invalid_api_key") == 20


async def test_what_is_remembered_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(auth, "MAX_UNKNOWN_KEYS", 10)
    monkeypatch.setattr(auth, "MAX_CACHED_KEYS", 5)
    book = KeyBook()
    doorman = authenticator(book)
    await asyncio.gather(*(refusal(doorman, keys.mint().secret) for _ in range(18)))
    for _ in range(8):
        await doorman.authenticate(bearer(book.add(Tenant("acme"))))
    assert (len(doorman._unknown), len(doorman._entries)) == (10, 5)


async def test_guesses_wait_for_their_answers_and_an_honest_client_waits_for_none_of_them(monkeypatch: Any) -> None:
    """Whoever is locked out for the guesses of another behind the same address is who the guesser wanted to lock out."""
    monkeypatch.setattr(auth, "MAX_HELD", 30)
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book)
    began_s = time.monotonic()
    guesses = [asyncio.create_task(refusal(doorman, keys.mint().secret)) for _ in range(200)]
    while book.num_reads < 200 or doorman._num_held < 30:
        await asyncio.sleep(0.01)
    asked_s = time.monotonic()
    assert (await doorman.authenticate(bearer(key))).tenant.id == "acme", "though this worker had never seen its key"
    assert time.monotonic() - asked_s < 0.5
    assert doorman._num_held == 30, "more would be memory: they are answered at once"
    assert set(await asyncio.gather(*guesses)) == {"invalid_api_key"}
    assert time.monotonic() - began_s >= 0.5
    assert doorman._num_held == 0


async def test_guesses_push_no_customers_key_out(monkeypatch: Any) -> None:
    monkeypatch.setattr(auth, "MAX_UNKNOWN_KEYS", 3)
    monkeypatch.setattr(auth, "MAX_CACHED_KEYS", 3)
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book)
    await doorman.authenticate(bearer(key))
    await asyncio.gather(*(refusal(doorman, keys.mint().secret) for _ in range(10)))
    book.error = DOWN
    assert (await doorman.authenticate(bearer(key))).tenant.id == "acme"


async def test_a_key_expires_at_its_moment_and_not_when_the_table_is_read_again() -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme")), authenticator(book)
    change(book, key, expires_at_ms=time.time_ns() // 1_000_000 + 300)
    await doorman.authenticate(bearer(key))
    await asyncio.sleep(0.35)
    assert await refusal(doorman, key) == "invalid_api_key"
    assert book.num_reads == 1


@pytest.mark.parametrize(
    ("tenants", "keys_", "allowed"),
    [
        (None, None, {"small", "large"}),
        (None, ("small",), {"small"}),
        (("small",), ("small", "large"), {"small"}),
        (("large",), ("small",), set()),
        (("large",), None, {"large"}),
    ],
)
async def test_a_key_may_use_what_both_it_and_its_tenant_may(tenants: Any, keys_: Any, allowed: set[str]) -> None:
    book = KeyBook()
    key, doorman = book.add(Tenant("acme", models=tenants)), authenticator(book)
    change(book, key, models=keys_, requests_per_min=25)
    principal = await doorman.authenticate(bearer(key))
    assert {name for name in ("small", "large") if principal.tenant.may_use(name)} == allowed
    assert [account.limits.requests_per_min for account in principal.accounts] == [25]
