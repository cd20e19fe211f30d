"""One answer to whether a region should receive traffic."""

from __future__ import annotations

import pytest

from policies.failover.controls import Verdict
from policies.failover.region_health import why_not

NO_ENGINE = "no engine of any class is ready"


@pytest.mark.parametrize(
    ("gateway", "evacuated", "ready", "reasons"),
    [
        ([], Verdict.SERVING, {"small": 1}, []),
        ([], Verdict.UNSURE, {"small": 1}, []),
        ([], Verdict.SERVING, {"small": 0, "large": 1}, []),
        ([], Verdict.SERVING, {"small": 0, "large": 0}, [NO_ENGINE]),
        ([], Verdict.SERVING, {}, []),
        (["draining"], Verdict.EVACUATED, {"small": 0}, ["draining", "evacuated", NO_ENGINE]),
    ],
)
def test_reasons_to_send_no_traffic(gateway: list[str], evacuated: Verdict, ready: dict[str, int], reasons: list[str]) -> None:
    assert why_not(gateway, evacuated, ready) == reasons
