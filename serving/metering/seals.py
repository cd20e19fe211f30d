"""Sealing a tenant's day: from then on no row of it can be changed, dropped or slipped in without it being noticed.

A day is sealed no sooner than `SEAL_AFTER_H` hours after its end (UTC): by then what its gateways closed has long been shipped.
Seal 1 lists every row of the day, sorted by key, with its digest; its head is a hash chain over them:

    h(0) = SHA-256("flotilla ledger" 0 tenant "#" day)        h(i) = SHA-256(h(i-1) digest(i))

Rows come in any order and are chained in one, so whoever seals the same rows gets the same head. A row that comes later (a
gateway's volume that returned, a price rated anew) is never put in between: seal 2 lists the late ones, again sorted, and goes on
from the head of seal 1; and so on. Seals are conditional puts, so of two that seal at once one is refused and looks again.

Shippers of the home region do it (`seal_due`): once a day, from `SEAL_AFTER_H` after midnight on, for the last `SEAL_DAYS` days.
Whoever is done with it first leaves a marker, `sealed/v1/<newest day>.json`, and the others have nothing to do; one that dies
before that has done no harm. While the home region is lost nothing is sealed; on its return the next pass seals what was missed.
What comes later than `SEAL_DAYS` is sealed by `flotilla ledger seal --since`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec

from serving.metering.books import Books
from serving.metering.ledger import NUM_CONNECTIONS, read_day
from serving.metering.rows import LedgerRow

SEAL_AFTER_H = 6.0
PREFIX = "seals/v1/"
DONE = "sealed/v1/"
SEAL_DAYS = 7
"""A volume that returns within a week has its late rows sealed by itself."""


class Leaf(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One row under a seal."""

    sk: str
    digest: bytes
    """SHA-256 of the row's canonical bytes."""


class Seal(msgspec.Struct, frozen=True):
    """What was sealed at once."""

    tenant: str
    day: str
    number: int
    """Counts a day's seals from 1."""
    leaves: tuple[Leaf, ...]
    """The rows that no earlier seal has, sorted."""
    head: str
    """End of the chain over all seals up to this one, hex."""
    cost_pico_usd: int
    """Sum of this seal's rows."""
    sealed_at_ms: int

    @property
    def key(self) -> str:
        """Where the archive has it."""
        return f"{PREFIX}{self.tenant}/{self.day}/{self.number:04d}.seal"


def digest_of(row: LedgerRow) -> bytes:
    """SHA-256 of the row's canonical bytes."""
    return hashlib.sha256(row.canonical()).digest()


def genesis(tenant: str, day: str) -> str:
    """The head before any row."""
    return hashlib.sha256(f"flotilla ledger\0{tenant}#{day}".encode()).hexdigest()


def chain(head: str, leaves: Iterable[Leaf]) -> str:
    """The head after `leaves`, which are taken in order of their keys."""
    state = bytes.fromhex(head)
    for leaf in sorted(leaves):
        state = hashlib.sha256(state + leaf.digest).digest()
    return state.hex()


def may_be_sealed(day: str, now_ms: int) -> bool:
    """The day is over, and late enough."""
    end = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=1, hours=SEAL_AFTER_H)
    return now_ms >= end.timestamp() * 1000


def next_seal(tenant: str, day: str, rows: Iterable[LedgerRow], before: Sequence[Seal], now_ms: int) -> Seal | None:
    """The seal over those `rows` that the day's seals so far, `before`, do not have; None where they have all."""
    sealed = {leaf.sk for seal in before for leaf in seal.leaves}
    late = [row for row in rows if row.key.sk not in sealed]
    if not late:
        return None
    leaves = tuple(sorted(Leaf(row.key.sk, digest_of(row)) for row in late))
    head = chain(before[-1].head if before else genesis(tenant, day), leaves)
    return Seal(tenant, day, len(before) + 1, leaves, head, sum(row.cost_pico_usd for row in late), now_ms)


def read_seals(books: Books, tenant: str, days: Sequence[str]) -> dict[str, list[Seal]]:
    """The seals of each of `days` that has any, in order."""
    wanted = set(days)
    prefix = f"{PREFIX}{tenant}/" + (f"{days[0]}/" if len(days) == 1 else "")
    keys = [key for key in books.keys(prefix) if _day_of(key) in wanted]
    found: defaultdict[str, list[Seal]] = defaultdict(list)
    with ThreadPoolExecutor(NUM_CONNECTIONS, "seals") as pool:
        for key, data in zip(keys, pool.map(books.get, keys), strict=True):
            found[_day_of(key)].append(msgspec.msgpack.decode(data, type=Seal))
    return dict(found)


def _day_of(key: str) -> str:
    return key.removeprefix(PREFIX).split("/")[1]


def seal_day(books: Books, tenant: str, day: str, now_ms: int) -> Seal | None:
    """Seal what is not sealed of the day, and give the new seal; None where nothing was left or it is too early."""
    if not may_be_sealed(day, now_ms):
        return None
    for _ in itertools.count():  # ends: each refusal means that another has sealed something
        before = read_seals(books, tenant, [day]).get(day, [])
        seal = next_seal(tenant, day, read_day(books.dynamodb, books.table, tenant, day), before, now_ms)
        if seal is None or books.put_once(seal.key, msgspec.msgpack.encode(seal)):
            return seal
    raise AssertionError


def seal_due(books: Books, tenants: Callable[[], Iterable[str]], now_ms: int) -> list[Seal] | None:
    """The seals that the day's pass put, those of `tenants` and the last `SEAL_DAYS` days; None where somebody has made the pass.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: table or archive did not answer; what was sealed stays, and the next look
            goes on.
    """
    newest = datetime.fromtimestamp(now_ms / 1000, UTC) - timedelta(days=1, hours=SEAL_AFTER_H)
    days = [f"{newest - timedelta(days=back):%Y-%m-%d}" for back in reversed(range(SEAL_DAYS))]
    marker = f"{DONE}{days[-1]}.json"
    if books.keys(marker):
        return None
    made = [seal for tenant in tenants() for day in days if (seal := seal_day(books, tenant, day, now_ms)) is not None]
    books.put_once(marker, msgspec.json.encode({"sealed_at_ms": now_ms, "num_seals": len(made)}))
    return made
