"""The drill of a lost region in its short form. Its figures of time are shown and decide nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ZERO = ("lost_keys", "lost_registry", "lost_releases", "lost_archived", "lost_rows", "rpo_requests", "double_bills")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_lost_region_loses_nothing_and_a_failover_may_be_killed_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.cli", "drill", "region-loss", "--kills", "--seconds", "0.4", "--per-s", "20"]
    done = subprocess.run([*command, "--report", str(tmp_path)], capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found[f"num_{name}"] for name in ZERO} == dict.fromkeys(ZERO, 0)
    assert (found["num_lost"], found["num_doubled"], found["num_inexact"], found["num_over"]) == (0, 0, 0, 0)
    assert found["received_tokens"] == found["billed_tokens"] > 0
    assert found["ends_differently"] == {}
    assert found["steps_not_killed_within"] == found["steps_not_killed_after"] == []
    assert (tmp_path / "timeline.svg").exists()
