"""Invoices add up: lines to their total, and all invoices of a tenant to its rows, however late the rows come."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.billing.invoices import Invoice, LineKey, Sum, draft, round_to_micro, sums_of

MARCH, APRIL, MAY = "2026-03", "2026-04", "2026-05"


def key(month: str = MARCH, version: str = "a", price: int = 100_000) -> LineKey:
    return LineKey(month, "small", "", False, version, "input", price)


def invoice(month: str, sums: dict[LineKey, Sum], closed: dict[LineKey, Sum], issued: list[Invoice]) -> Invoice:
    """`closed` is what the months of `issued` are now."""
    by_month = {its.month: {key: total for key, total in closed.items() if key.month == its.month} for its in issued}
    made = draft("acme", month, sums=sums, closed=by_month, issued=issued, num_requests=1, made_at_ms=0)
    return replace(made, number=len(issued) + 1)


@pytest.mark.parametrize(
    ("pico_usd", "micro_usd"),
    [(0, 0), (500_000, 0), (500_001, 1), (1_500_000, 2), (2_500_000, 2), (-500_000, 0), (-500_001, -1), (-1_500_000, -2)],
)
def test_money_is_rounded_half_to_even(pico_usd: int, micro_usd: int) -> None:
    assert round_to_micro(pico_usd) == micro_usd


def test_a_price_change_in_the_middle_of_a_month_has_a_line_on_either_side() -> None:
    """1,000,003 tokens at 0.10 and 2,000,001 at 0.09 dollars a million: 100,000.3 and 180,000.09 micro-dollars."""
    charges = [(key(), Sum(1_000_003, 1_000_003 * 100_000)), (key(version="b", price=90_000), Sum(2_000_001, 2_000_001 * 90_000))]
    made = invoice(MARCH, sums_of(charges), {}, [])
    assert [(line.key.price_version, line.tokens, line.amount_micro_usd) for line in made.lines] == [
        ("a", 1_000_003, 100_000),
        ("b", 2_000_001, 180_000),
    ]
    assert made.total_micro_usd == 280_000


def test_a_late_event_of_a_closed_month_is_a_debit_note_on_the_next_invoice_once() -> None:
    march = invoice(MARCH, {key(): Sum(10, 10_000_000)}, {}, [])
    late = {key(): Sum(15, 15_000_000)}
    april = invoice(APRIL, {key(APRIL): Sum(1, 1_000_000)}, late, [march])
    assert [(line.key.month, line.note, line.tokens, line.amount_micro_usd) for line in april.lines] == [
        (APRIL, "", 1, 1),
        (MARCH, "debit", 5, 5),
    ]
    may = invoice(MAY, {}, {**late, key(APRIL): Sum(1, 1_000_000)}, [march, april])
    assert may.lines == ()


def test_what_became_cheaper_is_a_credit_note() -> None:
    march = invoice(MARCH, {key(): Sum(10, 10_000_000)}, {}, [])
    revised = LineKey(MARCH, "small", "", False, "b", "revision", 0, "agreed")
    april = invoice(APRIL, {}, {key(): Sum(10, 10_000_000), revised: Sum(0, -4_000_000)}, [march])
    assert [(line.key.reason, line.note, line.amount_micro_usd) for line in april.lines] == [("agreed", "credit", -4)]


charges_of_march = st.lists(
    st.tuples(
        st.sampled_from([key(), key(version="b", price=90_000)]),
        st.builds(Sum, st.integers(0, 10**6), st.integers(-(10**9), 10**12)),
    ),
    max_size=12,
)


@given(charges_of_march, st.integers(0, 12), st.integers(0, 12))
def test_all_invoices_together_are_what_all_rows_are_whenever_each_came(
    charges: list[tuple[LineKey, Sum]], first: int, second: int
) -> None:
    march = invoice(MARCH, sums_of(charges[:first]), {}, [])
    april = invoice(APRIL, {}, sums_of(charges[: max(first, second)]), [march])
    may = invoice(MAY, {}, sums_of(charges), [march, april])
    exact = sums_of(charges)
    assert sum(made.total_micro_usd for made in (march, april, may)) == sum(
        round_to_micro(its.cost_pico_usd) for its in exact.values()
    )
    assert all(made.total_micro_usd == sum(line.amount_micro_usd for line in made.lines) for made in (march, april, may))


@given(st.permutations([(key(version=version), Sum(number, number * 7)) for version in "ab" for number in range(4)]))
def test_the_order_of_rows_changes_no_line(charges: list[tuple[LineKey, Sum]]) -> None:
    assert list(sums_of(charges).items()) == [(key(version="a"), Sum(6, 42)), (key(version="b"), Sum(6, 42))]
