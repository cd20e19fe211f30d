"""All promises of a class at its peak are one assertion: whichever is broken, it does not hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.autoscaling.peak import BucketAtPeak, Holds, Peak

IN_TIME = BucketAtPeak(bucket=512, share_ratio=0.8, p50_s=0.1, bound_s=0.03, holds=Holds.YES)
BEYOND = BucketAtPeak(bucket=8192, share_ratio=0.2, p50_s=0.3, bound_s=0.25, holds=Holds.BEYOND)
GOOD = Peak(
    name="small",
    req_per_s=400,
    engines=50,
    utilization_ratio=0.7,
    ttft_p50_s=0.19,
    ttft_limit_s=0.2,
    shed_ratio=0.001,
    buckets=(IN_TIME, BEYOND),
)


def test_what_no_engine_could_serve_in_time_breaks_no_promise() -> None:
    assert GOOD.holds


@pytest.mark.parametrize(
    "broken",
    [
        {"utilization_ratio": 0.699},
        {"ttft_p50_s": 0.2},
        {"shed_ratio": 0.0011},
        {"buckets": (replace(IN_TIME, p50_s=0.2, holds=Holds.NO), BEYOND)},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_one_broken_promise_is_enough(broken: dict[str, object]) -> None:
    assert not replace(GOOD, **broken).holds  # type: ignore[arg-type]
