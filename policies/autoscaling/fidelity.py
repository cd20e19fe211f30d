"""How far the fluid simulation is from the same thing request by request."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policies.autoscaling.outcome import Outcome
from policies.autoscaling.peak import busiest_hour
from policies.autoscaling.scenario import Bounds, Load

MAX_REQUESTS = 120_000
"""About three seconds of a run event by event."""


@dataclass(frozen=True)
class ModelError:
    """Fluid less events, the fluid model's error."""

    policy: str
    slo_points: float
    """Percentage points of requests in time."""
    shed_points: float
    ttft_p50_ratio: float
    """0.1 says a tenth too long."""
    utilization_points: float
    gpu_hours_ratio: float
    max_engines: int
    """The largest difference in size at the end of any minute."""


def model_error(fluid: Outcome, events: Outcome) -> ModelError:
    """What `fluid` has otherwise than `events`, which ran the same."""
    return ModelError(
        policy=fluid.policy,
        slo_points=(fluid.slo_ratio - events.slo_ratio) * 100,
        shed_points=(fluid.shed_ratio - events.shed_ratio) * 100,
        ttft_p50_ratio=fluid.ttft_p50_s / events.ttft_p50_s - 1 if events.ttft_p50_s else 0.0,
        utilization_points=(fluid.utilization_ratio - events.utilization_ratio) * 100,
        gpu_hours_ratio=fluid.gpu_hours / events.gpu_hours - 1 if events.gpu_hours else 0.0,
        max_engines=max((abs(one - other) for one, other in zip(fluid.engines, events.engines, strict=True)), default=0),
    )


def checkable(load: Load, bounds: Bounds) -> tuple[Load, Bounds]:
    """A part of the load that can be run event by event in seconds: the hour around its busiest minute, and so few requests and
    engines, by one factor, that there are `MAX_REQUESTS` at most. Spot engines are not lost in it."""
    hour = busiest_hour(load.arrivals_per_s)
    part = load.arrivals_per_s[hour.start : hour.stop]
    factor = min(1.0, MAX_REQUESTS / max(1.0, sum(part)))
    minimum = max(1, round(bounds.minimum * factor))
    maximum = max(minimum, round(bounds.maximum * factor))
    smaller = replace(bounds, minimum=minimum, maximum=maximum, spot=0, spot_losses_per_h=0.0)
    return replace(load, arrivals_per_s=[number * factor for number in part]), smaller
