"""What a step of a failover is, and what it may look at.

A step does one thing: it writes items. Its `check` looks whether it may be taken, `items` are what it writes, and `verify` looks
whether what should follow has followed. All three may be called again at any time, after a kill too, so they only read, and
the same facts give the same items. The texts are the runbook's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from infra.recovery.estate import Estate
from infra.recovery.guard import Guard
from infra.recovery.record import RunRecord
from infra.recovery.table import FailoverTable
from policies.failover.capacity import ClassPlan, plan_class
from policies.failover.items import Item
from policies.failover.reports import RegionReport, regions_of


@dataclass(frozen=True)
class Options:
    """What the operator has decided."""

    accept_shedding: bool = False
    """Go on although the survivors cannot carry everything."""
    api_key: str = ""
    """For synthetic requests."""


@dataclass
class Run:
    """What a step may look at. Nothing of it needs the lost region."""

    estate: Estate
    guard: Guard
    record: RunRecord
    tables: Mapping[str, FailoverTable]
    """One for each region that may be asked, the record's seat first."""
    options: Options
    clock: Callable[[], float]

    @property
    def lost(self) -> str:
        """The region that is left or comes back."""
        return self.record.lost

    @property
    def seat(self) -> FailoverTable:
        """The table that the run writes."""
        return self.tables[self.record.seat]

    @property
    def survivors(self) -> list[str]:
        """Every region but the lost one."""
        return self.estate.survivors(self.lost)

    def reports(self) -> dict[str, RegionReport]:
        """What every region last said, as the seat's region has it."""
        return regions_of(self.seat.reports())

    def plan(self) -> list[ClassPlan]:
        """How each class fares on the survivors alone."""
        told = self.reports()
        lost, here = told.get(self.lost), {region: told[region] for region in self.survivors if region in told}
        has_moved = lost is not None and lost.has_moved(self.clock(), self.estate.moves_within_s)
        classes = sorted({name for report in told.values() for name in report.fleets})
        return [
            plan_class(
                name,
                lost.fleets.get(name) if lost is not None else None,
                {region: report.fleets[name] for region, report in here.items() if name in report.fleets},
                has_moved=has_moved,
            )
            for name in classes
        ]


@dataclass(frozen=True)
class Step:
    """One step. Texts are sentences of the runbook."""

    name: str
    does: str
    why: str
    expect: str
    """What is seen when it went well."""
    if_it_fails: str
    to_undo: str
    takes: str
    check: Callable[[Run], str]
    """What was found; raises UserError where the step must not be taken."""
    items: Callable[[Run], Sequence[Item]]
    verify: Callable[[Run], str | None]
    """What was seen; None: not yet."""
    timeout_s: float = 30.0
    """How long `verify` is asked."""
    is_essential: bool = True
    """Without its verification the run stops; else the run goes on and the report says so."""
    undo: Callable[[Run], Sequence[Item]] = lambda _: ()
