"""An invoice as text: rows of a table, CSV, and a page of HTML that a person would send. No I/O."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator
from datetime import UTC, datetime

from policies.billing.invoices import Invoice, Line

COLUMNS = ("month", "what", "tariff", "tokens", "USD per million", "amount USD")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 3rem auto; padding: 0 1.5rem }
h1 { font-weight: 600; margin-bottom: 0 } p { color: #555; margin-top: .3rem }
table { border-collapse: collapse; width: 100%; margin-top: 2rem }
th, td { text-align: left; padding: .45rem .6rem; border-bottom: 1px solid #ddd }
.n { text-align: right; font-variant-numeric: tabular-nums } tfoot td { font-weight: 600; border-bottom: 0 }
@media print { body { margin: 0 } }
"""


def format_micro(micro_usd: int) -> str:
    """Dollars with all six digits: `1,234.500000`, `-0.000003`."""
    dollars, fraction = divmod(abs(micro_usd), 10**6)
    return f"{'-' if micro_usd < 0 else ''}{dollars:,}.{fraction:06d}"


def title(invoice: Invoice) -> str:
    """`Invoice acme-000001` or `Draft of an invoice`."""
    return f"Invoice {invoice.tenant}-{invoice.number:06d}" if invoice.number else "Draft of an invoice"


def counted_note(invoice: Invoice) -> str:
    """What must be said of requests that no engine counted; empty where there are none."""
    if not invoice.num_counted:
        return ""
    how = "their engine sent no usable counts, so the gateway counted their tokens as it passed them on, never too many"
    return f"Of the requests, {invoice.num_counted:,}: {how}."


def cells(line: Line) -> tuple[str, ...]:
    """A line, in the order of COLUMNS."""
    key = line.key
    parts = [f"{line.note} note: " if line.note else "", key.model, f" with {key.adapter}" if key.adapter else ""]
    parts.append(", rated anew: " + key.reason if key.kind == "revision" else f", {key.kind} tokens")
    parts.append(" in batches" if key.is_batch else "")
    price = "" if key.kind == "revision" else format_micro(key.micro_usd_per_mtok)
    tokens = "" if key.kind == "revision" else f"{line.tokens:,}"
    return (key.month, "".join(parts), key.price_version, tokens, price, format_micro(line.amount_micro_usd))


def to_csv(invoice: Invoice) -> str:
    """A row a line, with a header; figures bare, amounts in dollars, the last row is the total."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_bare(line) for line in invoice.lines)
    writer.writerow([invoice.month, "total", "", "", "", _plain(invoice.total_micro_usd)])
    return file.getvalue()


def to_html(invoice: Invoice) -> str:
    """A page that stands alone."""
    made = datetime.fromtimestamp(invoice.made_at_ms // 1000, UTC)
    return "".join(_page(invoice, f"{made:%Y-%m-%d}"))


def _page(invoice: Invoice, made: str) -> Iterator[str]:
    name = html.escape(title(invoice))
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>\n'
    yield f"<h1>{name}</h1>\n<p>For {html.escape(invoice.tenant)}, {invoice.month} (UTC). Made on {made}. "
    yield f"{invoice.num_requests:,} requests.</p>\n<table><thead><tr>"
    yield "".join(f"<th{_numeric(place)}>{html.escape(name)}</th>" for place, name in enumerate(COLUMNS))
    yield "</tr></thead>\n<tbody>\n"
    for line in invoice.lines:
        columns = (f"<td{_numeric(place)}>{html.escape(text)}</td>" for place, text in enumerate(cells(line)))
        yield f"<tr>{''.join(columns)}</tr>\n"
    total = f"${format_micro(invoice.total_micro_usd)}"
    yield f'</tbody>\n<tfoot><tr><td colspan="5">Total</td><td class="n">{total}</td></tr></tfoot></table>'
    yield "\n<p>Each line is rounded once, to the micro-dollar; the total is the sum of the lines."
    yield f" {html.escape(note)}</p>\n</html>\n" if (note := counted_note(invoice)) else "</p>\n</html>\n"


def _bare(line: Line) -> list[str]:
    month, what, version, *_ = cells(line)
    price = "" if line.key.kind == "revision" else _plain(line.key.micro_usd_per_mtok)
    return [month, what, version, str(line.tokens), price, _plain(line.amount_micro_usd)]


def _plain(micro_usd: int) -> str:
    return format_micro(micro_usd).replace(",", "")


def _numeric(place: int) -> str:
    return ' class="n"' if place >= 3 else ""
