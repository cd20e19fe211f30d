"""What drills within a region make of what they saw; one of them in its short form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from infra.drills import az_loss, commands
from infra.drills.cache_loss import allowed
from infra.drills.load import Asked
from infra.drills.scene import Play, Scene, Size, judged, share, took_p95_s
from infra.drills.scenes import SCENES
from infra.drills.streams import Seen
from infra.embedded.desired import Container, Template, Workload


@pytest.mark.parametrize(
    ("from_s", "to_s", "expected"),
    [(-9.0, 0.0, 1.0), (0.0, 10.0, 0.5), (10.0, 99.0, 1.0), (99.0, 100.0, 1.0)],  # none asked: nothing was lost
)
def test_a_share_is_of_what_was_begun_in_its_span(from_s: float, to_s: float, expected: float) -> None:
    assert share([(-1.0, True), (0.0, False), (9.9, True), (10.0, True)], from_s, to_s) == expected


def asked(began_s: float, took_s: float, request_id: str = "r", status: int = 200) -> Asked:
    return Asked(began_s, began_s + took_s, Seen(request_id, status, 5, status == 200, 5), why="" if status == 200 else "503")


def test_how_long_answers_took_is_told_of_whole_answers_begun_in_the_span() -> None:
    many = [asked(1.0, number / 100) for number in range(1, 101)]
    assert took_p95_s([*many, asked(0.5, 9.0), asked(1.0, 9.0, status=503)], 1.0, 2.0) == 0.96
    assert took_p95_s([], 0.0, 1.0) == 0.0


@pytest.mark.parametrize(("lasts_s", "most"), [(0.0, 180), (60.0, 240), (30.0, 210)])
def test_what_a_limit_lets_in_is_its_rate_and_two_limits_more(lasts_s: float, most: int) -> None:
    assert allowed(60, lasts_s) == most  # 60 at once, 60 a minute, 60 by shares, 60 of the empty cache


class Quiet(Scene):
    """Harms nothing."""

    name, heading, title, max_until_s = "quiet", "quiet", "quiet", 5.0

    def parts(self, play: Play) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("lost", "rto_s", "holds"),
    [((), 0.0, True), ((2.1,), 2.5, True), ((5.6,), 6.0, False), ((12.0,), 12.5, False)],
)
def test_requests_that_are_lost_late_fail_a_scene_and_those_at_once_are_its_rto(
    lost: tuple[float, ...], rto_s: float, holds: bool
) -> None:
    play = Play(None, Size(), None, harmed_s=100.0)  # type: ignore[arg-type]
    play.asked = [asked(90.0 + number / 10, 0.1, f"r{number}") for number in range(300)]
    play.asked += [asked(100.0 + at_s, 0.1, "", status=503) for at_s in lost]
    requests, _ = judged(Quiet(), play)
    assert requests.figures["rto_s"] == rto_s
    assert (requests.figures["num_requests_lost"], requests.figures["num_rpo_requests"]) == (len(lost), 300)
    held = {name: row[2] for name, row in zip(requests.figures, requests.rows, strict=True)}
    assert (held["rto_s"] and held["served_later_ratio"]) is holds
    assert held["num_rpo_requests"] is False  # nothing is in the ledger


def test_only_the_harmed_regions_gateways_and_engines_are_grown() -> None:
    container = Container(name="c", command=("true",))
    made = [
        Workload(
            region=region,
            namespace="serving",
            name=name,
            kind="Deployment",
            replicas=1,
            template=Template(containers=(container,)),
        )
        for region in ("us-east-2", "us-west-2")
        for name in ("gateway", "engine-small", "engine-large")
    ]
    grown = [each.key for each in made if az_loss._is_spread(each, "us-east-2")]
    assert grown == ["us-east-2.serving.gateway", "us-east-2.serving.engine-small"]
    assert az_loss._grown(made[0]).replicas == az_loss.REPLICAS
    assert msgspec.structs.replace(az_loss._grown(made[0]), replicas=1) == made[0]


def test_every_scene_has_a_command() -> None:
    assert set(commands.SCENES) == set(SCENES)
    for name in SCENES:
        assert CliRunner().invoke(commands.drill, [name, "--help"]).exit_code == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["cache-loss", "slow-region", "az-loss"])
def test_a_drill_in_its_short_form_loses_no_bill(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.cli", "drill", name, "--seconds", "0.4", "--per-s", "10", "--report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    names = ("num_rpo_requests", "num_lost", "num_doubled", "num_inexact", "num_over", "num_double_bills")
    assert {each: found[each] for each in names} == dict.fromkeys(names, 0)
    assert found["received_tokens"] == found["billed_tokens"] > 0
    assert (tmp_path / "timeline.svg").exists()
