"""What is attained for the same dollars, by hand; and ours beside the usual baselines on a load that it was not tuned on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.autoscaling.contenders import OURS
from policies.autoscaling.frontier import Point, Verdict, best, lead, match, scaler, tuned
from policies.autoscaling.loads import LOADS
from policies.autoscaling.outcome import Outcome
from policies.autoscaling.policy import ScalingPolicy
from policies.autoscaling.scenario import Bounds, EngineModel, Load
from policies.autoscaling.simulation import simulate
from policies.capacity.step_law import PROFILES

ENGINE = EngineModel(PROFILES["a100-small"], max_batch=256, cold_start_s=240, gpus=1, usd_per_h=2.0)
POLICY = ScalingPolicy(target_in_flight=64, step_down=8, down_window_s=300, promise_ratio=0.5, ttft_p99_target_s=4)
BOUNDS = Bounds(5, 60)
IDLE = simulate("any", scaler("cpu", 0.7, POLICY, BOUNDS), Load([0.0] * 60), ENGINE, BOUNDS)


def attained(slo_ratio: float, usd: float) -> Outcome:
    return replace(IDLE, slo_ratio=slo_ratio, usd=usd)


def point(setting: float, tuning: tuple[float, float], measured: tuple[float, float]) -> Point:
    return Point(setting, attained(*tuning), attained(*measured))


@pytest.mark.parametrize(("usd", "setting"), [(90, None), (100, 64), (125, 56), (150, 48), (999, 16)])
def test_a_setting_is_tuned_to_dollars_between_those_that_were_run(usd: float, setting: float | None) -> None:
    assert tuned([(200, 16), (100, 64), (150, 48)], usd) == setting


def test_what_attains_less_than_something_cheaper_is_not_on_the_frontier() -> None:
    cheap, worse, dear = attained(0.8, 100), attained(0.7, 120), attained(0.9, 150)
    assert best([dear, worse, cheap]) == [cheap, dear]


def test_the_lead_is_at_equal_dollars_and_unknown_below_the_cheapest() -> None:
    """From 80 % for 100 to 90 % for 150: 85 % for 125, five points more than the other's 80 %; beyond 150 it stays 90 %."""
    ours = [attained(0.8, 100), attained(0.9, 150)]
    found = lead([attained(0.8, 125), attained(0.95, 200), attained(0.1, 99)], ours)
    assert found == [(125, pytest.approx(0.05)), (200, pytest.approx(-0.05)), (99, None)]


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ((0.90, 100), Verdict.AHEAD),
        ((0.90, 102), Verdict.DEARER),
        ((0.90, 100.9), Verdict.AHEAD),  # within a hundredth
        ((0.88, 50), Verdict.BEHIND),
        ((0.8995, 100), Verdict.AHEAD),  # within a tenth of a point
    ],
)
def test_ours_is_compared_on_the_half_that_it_was_not_tuned_on(measured: tuple[float, float], verdict: Verdict) -> None:
    other = point(5, (0.1, 125), (0.9, 100))
    asked: list[tuple[str, float]] = []

    def run(name: str, setting: float) -> Point:
        asked.append((name, setting))
        return point(setting, (0.99, 125), measured)

    ours = [point(64, (0.8, 100), (0, 0)), point(32, (0.9, 150), (0, 0))]
    assert match(other, ours, run).verdict is verdict and asked == [(OURS, 48)]


def test_what_is_cheaper_than_any_setting_of_ours_is_said_to_be() -> None:
    def run(name: str, setting: float) -> Point:
        raise AssertionError("nothing to run")

    found = match(point(0.7, (0.3, 50), (0.3, 50)), [point(64, (0.8, 100), (0.8, 100))], run)
    assert (found.verdict, found.ours) == (Verdict.NONE, None)


@pytest.mark.parametrize("load", LOADS)
def test_for_the_dollars_of_the_usual_baselines_ours_attains_as_much_to_half_a_point(load: str) -> None:
    """`make bench-simulator` does it for prod's engines, a real trace and every setting of the baselines."""
    given = Load(LOADS[load](200.0, 2 * 3600, 1))

    def outcome(name: str, setting: float) -> Outcome:
        return simulate(name, scaler(name, setting, POLICY, BOUNDS), given, ENGINE, BOUNDS)

    ours = [outcome(OURS, setting) for setting in (8, 16, 24, 48, 91)]
    for usd, ahead in lead([outcome("system-design", 0.2), outcome("queue", 5)], ours):
        assert ahead is not None and ahead > -0.005, f"for ${usd:,.0f}"
