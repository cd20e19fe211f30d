"""The drill of a partition in its short form. Its figures of time and of limits are shown and decide nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ZERO = ("lost", "doubled", "inexact", "over", "under", "double_bills", "differing_rows", "generated_twice")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_partition_leaves_one_truth_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.cli", "drill", "partition", "--seconds", "30", "--per-s", "5"]
    done = subprocess.run([*command, "--report", str(tmp_path)], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found[f"num_{name}"] for name in ZERO} == dict.fromkeys(ZERO, 0)
    assert found["received_tokens"] == found["billed_tokens"] > 0
    assert (found["num_home_writes"], found["num_far_refused"], found["num_revisions"]) == (3, 3, 3)
    assert found["aliases_agree"] and found["num_replayed"] == 10
    assert found["differing_items"] == [] == found["out_at_end"]
    assert len(found["out_healed"]) == 1
    assert (tmp_path / "timeline.svg").exists()
