"""Engines under the real KEDA and HPA do what the policy decides, as its simulation and the local scaler do; and without a leader
they grow by their queues and never shrink. `make drill-scaling` is the long form.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from kube import eventually

from policies.autoscaling.policy import Limits, ScalingPolicy
from tests.drills.scaling_realisers import Keda, keda_fleet, realised
from tests.drills.scaling_series import LOOK_S, Phase, Series, agreements, picture, simulated

pytestmark = pytest.mark.cluster
SPEED = 15.0
SYNC_S = LOOK_S / SPEED
TARGET, START = 32, 4
LIMITS = Limits(floor=2, max_base=20)
# Shrinking waits and steps sooner still: a test has no more time.
POLICY = (
    ScalingPolicy(target_in_flight=TARGET, stale_after_s=37.5)
    .shortened(SPEED)
    .model_copy(update={"down_window_s": 6.0, "down_period_s": 3.0})
)
SERIES = Series(
    (
        Phase("ramp", 6, 4 * TARGET, 7 * TARGET),
        Phase("spike", 5, 12 * TARGET),
        Phase("silence", 6, None),
        Phase("recovery", 4, 8 * TARGET),
        Phase("scale-in", 14, 2 * TARGET),
    )
)
SLACK_SYNCS = 2
"""Beside other tests a sync may come a sync late; the drill, on a machine of its own, allows none."""


def test_one_policy_has_the_same_trajectory_wherever_it_is_obeyed(assets: Path, tmp_path: Path) -> None:
    expected = simulated(SERIES, POLICY, LIMITS, START, SYNC_S)
    found, _ = realised(SERIES, POLICY, LIMITS, START, SYNC_S, assets, tmp_path)
    seen = "\n".join(picture(SERIES, [expected, *found]))
    for one in found:
        assert len(one.changes) > 5, f"{one.name} was scaled\n{seen}"
        for agreement in agreements(SERIES, one, expected, SLACK_SYNCS * SYNC_S):
            assert agreement.max_apart <= 1, f"{one.name}: {agreement}\n{seen}"


def test_without_a_leader_engines_grow_by_their_queues_and_never_shrink(assets: Path, tmp_path: Path) -> None:
    """What once happened elsewhere: an autoscaler whose source of sizes was silent took a service down to its floor."""
    with keda_fleet(assets, tmp_path / "plane", POLICY, LIMITS, SYNC_S) as fleet:
        fleet.apply(START)
        fleet.say(None, 8 * TARGET)
        eventually(lambda: fleet.replicas() == 8, "the queues ask for eight", 30, fleet.events)
        fleet.say(None, 0)
        assert _least(fleet, 10) == 8
        fleet.say(7, 0)
        eventually(lambda: fleet.replicas() == 7, "a leader is obeyed again, to the engine", 30, fleet.events)


def _least(fleet: Keda, for_s: float) -> int:
    deadline = time.monotonic() + for_s
    found = fleet.replicas()
    while time.monotonic() < deadline:
        found = min(found, fleet.replicas())
        time.sleep(0.2)
    return found
