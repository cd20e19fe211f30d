"""`flotilla simulate` as its user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.scaling.recordings import recorded_load, seconds
from policies.capacity.traffic import AZURE_2023_CONVERSATIONS
from serving.errors import UserError


def test_it_compares_every_policy_and_draws_them() -> None:
    result = CliRunner().invoke(app, ["simulate", "--hours", "0.5", "--peak-req-per-s", "50"])
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("work", "system-design", "queue", "cpu", "in time", "█"))


def test_a_file_of_ones_own_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    rows = [f"2026-11-01 10:{second // 60:02}:{second % 60:02}.1234567,100" for second in range(600)]
    trace.write_text("\n".join(["when,tokens", *rows]))
    result = CliRunner().invoke(app, ["simulate", "--load", str(trace), "--peak-req-per-s", "5", "--policy", "work", "--json"])
    document = json.loads(result.output)
    assert document["policies"][0]["num_requests"] == pytest.approx(3000, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--policy", "magic"], "--policy: no policy 'magic'"),
        (["--load", "nowhere.csv"], "--load: nowhere.csv is neither"),
        (["--load", "/"], "--load: / is neither"),
        (["--min-engines", "9", "--max-engines", "3"], "--min-engines is 9"),
        (["--min-engines", "9", "--max-engines", "12", "--spot", "4"], "above --max-engines less --spot (8)"),
        (["--hours", "0.1", "--policy", "cpu", "--svg", "/nowhere/a.svg"], "--svg: /nowhere/a.svg: No such file"),
        (["--env", "staging"], "staging serves small on l4-24g"),
        (["--class", "huge"], "prod serves no class 'huge'"),
        (["--env", "nowhere"], "no environment 'nowhere'"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert isinstance(result.exception, UserError) and expected in result.exception.message


def test_times_are_seconds_or_dates_with_more_digits_than_python_reads() -> None:
    assert seconds("12.5") == 12.5
    assert seconds("2023-11-16 18:15:47.6805900") - seconds("2023-11-16 18:15:46.6805900") == pytest.approx(1.0)


def test_tokens_of_a_file_are_its_lengths_and_without_them_requests_are_as_long_as_azures(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text("\n".join(["at,in,out", *(f"{second},{100 + second},7" for second in range(300))]))
    load = recorded_load(trace, 5.0, cached_ratio=0.25)
    assert load.lengths[0] == (100, 7) and len(load.lengths) == 300 and load.cached_ratio == 0.25
    trace.write_text("\n".join(["at,in,out", "0,,", *(f"{second},{100 + second},7" for second in range(300))]))
    assert recorded_load(trace, 5.0, 0.0).lengths == AZURE_2023_CONVERSATIONS


def test_the_picture_is_well_formed_and_says_what_the_table_says(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    result = CliRunner().invoke(
        app, ["simulate", "--hours", "0.5", "--peak-req-per-s", "20", "--policy", "work", "--policy", "queue", "--svg", str(path)]
    )
    assert result.exit_code == 0, result.output
    root = ElementTree.fromstring(path.read_text())
    texts = [item.text or "" for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"requests a second", "engines: work", "engines: queue"} <= set(texts)
    shown = next(text for text in texts if "in time" in text).partition(" ")[0]
    assert shown in result.output
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polygon"))) == 3


def test_the_error_against_events_is_shown_on_request() -> None:
    arguments = ["simulate", "--hours", "0.3", "--peak-req-per-s", "30", "--min-engines", "4", "--policy", "work"]
    result = CliRunner().invoke(app, [*arguments, "--check-against-events", "--json"])
    (error,) = json.loads(result.output)["errors"]
    assert error["policy"] == "work" and abs(error["slo_points"]) < 10
    assert "fluid less event by event" in CliRunner().invoke(app, [*arguments, "--check-against-events"]).output


def test_at_the_peak_every_class_of_prod_keeps_all_promises_at_once() -> None:
    """Useful 70 %, P50 below 200 ms over all and in each bucket that an idle engine can serve so, a thousandth shed at most."""
    result = CliRunner().invoke(app, ["simulate", "--peak", "--hours", "8", "--json"])
    assert result.exit_code == 0, result.output
    peaks = {item["name"]: item for item in json.loads(result.output)}
    assert set(peaks) == {"small", "medium", "large"}
    for item in peaks.values():
        assert item["holds"] and item["utilization_ratio"] >= 0.7 and item["ttft_p50_s"] < 0.2 and item["shed_ratio"] <= 0.001
        late = {part["bucket"]: part["bound_s"] for part in item["buckets"] if part["p50_s"] >= 0.2}
        assert set(late) == {8192} and late[8192] >= 0.2, "only what no engine can serve within 200 ms is late"
