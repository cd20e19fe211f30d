"""From a demand to engines, spares, GPUs, nodes and dollars, region by region, so that any one region can be lost.

With R regions, each of which must carry its share when one is lost:

    engines of a class in a region = ceil( peak of the class / (R - 1) / requests a second of one engine )  + warm spares

One region alone has nothing to fall back on: it carries all, and losing it is losing the service.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policies.capacity.operating_point import Mix, OperatingPoint, max_uncached_tokens, operating_point
from policies.capacity.step_law import Profile

TTFT_LIMIT_S = 0.2
"""The promise: P50 of the time to first token."""


@dataclass(frozen=True)
class ClassDemand:
    """One model class: what it is asked for, and what one of its engines is."""

    name: str
    share_ratio: float
    """Of all requests."""
    profile: Profile
    gpus_per_engine: int
    gpus_per_node: int
    max_batch: int
    usd_per_node_h: float | None
    """None: nobody has a price for it; dollars are then left out, and said to be."""
    kv_bytes_per_token: int
    context_window_tokens: int


@dataclass(frozen=True)
class Demand:
    """What users ask for."""

    users_per_day: int
    req_per_min: float
    """At the peak."""
    mix: Mix

    @property
    def req_per_user_day(self) -> float:
        """If the peak lasted all day: a check that the figures belong together."""
        return self.req_per_min * 1440 / self.users_per_day


@dataclass(frozen=True)
class ClassPlan:
    """What a class needs in each region."""

    name: str
    peak_req_per_s: float
    """Over all regions."""
    point: OperatingPoint
    engines_per_region: int
    """Spares included."""
    spares_per_region: int
    gpus_per_region: int
    nodes_per_region: int
    usd_per_h_per_region: float | None
    usd_per_mtok: float | None
    """Of GPU cost for a million tokens, in and out together, at the peak with every region up."""
    kv_gib_per_full_context: float
    holds_ttft_up_to_tokens: int
    """Uncached prompt tokens up to which P50 TTFT < 200 ms holds at this utilization."""


@dataclass(frozen=True)
class Plan:
    """The whole answer."""

    demand: Demand
    num_regions: int
    classes: tuple[ClassPlan, ...]

    @property
    def gpus(self) -> int:
        """Over all regions."""
        return self.num_regions * sum(item.gpus_per_region for item in self.classes)

    @property
    def usd_per_h(self) -> float | None:
        """Over all regions; None where a class has no price."""
        costs = [item.usd_per_h_per_region for item in self.classes]
        return None if None in costs else self.num_regions * sum(cost for cost in costs if cost is not None)


def decide_capacity(
    demand: Demand, classes: Sequence[ClassDemand], num_regions: int, utilization_ratio: float = 0.7, spares: int = 1
) -> Plan:
    """Engines for `demand` with any one region lost.

    Raises:
        ValueError: there is no region, or the classes' shares do not add up to 1.
    """
    if num_regions < 1:
        raise ValueError("num_regions must be at least 1")
    total = sum(item.share_ratio for item in classes)
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(f"shares of {', '.join(item.name for item in classes)} add up to {total:g}, must be 1")
    carrying = max(1, num_regions - 1)
    return Plan(
        demand,
        num_regions,
        tuple(_class_plan(demand, item, num_regions, carrying, utilization_ratio, spares) for item in classes),
    )


def carries(floors: Mapping[str, int], engine_req_per_s: float, committed_req_per_min: float) -> Mapping[str, bool]:
    """Whether the floors of the other regions carry the committed load, for each region that may be lost.

    `floors` is engines by region. Where there is one region, nothing is left when it goes.
    """
    return {
        lost: sum(number for region, number in floors.items() if region != lost) * engine_req_per_s * 60 >= committed_req_per_min
        for lost in floors
    }


def _class_plan(
    demand: Demand, item: ClassDemand, num_regions: int, carrying: int, utilization_ratio: float, spares: int
) -> ClassPlan:
    point = operating_point(item.profile, demand.mix, utilization_ratio, item.max_batch)
    peak_req_per_s = demand.req_per_min / 60 * item.share_ratio
    engines = math.ceil(peak_req_per_s / carrying / point.req_per_s) + spares
    gpus = engines * item.gpus_per_engine
    nodes = math.ceil(gpus / item.gpus_per_node)
    usd = None if item.usd_per_node_h is None else nodes * item.usd_per_node_h
    tokens_per_h = peak_req_per_s * 3600 * (demand.mix.input_tokens + demand.mix.output_tokens)
    return ClassPlan(
        name=item.name,
        peak_req_per_s=peak_req_per_s,
        point=point,
        engines_per_region=engines,
        spares_per_region=spares,
        gpus_per_region=gpus,
        nodes_per_region=nodes,
        usd_per_h_per_region=usd,
        usd_per_mtok=None if usd is None or not tokens_per_h else usd * num_regions / tokens_per_h * 1e6,
        kv_gib_per_full_context=item.kv_bytes_per_token * item.context_window_tokens / 2**30,
        holds_ttft_up_to_tokens=max_uncached_tokens(item.profile, point.step_s, TTFT_LIMIT_S),
    )
