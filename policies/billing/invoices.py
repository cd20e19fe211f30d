"""What stands on an invoice: a line for each price of each kind of token, and notes on months that were invoiced already.

Rows of the ledger are exact to the pico-dollar. They are summed by line, and each line's sum is rounded once, half to even, to
the micro-dollar; a total is the sum of its lines and of nothing else. A price that changed in the middle of a month has a line on
either side of the change, since the version of the tariff is part of what makes a line.

An invoice that was issued never changes. What its month turns out to have been later (a late event, a price rated anew) is a
note on the next: for each line of a closed month, what it is now less what all invoices so far have said of it. So however late
an event comes and however often it is looked at, the invoices of a tenant add up to its rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PICO_PER_MICRO = 10**6

Kind = Literal["input", "cached input", "output", "revision"]


@dataclass(frozen=True, order=True)
class LineKey:
    """What makes a line of its own."""

    month: str
    """In which the requests were opened, `2026-11`."""
    model: str
    adapter: str
    is_batch: bool
    price_version: str
    kind: Kind
    micro_usd_per_mtok: int
    """0 for revisions, which are differences."""
    reason: str = ""
    """Of revisions."""


@dataclass(frozen=True)
class Sum:
    """What a line adds up to."""

    tokens: int
    cost_pico_usd: int


@dataclass(frozen=True)
class Line:
    """A line of an invoice."""

    key: LineKey
    tokens: int
    amount_micro_usd: int
    note: Literal["", "debit", "credit"] = ""
    """A note is on a month that was invoiced before."""


@dataclass(frozen=True)
class Invoice:
    """An invoice, or the draft of one (`number` 0)."""

    tenant: str
    month: str
    number: int
    """Counts the tenant's invoices from 1."""
    lines: tuple[Line, ...]
    total_micro_usd: int
    """Sum of the lines."""
    num_requests: int
    """Opened in the month."""
    made_at_ms: int
    num_counted: int = 0
    """Of the requests: those whose tokens the gateway counted itself, since their engine sent no counts that could be."""


def sums_of(charges: Iterable[tuple[LineKey, Sum]]) -> dict[LineKey, Sum]:
    """Charges by line, whatever order they come in; lines without tokens and money are left out."""
    tokens: defaultdict[LineKey, int] = defaultdict(int)
    costs: defaultdict[LineKey, int] = defaultdict(int)
    for key, its in charges:
        tokens[key] += its.tokens
        costs[key] += its.cost_pico_usd
    return {key: Sum(tokens[key], costs[key]) for key in sorted(tokens) if tokens[key] or costs[key]}


def round_to_micro(pico_usd: int) -> int:
    """Micro-dollars, half to even: 500,000 gives 0, 1,500,000 gives 2, -500,001 gives -1."""
    whole, rest = divmod(pico_usd, PICO_PER_MICRO)
    is_up = 2 * rest > PICO_PER_MICRO or (2 * rest == PICO_PER_MICRO and whole % 2)
    return whole + bool(is_up)


def draft(
    tenant: str,
    month: str,
    *,
    sums: Mapping[LineKey, Sum],
    closed: Mapping[str, Mapping[LineKey, Sum]],
    issued: Sequence[Invoice],
    num_requests: int,
    made_at_ms: int,
    num_counted: int = 0,
) -> Invoice:
    """The invoice of `month` from its `sums`, with notes on what `closed` months are now; `issued` are all invoices so far."""
    lines = [Line(key, its.tokens, round_to_micro(its.cost_pico_usd)) for key, its in sums.items()]
    lines += _notes(closed, issued)
    total = sum(line.amount_micro_usd for line in lines)
    return Invoice(tenant, month, 0, tuple(lines), total, num_requests, made_at_ms, num_counted)


def _notes(closed: Mapping[str, Mapping[LineKey, Sum]], issued: Sequence[Invoice]) -> list[Line]:
    """A note for each line of a closed month that is not what the invoices so far have said."""
    tokens: defaultdict[LineKey, int] = defaultdict(int)
    amounts: defaultdict[LineKey, int] = defaultdict(int)
    for line in (line for invoice in issued for line in invoice.lines):
        if line.key.month in closed:
            tokens[line.key] += line.tokens
            amounts[line.key] += line.amount_micro_usd
    present = {key: its for sums in closed.values() for key, its in sums.items()}
    notes = []
    for key in sorted({*present, *tokens}):
        now = present.get(key, Sum(0, 0))
        more_tokens, more = now.tokens - tokens[key], round_to_micro(now.cost_pico_usd) - amounts[key]
        if more_tokens or more:
            notes.append(Line(key, more_tokens, more, "debit" if more >= 0 else "credit"))
    return notes
