"""`flotilla usage` shows what a person and what a machine can read."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

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
