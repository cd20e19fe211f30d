"""What a region is able to do and has to do, put together from what its gateways last said.

Gateways know the engines of their region alike, and each its own requests. So engines are taken from the newest report, and
requests are added up over every report that is no older than `FRESH_S` before it: a gateway that ended no longer counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from policies.failover.capacity import Fleet
from policies.failover.items import Report

REPORT_PERIOD_S = 5.0
"""Each gateway reports this often."""
FRESH_S = 3 * REPORT_PERIOD_S


@dataclass(frozen=True)
class RegionReport:
    """A region, as its gateways last told."""

    region: str
    at_s: float
    """When it was last heard of, in seconds since 1970."""
    num_gateways: int
    fleets: Mapping[str, Fleet]
    min_engines: Mapping[str, int]
    """The floor that the region's scaling policy keeps now, by class."""
    release_ids: Mapping[str, tuple[str, ...]]

    def age_s(self, now_s: float) -> float:
        """How long ago it was last heard of."""
        return now_s - self.at_s

    def is_fresh(self, now_s: float) -> bool:
        """It has been heard of lately; a report from the future is some clock's error and no news."""
        return abs(self.age_s(now_s)) <= FRESH_S

    def has_moved(self, now_s: float, moves_within_s: float) -> bool:
        """Its clients are with other regions, and those have said so: it has been silent for as long as clients take, and for two
        reports more, its own last and the others' next."""
        return self.age_s(now_s) > moves_within_s + 2 * REPORT_PERIOD_S

    @property
    def num_in_flight(self) -> int:
        """Requests of every class and band."""
        return sum(sum(fleet.in_flight.values()) for fleet in self.fleets.values())


def regions_of(reports: Iterable[Report]) -> dict[str, RegionReport]:
    """Each region that has ever reported, by name."""
    by_region: dict[str, list[Report]] = {}
    for report in reports:
        by_region.setdefault(report.region, []).append(report)
    return {region: _together(region, told) for region, told in sorted(by_region.items())}


def _together(region: str, told: list[Report]) -> RegionReport:
    newest = max(told, key=lambda report: (report.at_s, report.gateway))
    fresh = [report for report in told if report.at_s >= newest.at_s - FRESH_S]
    fleets = {}
    for model_class, its in newest.classes.items():
        in_flight: dict[str, int] = {}
        for report in fresh:
            for band, count in report.classes.get(model_class, {}).get("in_flight", {}).items():
                in_flight[band] = in_flight.get(band, 0) + int(count)
        fleets[model_class] = Fleet(int(its["num_ready"]), int(its["max_engines"]), int(its["places_per_engine"]), in_flight)
    return RegionReport(
        region=region,
        at_s=float(newest.at_s),
        num_gateways=len(fresh),
        fleets=fleets,
        min_engines={model_class: int(its["min_engines"]) for model_class, its in newest.classes.items()},
        release_ids={model_class: tuple(map(str, its["release_ids"])) for model_class, its in newest.classes.items()},
    )
