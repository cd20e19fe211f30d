"""`flotilla simulate` as its user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.scaling.commands import _seconds
from serving.errors import UserError


def test_it_compares_every_rule_and_draws_them() -> None:
    result = CliRunner().invoke(app, ["simulate", "--hours", "0.5", "--peak-req-per-s", "50"])
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("work", "system-design", "queue", "cpu", "in time", "█"))


def test_a_file_of_ones_own_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    rows = [f"2026-11-01 10:{second // 60:02}:{second % 60:02}.1234567,100" for second in range(600)]
    trace.write_text("\n".join(["when,tokens", *rows]))
    result = CliRunner().invoke(app, ["simulate", "--load", str(trace), "--peak-req-per-s", "5", "--rule", "work", "--json"])
    document = json.loads(result.output)
    assert document["rules"][0]["num_requests"] == pytest.approx(3000, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rule", "magic"], "--rule: no rule 'magic'"),
        (["--load", "nowhere.csv"], "--load: nowhere.csv is neither"),
        (["--load", "/"], "--load: / is neither"),
        (["--min-engines", "9", "--max-engines", "3"], "--min-engines is 9"),
        (["--env", "staging"], "staging serves small on l4-24g"),
        (["--class", "huge"], "prod serves no class 'huge'"),
        (["--env", "nowhere"], "no environment 'nowhere'"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert isinstance(result.exception, UserError) and expected in result.exception.message


def test_times_are_seconds_or_dates_with_more_digits_than_python_reads() -> None:
    assert _seconds("12.5") == 12.5
    assert _seconds("2023-11-16 18:15:47.6805900") - _seconds("2023-11-16 18:15:46.6805900") == pytest.approx(1.0)
