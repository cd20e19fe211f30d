"""What the surviving regions carry of a lost one, by class, and who is shed first when it is not all.

The unit is a request in flight: what was in flight in the lost region moves, and takes as many places as it took there (Little's
law; latency is taken to stay as it was, which holds while engines are below their bound). Once moved, survivors count them alone.
Places that exist now count apart from those that floors and autoscaling may still add, since an engine takes minutes to start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHED_ORDER = ("batch", "standard", "interactive")
"""Bands, first shed first: nobody waits for a batch; people wait for `interactive`."""


@dataclass(frozen=True)
class Fleet:
    """A class in one region, as the region last said."""

    num_ready: int
    max_engines: int
    places_per_engine: int
    """Requests that one engine holds at a time."""
    in_flight: Mapping[str, int]
    """By band."""

    @property
    def places_now(self) -> int:
        """Requests that it can hold at once."""
        return self.num_ready * self.places_per_engine

    @property
    def places_most(self) -> int:
        """The same with every engine that it may have."""
        return max(self.max_engines, self.num_ready) * self.places_per_engine


@dataclass(frozen=True)
class ClassPlan:
    """How a class fares without the lost region. All in requests in flight, but for engines."""

    model_class: str
    wanted: int
    places_now: int
    places_most: int
    shed_now: Mapping[str, int]
    """By band, until more engines are ready."""
    shed_most: Mapping[str, int]
    """By band, however many engines are started."""
    engines: Mapping[str, int]
    """What each survivor should keep as its floor to carry all that can be carried; by region."""

    @property
    def is_carried(self) -> bool:
        """Nobody need be shed once engines have started."""
        return not any(self.shed_most.values())


def plan_class(model_class: str, lost: Fleet | None, survivors: Mapping[str, Fleet], *, has_moved: bool = False) -> ClassPlan:
    """The plan for one class. `lost` None: it did not serve the class, or never said so. No survivors: all is shed.

    `has_moved`: the lost region's clients are with the survivors by now, whose counts include them. Its last word is
    the least that a band is expected to have: 100 in flight here, of which 60 were there, are 100 and not 160.

    Floors grow with what each survivor may still add: 90 requests in flight, places of 32 an engine and two survivors of up to 4
    engines each give a floor of 2 and 1, since 3 engines hold 96.
    """
    wanted = dict.fromkeys(SHED_ORDER, 0)
    for fleet in survivors.values():
        for band, count in fleet.in_flight.items():
            wanted[band] = wanted.get(band, 0) + count
    for band, count in (lost.in_flight if lost is not None else {}).items():
        here = wanted.get(band, 0)
        wanted[band] = max(here, count) if has_moved else here + count
    total = sum(wanted.values())
    now = sum(fleet.places_now for fleet in survivors.values())
    most = sum(fleet.places_most for fleet in survivors.values())
    return ClassPlan(model_class, total, now, most, shed(wanted, now), shed(wanted, most), _floors(total, survivors))


def shed(wanted: Mapping[str, int], places: int) -> dict[str, int]:
    """How many of each band find no place, in the order of `SHED_ORDER`.

    >>> shed({"interactive": 50, "standard": 30, "batch": 40}, 70)
    {'batch': 40, 'standard': 10, 'interactive': 0}
    """
    over = max(0, sum(wanted.values()) - places)
    left = {}
    for band in SHED_ORDER:
        left[band] = min(wanted.get(band, 0), over)
        over -= left[band]
    return left


def _floors(total: int, survivors: Mapping[str, Fleet]) -> dict[str, int]:
    """Engines for each survivor: an engine at a time to whoever is least full of what it may have, until all have a place."""
    engines = {region: min(fleet.num_ready, fleet.max_engines) for region, fleet in survivors.items()}

    def places() -> int:
        return sum(count * survivors[region].places_per_engine for region, count in engines.items())

    while places() < total:
        open_to = [region for region, count in engines.items() if count < survivors[region].max_engines]
        if not open_to:
            break
        emptiest = min(open_to, key=lambda region: (engines[region] / survivors[region].max_engines, region))
        engines[emptiest] += 1
    return engines


def committed_load(committed_req_per_min: Mapping[str, int], num_regions: int) -> Sequence[str]:
    """A line a class: what each survivor's floor was sized for, with one of `num_regions` lost."""
    left = max(1, num_regions - 1)
    return [
        f"{model_class}: {load} requests a minute are committed, {-(-load // left)} by each of {left}"
        for model_class, load in committed_req_per_min.items()
    ]
