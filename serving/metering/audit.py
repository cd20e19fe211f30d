"""Whether the ledger says what happened: every row against its own arithmetic, its day's seal, and the journals in the archive.

Each look finds what the others cannot. Arithmetic needs nothing else. A seal notices a change that somebody made to a row, to its
cost, and to the journal alike. The archive says what a row should have been, and which rows nobody's journal knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from serving.metering.books import Books
from serving.metering.ledger import read_rows
from serving.metering.rows import LedgerRow, RowKey, ledger_hash, rows_of, utc_day, utc_days
from serving.metering.seals import Seal, chain, digest_of, genesis, read_seals


class Fault(StrEnum):
    """What is wrong with a row, or with a day's seals."""

    WRONG_COST = "wrong_cost"
    """Its cost is not its tokens at its prices."""
    CHANGED = "changed"
    """It is not what was sealed."""
    REMOVED = "removed"
    """It was sealed and is gone."""
    DIFFERS = "differs"
    """It is not what the journal says."""
    MISSING = "missing"
    """The journal has it, the ledger has not: a shipper is behind, or it was taken away."""
    UNKNOWN = "unknown"
    """No journal has it."""
    BROKEN_CHAIN = "broken_chain"
    """A seal does not follow from its rows and the seal before: the seal itself was changed."""


@dataclass(frozen=True, order=True)
class Finding:
    """One fault."""

    key: RowKey
    """Of a broken chain the sort key is empty."""
    fault: Fault
    detail: str


@dataclass(frozen=True)
class Audit:
    """What was looked at, and what was found."""

    num_rows: int
    num_sealed: int
    num_journalled: int | None
    """Rows that the archive has; None where it was not asked."""
    ledger_hash: str
    findings: tuple[Finding, ...]


def audit(books: Books, tenants: Sequence[str], from_ms: int, to_ms: int, *, asks_archive: bool = True) -> Audit:
    """Look at the rows of `tenants` whose events were opened in [from_ms, to_ms), whole UTC days.

    Raises:
        UnreadableSegment: the archive is damaged.
        botocore.exceptions.BotoCoreError, ClientError: table or archive did not answer.
    """
    rows = list(read_rows(books.dynamodb, books.table, tenants, from_ms, to_ms))
    findings = wrong_costs(rows)
    by_day: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        by_day[row.key.pk].append(row)
    num_sealed = 0
    for tenant in tenants:
        for day, seals in read_seals(books, tenant, utc_days(from_ms, to_ms)).items():
            num_sealed += sum(len(seal.leaves) for seal in seals)
            findings += against_seals(f"{tenant}#{day}", by_day[f"{tenant}#{day}"], seals)
    journalled: dict[RowKey, set[bytes]] | None = None
    if asks_archive:
        known: defaultdict[RowKey, dict[bytes, LedgerRow]] = defaultdict(dict)
        wanted = set(tenants)
        for _, segment in books.segments(from_day=utc_day(from_ms)):
            for row in rows_of(segment):
                if row.tenant in wanted and from_ms <= row.opened_at_ms < to_ms:
                    known[row.key][digest_of(row)] = row
        findings += against_archive(rows, known)
        journalled = {key: set(versions) for key, versions in known.items()}
    return Audit(
        len(rows), num_sealed, None if journalled is None else len(journalled), ledger_hash(rows), tuple(sorted(findings))
    )


def wrong_costs(rows: Iterable[LedgerRow]) -> list[Finding]:
    """Rows whose cost is not their tokens at their prices. A revision's cost is a difference: the event's tokens at its prices,
    less the same at the prices before."""
    findings = []
    events: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        events[row.event_id].append(row)
    for members in events.values():
        members.sort(key=lambda row: row.revision)
        event = members[0]
        if event.revision:
            continue  # its event is missing, which is told elsewhere
        before = 0
        for row in members:
            now = row.cost_of(event)
            if row.cost_pico_usd != now - before:
                detail = f"cost_pico_usd is {row.cost_pico_usd}, its tokens at its prices make {now - before}"
                findings.append(Finding(row.key, Fault.WRONG_COST, detail))
            before = now
    return findings


def against_seals(partition: str, rows: Iterable[LedgerRow], seals: Sequence[Seal]) -> list[Finding]:
    """What differs between a day's rows and its seals. Rows that no seal has are late, which is no fault."""
    tenant, _, day = partition.partition("#")
    present = {row.key.sk: row for row in rows}
    findings, head = [], genesis(tenant, day)
    for number, seal in enumerate(seals, 1):
        head = chain(head, seal.leaves)
        if seal.head != head or seal.number != number:
            findings.append(
                Finding(RowKey(partition, ""), Fault.BROKEN_CHAIN, f"seal {seal.number} does not follow from its rows")
            )
            head = seal.head
        for leaf in seal.leaves:
            row = present.get(leaf.sk)
            if row is None:
                findings.append(Finding(RowKey(partition, leaf.sk), Fault.REMOVED, f"seal {number} has it, the ledger has not"))
            elif digest_of(row) != leaf.digest:
                findings.append(Finding(row.key, Fault.CHANGED, f"it is not the row that seal {number} was put on"))
    return findings


def against_archive(rows: Iterable[LedgerRow], known: Mapping[RowKey, Mapping[bytes, LedgerRow]]) -> list[Finding]:
    """What differs between rows and journals; `known` has what the journals say of each key, by digest."""
    findings, seen = [], set()
    for row in rows:
        seen.add(row.key)
        versions = known.get(row.key)
        if not versions:
            findings.append(Finding(row.key, Fault.UNKNOWN, "no segment of the archive has it"))
        elif digest_of(row) not in versions:
            findings.append(Finding(row.key, Fault.DIFFERS, _difference(row, next(iter(versions.values())))))
    findings += [Finding(key, Fault.MISSING, "the archive has it, the ledger has not") for key in known.keys() - seen]
    return findings


def _difference(row: LedgerRow, journal: LedgerRow) -> str:
    ours, its = msgspec.structs.asdict(row), msgspec.structs.asdict(journal)
    parts = [f"{name} is {value!r}, the journal says {its[name]!r}" for name, value in ours.items() if value != its[name]]
    return "; ".join(parts)
