"""Invoices from the books: drafts are computed, issued ones are read.

An issued invoice is an object of the archive, under the tenant's next number, by conditional put: of two who issue at once one is
refused and looks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import msgspec

from policies.billing.invoices import Invoice, LineKey, Sum, draft, sums_of
from serving.errors import UserError
from serving.metering.books import Books
from serving.metering.ledger import read_rows
from serving.metering.report import parse_month
from serving.metering.rows import LedgerRow
from serving.metering.seals import SEAL_AFTER_H

PREFIX = "invoices/v1/"
MAX_NOTED_MONTHS = 12
"""Closed months that an invoice still looks at, newest first."""


def issued_invoices(books: Books, tenant: str) -> list[Invoice]:
    """The tenant's issued invoices, by number."""
    return [msgspec.json.decode(books.get(key), type=Invoice) for key in books.keys(f"{PREFIX}{tenant}/")]


def invoice_of(books: Books, tenant: str, month: str, now_ms: int, *, issues: bool = False) -> Invoice:
    """The invoice of `month`: as it was issued, or else a draft of what it is now, which `issues` makes final.

    Raises:
        UserError: it is no month, or shall be issued before its end and what may still arrive of it.
        botocore.exceptions.BotoCoreError, ClientError: table or archive did not answer.
    """
    _, to_ms = parse_month(month)
    if issues and now_ms < to_ms + SEAL_AFTER_H * 3_600_000:
        raise UserError(f"{month} cannot be invoiced before {SEAL_AFTER_H:.0f} hours after its end", "leave out --issue: a draft")
    while True:
        issued = issued_invoices(books, tenant)
        for known in issued:
            if known.month == month:
                return known
        rows = list(_month(books, tenant, month))
        made = draft(
            tenant,
            month,
            sums=sums_of(charges_of(rows)),
            closed={its: sums_of(charges_of(_month(books, tenant, its))) for its in _noted(issued)},
            issued=issued,
            num_requests=sum(not row.revision for row in rows),
            made_at_ms=now_ms,
            num_counted=sum(row.is_counted for row in rows),
        )
        if not issues:
            return made
        made = replace(made, number=len(issued) + 1)
        if books.put_once(f"{PREFIX}{tenant}/{made.number:06d}.json", msgspec.json.encode(made)):
            return made


def charges_of(rows: Iterable[LedgerRow]) -> Iterator[tuple[LineKey, Sum]]:
    """What each row adds to which lines: one for each kind of token, or the difference of a revision."""
    for row in rows:
        month = f"{datetime.fromtimestamp(row.opened_at_ms // 1000, UTC):%Y-%m}"
        common = (month, row.model, row.adapter, row.is_batch, row.price_version)
        if row.revision:
            yield LineKey(*common, "revision", 0, row.reason), Sum(0, row.cost_pico_usd)
            continue
        uncached = row.prompt_tokens - row.cached_tokens
        price = row.input_micro_usd_per_mtok
        yield LineKey(*common, "input", price), Sum(uncached, uncached * price)
        price = row.cached_input_micro_usd_per_mtok
        yield LineKey(*common, "cached input", price), Sum(row.cached_tokens, row.cached_tokens * price)
        price = row.output_micro_usd_per_mtok
        yield LineKey(*common, "output", price), Sum(row.output_tokens, row.output_tokens * price)


def _noted(issued: Iterable[Invoice]) -> list[str]:
    """Closed months that are looked at again."""
    return sorted({its.month for its in issued})[-MAX_NOTED_MONTHS:]


def _month(books: Books, tenant: str, month: str) -> Iterator[LedgerRow]:
    return read_rows(books.dynamodb, books.table, [tenant], *parse_month(month))
