"""The drill of the bill in its short form. Its figures of time are shown and decide nothing here."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.drills import drill_metering
from tests.drills.metering import storm
from tests.drills.metering.world import DrillWorld, GatewayProcess, Nursery

WRONGS = ("num_lost", "num_doubled", "num_inexact", "num_over", "num_under")
SHORT = [
    "--requests", "800", "--kills", "6", "--valkey-kills", "2", "--late-segments", "2", "--control-requests", "500",
    "--cuts", "300", "--keys", "40", "--retries", "400", "--retry-kills", "3",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whatever_is_killed_torn_full_or_throttled_every_bill_is_what_arrived() -> None:
    only = [argument for name in ("storm", "control", "cuts", "disk", "retries") for argument in ("--only", name)]
    found = {part.name: part.figures for part in drill_metering.run(drill_metering.parse([*SHORT, *only]))}
    assert {name: [figures[kind] for kind in WRONGS] for name, figures in found.items() if "num_over" in figures} == {
        name: [0] * len(WRONGS) for name in ("storm", "cuts", "EIO", *(["disk full"] if os.geteuid() == 0 else []))
    }
    storm = found["storm"]
    assert (storm["num_gateway_kills"], storm["num_ledger_hashes"], storm["num_row_conflicts"]) == (6, 1, 0)
    assert storm["num_torn_tails"] == 2 * storm["num_torn_alike"] > 0
    assert storm["received_tokens"] == storm["billed_tokens"] > 0
    assert found["late"]["num_different"] == 0
    assert found["cuts"]["num_exact"] == 300
    assert found["cuts"]["num_leaked"] == 0
    again = found["retries"]
    assert [again[f"num_{wrong}"] for wrong in ("generated_twice", "billed_twice", "unbilled", "unlike", "other")] == [0] * 5
    assert again["num_generated"] + again["num_replayed"] > 40
    assert found["control"]["num_lost"] > 0, "the check has teeth"


def test_a_gateway_that_comes_up_is_not_killed_again_for_the_answers_its_kill_cut(tmp_path: Path) -> None:
    gateways = [GatewayProcess(name, "127.0.0.1", tmp_path, {}, cast("Nursery", None)) for name in ("up", "down", "idle")]
    running = storm.Storm(cast("DrillWorld", SimpleNamespace(gateways=gateways)), 1, print)
    running.down.add("down")
    running.served.update(up=storm.SERVED_BEFORE_KILL, down=64)
    assert [gateway.name for gateway in running.busy()] == ["up"]
