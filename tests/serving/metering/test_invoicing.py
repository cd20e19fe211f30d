"""An invoice says what the rows say, on either side of a change of price, and an issued one is never written again."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from policies.billing.tariffs import Rate
from serving.errors import UserError
from serving.metering import invoice_text
from serving.metering.books import Books
from serving.metering.events import CountSource
from serving.metering.invoicing import invoice_of, issued_invoices
from serving.metering.ledger import put_rows
from serving.metering.report import parse_month
from serving.metering.rerating import rerate
from serving.metering.rows import row_of

pytestmark = pytest.mark.emulated_aws
HOUR_MS = 3_600_000
BEGIN_MS, END_MS = parse_month("2025-11")
MIDDLE_MS = BEGIN_MS + 15 * 24 * HOUR_MS
CLOSED_MS = END_MS + 7 * HOUR_MS


@pytest.fixture
def books(aws: Any) -> Books:
    return Books(aws.s3, aws.dynamodb, aws.bucket, aws.table)


def use(books: Books, records: Any, opened_at_ms: int, output_tokens: int = 10, **changes: Any) -> None:
    row = row_of(records.close(records.open(opened_at_ms=opened_at_ms, **changes), output_tokens))
    put_rows(books.dynamodb, books.table, [row])


def test_a_price_change_in_the_middle_of_a_month_is_a_line_on_either_side(books: Books, records: Any) -> None:
    """3 x 10 output tokens at 0.40 and 2 x 10 at 0.36 dollars a million; the prompt's 100 tokens each at 0.10."""
    for place in range(3):
        use(books, records, BEGIN_MS + place)
    for place in range(2):
        use(books, records, MIDDLE_MS + place, price_version="2025-11b", output_micro_usd_per_mtok=360_000)
    made = invoice_of(books, "acme", "2025-11", CLOSED_MS)
    lines = [(line.key.kind, line.key.price_version, line.tokens, line.amount_micro_usd) for line in made.lines]
    assert lines == [
        ("input", "2025-11", 300, 30),
        ("output", "2025-11", 30, 12),
        ("input", "2025-11b", 200, 20),
        ("output", "2025-11b", 20, 7),  # 7.2
    ]
    assert (made.total_micro_usd, made.num_requests, made.number) == (69, 5, 0)


def test_an_issued_invoice_stands_and_what_came_late_is_noted_on_the_next(books: Books, records: Any) -> None:
    use(books, records, BEGIN_MS)
    first = invoice_of(books, "acme", "2025-11", CLOSED_MS, issues=True)
    use(books, records, END_MS - 1, output_tokens=1000)
    assert invoice_of(books, "acme", "2025-11", CLOSED_MS + HOUR_MS) == first
    rerate(books, "acme", BEGIN_MS, BEGIN_MS + 1, lambda row: Rate("gift", 0, 0, 0), reason="ticket 7", now_ms=CLOSED_MS)
    use(books, records, END_MS + 1)
    later_ms = parse_month("2025-12")[1] + 7 * HOUR_MS
    second = invoice_of(books, "acme", "2025-12", later_ms, issues=True)
    notes = [(line.key.month, line.note, line.key.kind, line.amount_micro_usd) for line in second.lines if line.note]
    assert notes == [
        ("2025-11", "debit", "input", 10),
        ("2025-11", "debit", "output", 400),
        ("2025-11", "credit", "revision", -14),
    ]
    assert (first.number, second.number) == (1, 2)
    assert issued_invoices(books, "acme") == [first, second]
    assert first.total_micro_usd + second.total_micro_usd == 14 + 410 - 14 + 14
    third = invoice_of(books, "acme", "2026-01", later_ms)
    assert third.lines == ()


def test_a_month_cannot_be_invoiced_before_what_may_still_come_has_come(books: Books) -> None:
    with pytest.raises(UserError, match="2025-11 cannot be invoiced before 6 hours after its end"):
        invoice_of(books, "acme", "2025-11", END_MS + HOUR_MS, issues=True)


def test_csv_and_html_say_what_the_invoice_says(books: Books, records: Any) -> None:
    use(books, records, BEGIN_MS, output_tokens=3_000_000, adapter="<b>&", is_batch=True)
    made = invoice_of(books, "acme", "2025-11", CLOSED_MS, issues=True)
    rows = list(csv.DictReader(io.StringIO(invoice_text.to_csv(made))))
    assert rows[1] == {
        "month": "2025-11",
        "what": "small with <b>&, output tokens in batches",
        "tariff": "2025-11",
        "tokens": "3000000",
        "USD per million": "0.400000",
        "amount USD": "1.200000",
    }
    assert rows[-1]["amount USD"] == "1.200010"
    page = invoice_text.to_html(made)
    assert "<title>Invoice acme-000001</title>" in page
    assert "small with &lt;b&gt;&amp;, output tokens in batches" in page
    assert "$1.200010" in page


@pytest.mark.parametrize("source", [CountSource.COUNTED, CountSource.GATEWAY], ids=["now", "as older gateways said it"])
def test_an_invoice_says_which_requests_no_engine_counted(books: Books, records: Any, source: CountSource) -> None:
    use(books, records, BEGIN_MS)
    assert invoice_text.counted_note(invoice_of(books, "acme", "2025-11", CLOSED_MS)) == ""
    put_rows(books.dynamodb, books.table, [row_of(records.close(records.open(opened_at_ms=BEGIN_MS + 1), source=source))])
    made = invoice_of(books, "acme", "2025-11", CLOSED_MS)
    assert (made.num_requests, made.num_counted) == (2, 1)
    assert "Of the requests, 1: their engine sent no usable counts" in invoice_text.to_html(made)
