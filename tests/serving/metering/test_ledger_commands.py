"""`flotilla ledger` says what it found, by name, and its exit code says whether that was anything."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from policies.billing.reconciliation import Look
from serving.errors import UserError
from serving.metering import ledger_commands
from serving.metering.archive import archive_key, put_segment
from serving.metering.books import Books
from serving.metering.engine_counts import counts_key
from serving.metering.framing import SegmentHeader, decode_segment, encode_header, encode_record
from serving.metering.ledger import put_rows
from serving.metering.rows import rows_of
from serving.metering.segments import SegmentName

pytestmark = pytest.mark.emulated_aws
NOON_MS = 1_763_812_800_000  # 2025-11-22T12:00:00Z
NOW_MS = NOON_MS + 2 * 86_400_000
PRICE = {"input_micro_usd_per_mtok": 1, "cached_input_micro_usd_per_mtok": 1, "output_micro_usd_per_mtok": 1}


@pytest.fixture
def books(aws: Any, records: Any, monkeypatch: pytest.MonkeyPatch) -> Books:
    """Books with an archived, shipped segment of three requests of acme; what the commands find."""
    books = Books(aws.s3, aws.dynamodb, aws.bucket, aws.table)
    name = SegmentName("gateway-0-0", NOON_MS, 0)
    data = encode_header(SegmentHeader(name.source, name.epoch, name.seq, NOON_MS))
    data += b"".join(encode_record(records.close(records.open())) for _ in range(3))
    segment = decode_segment(data)
    put_segment(aws.s3, aws.bucket, archive_key("us-east-2", name, segment), data, segment)
    put_rows(aws.dynamodb, aws.table, rows_of(segment))
    monkeypatch.setattr(ledger_commands, "load_target", lambda env: env)
    monkeypatch.setattr(ledger_commands.Books, "of", lambda target, region=None: books)
    monkeypatch.setattr(ledger_commands.admin_client, "list_tenants", lambda target: [{"id": "acme"}, {"id": "zoo"}])
    prices = {"small": [{"version": "gift", "effective_from_ms": 0, **PRICE}], "large": []}
    monkeypatch.setattr(ledger_commands.admin_client, "list_prices", lambda target: prices)
    monkeypatch.setattr(ledger_commands, "_now_ms", lambda: NOW_MS)
    return books


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.add_typer(ledger_commands.ledger_app, name="ledger")
    return CliRunner().invoke(app, ["ledger", *arguments])


def test_verify_names_the_row_that_was_tampered_with_and_fails(books: Books) -> None:
    sealed = run("seal")
    assert "1 seals put" in sealed.output
    assert run("verify").exit_code == 0
    item = books.dynamodb.scan(TableName=books.table)["Items"][0]
    books.dynamodb.put_item(TableName=books.table, Item={**item, "output_tokens": {"N": "1"}})
    result = run("verify", "--json")
    assert result.exit_code == 1
    found = json.loads(result.output)["findings"]
    assert {finding["key"]["sk"] for finding in found} == {item["sk"]["S"]}
    assert {finding["fault"] for finding in found} == {"wrong_cost", "changed", "differs"}
    assert item["sk"]["S"] in run("verify").output


def test_rebuild_and_replay_change_nothing_and_say_so(books: Books) -> None:
    rebuilt = run("rebuild", f"{books.table}-again")
    assert rebuilt.exit_code == 0
    assert "3 rows written, 0 were there, 0 in conflict" in rebuilt.output
    assert "The hashes are the same." in rebuilt.output
    assert json.loads(run("replay", "2025-11-22T12", "--json").output) == {"written": 0, "present": 3, "conflict": 0}
    books.dynamodb.delete_item(TableName=books.table, Key=_some_key(books))
    differs = run("rebuild", f"{books.table}-again")
    assert (differs.exit_code, "DIFFER" in differs.output) == (1, True)
    assert json.loads(run("replay", "2025-11-22T12", "--json").output)["written"] == 1


def test_rating_anew_is_tried_first_and_then_done(books: Books) -> None:
    """100 + 10 tokens at 1 pico-dollar instead of 14,000,000."""
    arguments = ("rerate", "acme", "2025-11", "--to", "gift", "--reason", "ticket 7")
    assert "3 requests would be rated anew: $-0.00004199967 in all" in run(*arguments, "--dry-run").output
    assert json.loads(run(*arguments, "--json").output) == {"num_events": 3, "delta_pico_usd": 3 * (110 - 14_000_000)}
    assert run(*arguments).output.startswith("0 requests")
    assert run("verify").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("replay", "yesterday"), "'yesterday' is no hour"),
        (("rerate", "acme", "November", "--to", "gift", "--reason", "x"), "'November' is no month"),
        (("rerate", "acme", "2025-11", "--to", "free", "--reason", "x"), "no model has a price of tariff 'free'"),
    ],
)
def test_what_makes_no_sense_is_refused(books: Books, arguments: tuple[str, ...], complaint: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, UserError) and complaint in error.message and error.hint


def _some_key(books: Books) -> Any:
    item = books.dynamodb.scan(TableName=books.table)["Items"][0]
    return {name: item[name] for name in ("pk", "sk")}


def test_reconciling_shows_engines_and_fails_where_something_is_not_explained(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_commands, "load_target", lambda env: SimpleNamespace(region=lambda name: ("us-east-2", None)))
    for at_ms, output in ((NOON_MS, 0), (NOON_MS + 300_000, 7)):
        looks = [Look("engine-small-0", "small", 1, at_ms, 0, output)]
        assert books.put_once(counts_key("us-east-2", at_ms), msgspec.json.encode(looks))
    result = run("reconcile", "2025-11-22T12")
    assert result.exit_code == 1
    assert "engine-small-0" in result.output and "unexplained" in result.output
    assert json.loads(run("reconcile", "2025-11-22T12", "--json").output)["unexplained_output_tokens"] == 7
    assert run("reconcile", "2025-11-22T20").exit_code == 0
