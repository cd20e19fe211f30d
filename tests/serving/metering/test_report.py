"""Sums are exact, money never passes through a float, and a report says the same whatever order its rows come in."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import UserError
from serving.metering.events import CountSource, Outcome
from serving.metering.report import UsageReport, format_usd, parse_since, summarise
from serving.metering.rows import ledger_hash, row_of, utc_day, utc_days

MIDNIGHT_MS = 1_763_856_000_000  # 2025-11-23T00:00:00Z
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("pico_usd", "text"),
    [
        (0, "0.00"),
        (1, "0.000000000001"),
        (25_400_000, "0.0000254"),
        (10**12, "1.00"),
        (1_234_500_000_000_000, "1,234.50"),
        (123_456_789_012_345_678_901_234_567, "123,456,789,012,345.678901234567"),
        (-10_000_000_000, "-0.01"),
    ],
)
def test_money_is_exact_text(pico_usd: int, text: str) -> None:
    assert format_usd(pico_usd) == text


@given(st.integers(-(10**30), 10**30))
def test_money_loses_no_digit(pico_usd: int) -> None:
    dollars, fraction = format_usd(pico_usd).replace(",", "").replace("-", "").split(".")
    assert int(dollars) * 10**12 + int(fraction.ljust(12, "0")) == abs(pico_usd)


@pytest.mark.parametrize(("time_ms", "day"), [(MIDNIGHT_MS - 1, "2025-11-22"), (MIDNIGHT_MS, "2025-11-23"), (0, "1970-01-01")])
def test_the_day_of_a_bill_is_that_of_the_open_in_utc(time_ms: int, day: str, records: Any) -> None:
    assert utc_day(time_ms) == day
    row = row_of(records.close(records.open(opened_at_ms=time_ms), closed_at_ms=time_ms + HOUR_MS))
    assert row.key.pk == f"acme#{day}"


@pytest.mark.parametrize(
    ("from_ms", "to_ms", "days"),
    [
        (MIDNIGHT_MS - 1, MIDNIGHT_MS, ["2025-11-22"]),
        (MIDNIGHT_MS - 1, MIDNIGHT_MS + 1, ["2025-11-22", "2025-11-23"]),
        (MIDNIGHT_MS, MIDNIGHT_MS, []),
    ],
)
def test_the_end_of_a_span_is_not_in_it(from_ms: int, to_ms: int, days: list[str]) -> None:
    assert utc_days(from_ms, to_ms) == days


@pytest.mark.parametrize(
    ("text", "since_ms"),
    [
        ("24h", MIDNIGHT_MS - 24 * HOUR_MS),
        ("90s", MIDNIGHT_MS - 90_000),
        ("7d", MIDNIGHT_MS - 168 * HOUR_MS),
        ("2025-11-23", MIDNIGHT_MS),
    ],
)
def test_since_is_a_span_or_a_day(text: str, since_ms: int) -> None:
    assert parse_since(text, MIDNIGHT_MS) == since_ms


@pytest.mark.parametrize("text", ["", "yesterday", "24", "1w", "2025-13-01", "-1h"])
def test_since_that_is_neither_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UserError, match="neither a time span nor a day") as refusal:
        parse_since(text, MIDNIGHT_MS)
    assert "24h" in refusal.value.hint


def test_cost_is_tokens_times_their_price(records: Any) -> None:
    """(100 - 30) x 0.10 + 30 x 0.05 + 211 x 0.40 dollars per million tokens = 92.9 millionths of a dollar."""
    row = row_of(records.close(records.open(), 211, cached_tokens=30))
    assert row.cost_pico_usd == 70 * 100_000 + 30 * 50_000 + 211 * 400_000 == 92_900_000
    assert format_usd(row.cost_pico_usd) == "0.0000929"


def test_a_report_sums_by_group_and_counts_outcomes(records: Any) -> None:
    def close(tenant: str, model: str, output_tokens: int, **changes: Any) -> Any:
        return row_of(records.close(records.open(tenant=tenant, model=model), output_tokens, **changes))

    nothing = {"outcome": Outcome.NOT_SERVED, "source": CountSource.NONE, "prompt_tokens": 0}
    rows = [
        close("acme", "small", 10),
        close("acme", "small", 20, cached_tokens=60, outcome=Outcome.CLIENT_GONE),
        close("acme", "large", 5),
        close("zoo", "small", 0, **nothing),
    ]
    report = summarise(rows, 0, MIDNIGHT_MS)
    assert [
        (row.tenant, row.model, row.requests, row.outcomes, row.uncached_input_tokens, row.cached_input_tokens, row.output_tokens)
        for row in report.rows
    ] == [
        ("acme", "large", 1, {"finished": 1}, 100, 0, 5),
        ("acme", "small", 2, {"client_gone": 1, "finished": 1}, 140, 60, 30),
        ("zoo", "small", 1, {"not_served": 1}, 0, 0, 0),
    ]
    assert report.total.cost_pico_usd == sum(row.cost_pico_usd for row in rows) == sum(row.cost_pico_usd for row in report.rows)
    assert [row.cost_usd for row in report.rows] == ["0.000012", "0.000029", "0.00"]


@pytest.mark.parametrize(
    ("group_by", "names"),
    [
        (("tenant",), ["acme", "zoo"]),
        (("key",), ["k1", "k2"]),
        (("day",), ["2025-11-22", "2025-11-23"]),
        (("hour",), ["2025-11-22T23", "2025-11-23T00"]),
        (("month",), ["2025-11"]),
        (("asked_model",), ["", "auto"]),
        (("model_reason",), ["", "tools"]),
        ((), [""]),
    ],
)
def test_a_report_groups_by_what_is_asked(records: Any, group_by: Any, names: list[str]) -> None:
    auto = {"asked_model": "auto", "model_reason": "tools"}
    rows = [
        row_of(records.close(records.open(opened_at_ms=MIDNIGHT_MS - 1))),
        row_of(records.close(records.open(tenant="zoo", key_id="k2", opened_at_ms=MIDNIGHT_MS, **auto))),
    ]
    report = summarise(rows, 0, 2 * MIDNIGHT_MS, group_by)
    shown = [row.tenant + row.model + row.key_id + row.month + row.day + row.hour for row in report.rows]
    assert [name + row.asked_model + row.model_reason for name, row in zip(shown, report.rows, strict=True)] == names
    assert report.newest_closed_at_ms == MIDNIGHT_MS + 1500


def test_order_changes_neither_report_nor_hash_and_content_changes_both(records: Any) -> None:
    rows = [row_of(records.close(records.open(), tokens)) for tokens in range(50)]
    shuffled = random.Random(1).sample(rows, len(rows))
    assert summarise(rows, 0, 1) == summarise(shuffled, 0, 1)
    assert ledger_hash(rows) == ledger_hash(shuffled)
    changed = [msgspec.structs.replace(rows[0], output_tokens=rows[0].output_tokens + 1), *rows[1:]]
    assert len({ledger_hash(rows), ledger_hash(changed), ledger_hash(rows[1:]), ledger_hash([])}) == 4


def test_a_report_survives_the_wire_whatever_its_size(records: Any) -> None:
    price = 10**15  # a total beyond 64 bits
    rows = [row_of(records.close(records.open(output_micro_usd_per_mtok=price), 10**7)) for _ in range(3)]
    report = summarise(rows, 0, MIDNIGHT_MS)
    assert report.total.cost_pico_usd > 2**64
    assert msgspec.json.decode(msgspec.json.encode(report), type=UsageReport) == report


def test_an_empty_report_is_all_zeros() -> None:
    report = summarise([], 5, 6)
    assert (report.rows, report.total.requests, report.total.cost_usd, report.newest_closed_at_ms) == ((), 0, "0.00", 0)
