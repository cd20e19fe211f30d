"""`flotilla usage` shows what a person and what a machine can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from policies.billing.invoices import Invoice, Line, LineKey
from serving.errors import UserError
from serving.metering import commands
from serving.metering.events import Outcome
from serving.metering.report import UsageReport, summarise
from serving.metering.rows import row_of

NOW_MS = 1_763_856_000_000  # 2025-11-23T00:00:00Z


class AdminApi:
    """What the command asks; answers with the given rows."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.asked: dict[str, Any] = {}

    def usage(self, target: Any, **asked: Any) -> dict[str, Any]:
        self.asked = asked
        report = summarise(self.rows, asked["from_ms"], asked["to_ms"], asked["group_by"])
        document: dict[str, Any] = json.loads(msgspec.json.encode(report))
        return document


@pytest.fixture
def api(records: Any, monkeypatch: pytest.MonkeyPatch) -> AdminApi:
    rows = [
        row_of(records.close(records.open(opened_at_ms=NOW_MS - 9000, prompt_tokens=12_345), 211, closed_at_ms=NOW_MS - 4000)),
        row_of(records.close(records.open(tenant="zoo", opened_at_ms=NOW_MS - 9000), 5, outcome=Outcome.CLIENT_GONE)),
    ]
    api = AdminApi(rows)
    monkeypatch.setattr(commands.admin_client, "usage", api.usage)
    monkeypatch.setattr(commands, "load_target", lambda env: env)
    monkeypatch.setattr("time.time_ns", lambda: NOW_MS * 1_000_000)
    return api


def run(*arguments: str) -> Any:
    app = typer.Typer()
    commands.register(app)
    return CliRunner().invoke(app, ["usage", *arguments], env={"COLUMNS": "140"})


def test_a_person_sees_thousands_dollars_outcomes_a_total_and_how_fresh_it_is(api: AdminApi) -> None:
    """12,345 x 0.10 + 211 x 0.40 dollars per million tokens, and 100 x 0.10 + 5 x 0.40."""
    output = run("--since", "1h").output
    lines = [line.split() for line in output.splitlines() if line.strip()]
    assert lines[0] == ["tenant", "model", "requests", "input", "cached", "input", "output", "cost", "(USD)", "ended"]
    assert lines[1] == ["acme", "small", "1", "12,345", "0", "211", "$0.0013189", "1", "finished"]
    assert lines[2] == ["zoo", "small", "1", "100", "0", "5", "$0.000012", "1", "client", "gone"]
    assert lines[3] == ["total", "2", "12,445", "0", "216", "$0.0013309", "1", "client", "gone,", "1", "finished"]
    assert "Tokens since 2025-11-22 23:00 UTC" in output
    assert "ended 4 s ago" in output


def test_a_machine_gets_the_report_itself(api: AdminApi) -> None:
    report = msgspec.json.decode(run("--json").output, type=UsageReport)
    assert report == summarise(api.rows, NOW_MS - 86_400_000, NOW_MS + 1)


def test_what_is_asked_reaches_the_admin_api(api: AdminApi) -> None:
    run("--tenant", "acme", "--since", "2025-11-22", "--by", "day", "--by", "key", "--region", "us-west-2")
    assert api.asked == {
        "tenant": "acme",
        "from_ms": NOW_MS - 86_400_000,
        "to_ms": NOW_MS + 1,
        "group_by": ["day", "key"],
        "region": "us-west-2",
    }


def test_no_usage_is_said_in_a_sentence(api: AdminApi) -> None:
    api.rows = []
    assert run().output.startswith("No requests since 2025-11-22 00:00 UTC;")


def test_a_span_that_makes_no_sense_is_refused(api: AdminApi) -> None:
    result = run("--since", "soon")
    assert isinstance(result.exception, UserError)


def test_a_spreadsheet_gets_csv_of_the_groups_that_were_asked_for(api: AdminApi) -> None:
    lines = run("--by", "key", "--by", "hour", "--csv").output.splitlines()
    assert lines == [
        "key_id,hour,requests,uncached_input_tokens,cached_input_tokens,output_tokens,cost_usd",
        "k1,2025-11-22T23,2,12445,0,216,0.0013309",
    ]


def test_a_month_is_asked_for_whole(api: AdminApi) -> None:
    run("--month", "2025-11", "--json")
    assert (api.asked["from_ms"], api.asked["to_ms"]) == (1_761_955_200_000, 1_764_547_200_000)


def test_an_invoice_is_shown_or_written_to_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = LineKey("2025-11", "small", "", False, "2025-11", "output", 400_000)
    made = Invoice("acme", "2025-11", 0, (Line(key, 30, 12),), 12, 3, NOW_MS)
    monkeypatch.setattr(commands, "load_target", lambda env: env)
    monkeypatch.setattr(commands.Books, "of", lambda target: None)
    monkeypatch.setattr(commands, "invoice_of", lambda *_, issues: made)
    app = typer.Typer()
    commands.register(app)
    shown = CliRunner().invoke(app, ["invoice", "acme", "2025-11"]).output
    assert "Draft of an invoice for acme, 2025-11: 3 requests" in shown
    assert "small, output tokens" in shown and "$0.000012" in shown
    page = tmp_path / "invoice.html"
    assert CliRunner().invoke(app, ["invoice", "acme", "2025-11", "--format", "html", "--out", str(page)]).exit_code == 0
    assert "<!doctype html>" in page.read_text()
    refused = CliRunner().invoke(app, ["invoice", "acme", "2025-11", "--out", str(tmp_path / "no" / "where")])
    assert isinstance(refused.exception, UserError)
