"""The ledger, restored from its archive into an empty table, and proved to be the ledger.

The archive is what cannot be lost: locked segments, in every region. Rows follow from them by the path that ships them, so a
restore is a rebuild. Proof: the rows have the hash of the live table's; each is what its day's seal says; each costs what its
tokens at its prices make. Where the live table is gone, or is the empty one that is restored into, seals and arithmetic stand
alone.

A live table grows while this reads. It is read first, so all of it must come from the archive; what the archive has beyond it is
on its way, or was lost there, and is counted.
"""

from __future__ import annotations

import time
from collections import defaultdict

from infra.drills.figures import Part
from serving.errors import UserError
from serving.metering.audit import Finding, against_seals, wrong_costs
from serving.metering.books import Books
from serving.metering.ledger import PutResult
from serving.metering.rebuilding import read_all, rebuild
from serving.metering.rows import LedgerRow, ledger_hash, rows_of, utc_day
from serving.metering.seals import PREFIX as SEALS
from serving.metering.seals import read_seals

NUM_NAMED = 5


def restore_ledger(books: Books, table: str, *, dry_run: bool) -> Part:
    """Rebuilds into `table` and proves it. `dry_run` reads the archive, writes nothing, and proves the same of its rows.

    Raises:
        UserError: the table has rows already, or a segment of the archive is damaged.
        botocore.exceptions.BotoCoreError, ClientError: table or archive did not answer; run it again, into the same table if it
            is still empty.
    """
    began_s = time.monotonic()
    is_there = _exists(books, table)
    if is_there and books.dynamodb.scan(TableName=table, Limit=1)["Items"]:
        raise UserError(f"table {table} has rows already", "name an empty table, or one that is not there: --to TABLE")
    is_live = table != books.table and _exists(books, books.table)
    live = {row.key: row for row in read_all(books, books.table)} if is_live else {}
    num_conflicts = 0
    if dry_run:
        restored = {row.key: row for _, segment in books.segments() for row in rows_of(segment)}
    else:
        num_conflicts = rebuild(books, table)[PutResult.CONFLICT]
        restored = {row.key: row for row in read_all(books, table)}
    took_s = time.monotonic() - began_s
    part = Part("ledger")
    part.show("rows from the archive", "num_rows", len(restored))
    part.show("segments that say two things of a row (0)", "num_conflicts", num_conflicts, num_conflicts == 0)
    if is_live:
        common = [row for key, row in restored.items() if key in live]
        expected, found = ledger_hash(live.values()), ledger_hash(common)
        missing = sorted(f"{key.pk} {key.sk}" for key in live.keys() - restored.keys())
        part.show("rows of the live ledger", "num_live_rows", len(live))
        part.show("its hash", "live_hash", expected)
        part.show("hash of the same rows, restored", "restored_hash", found, found == expected)
        part.show("live rows that the archive lacks (0)", "num_missing", len(missing), not missing)
        part.show("  such as", "missing", missing[:NUM_NAMED])
        part.show("rows beyond it: on their way, or lost there", "num_beyond", len(restored) - len(common))
    else:
        part.show("hash", "restored_hash", ledger_hash(restored.values()))
    findings = _against_seals(books, list(restored.values())) + wrong_costs(restored.values())
    part.show("rows that are not what was sealed, or cost otherwise than they say (0)", "num_faults", len(findings), not findings)
    named = [f"{its.key.pk} {its.key.sk}: {its.fault}: {its.detail}" for its in findings[:NUM_NAMED]]
    part.show("  such as", "faults", named)
    part.show("restored and read back, s", "took_s", round(took_s, 2))
    return part


def _against_seals(books: Books, rows: list[LedgerRow]) -> list[Finding]:
    by_day: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    days: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        by_day[row.key.pk].append(row)
        days[row.tenant].add(utc_day(row.opened_at_ms))
    for key in books.keys(SEALS):  # a day whose rows are all gone has seals alone
        if key.endswith(".seal"):
            tenant, day, _ = key.removeprefix(SEALS).split("/")
            days[tenant].add(day)
    findings: list[Finding] = []
    for tenant, its in days.items():
        for day, seals in read_seals(books, tenant, sorted(its)).items():
            findings += against_seals(f"{tenant}#{day}", by_day[f"{tenant}#{day}"], seals)
    return findings


def _exists(books: Books, table: str) -> bool:
    try:
        books.dynamodb.describe_table(TableName=table)
    except books.dynamodb.exceptions.ResourceNotFoundException:
        return False
    return True
