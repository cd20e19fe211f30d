"""The steps by which a region comes back, in order. Its region is asked again, since all of them are about it."""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import UserError
from infra.naming import CONTROL_PATH, REGION_HEALTH_PATH
from infra.recovery.failover import check_key, end_takeover_items, lower_items, nothing, return_items, see_answers, thaw_items
from infra.recovery.releases import missing_releases
from infra.recovery.step import Run, Step
from policies.failover.items import CONTROL, DEPLOYS, FREEZE, TAKEOVER, Control, Freeze, Item, Takeover
from policies.failover.reports import FRESH_S

REPLICATION_S = 120.0
"""Global tables replicate within a second or so, and catch up after a region was cut off."""


def _check_back(run: Run) -> str:
    told = run.reports().get(run.lost)
    now_s = run.clock()
    if told is None or not told.is_fresh(now_s):
        ago = "has never reported" if told is None else f"last reported {told.age_s(now_s):.0f} s ago"
        raise UserError(
            f"{run.lost} {ago}: it is not back, or its tables do not replicate yet",
            f"start it; its gateways report every few seconds, and {FRESH_S:.0f} s is the longest that counts",
        )
    empty = [name for name, fleet in told.fleets.items() if not fleet.num_ready]
    if empty:
        raise UserError(
            f"{run.lost} has no engine ready of {', '.join(empty)}", "wait until engines are ready; cold starts take minutes"
        )
    faults = missing_releases(run, run.lost)
    if faults:
        raise UserError("; ".join(faults), "wait until its bucket has caught up")
    return f"{run.lost} reports, with {', '.join(f'{fleet.num_ready} engines of {name}' for name, fleet in told.fleets.items())}"


def _see_replicated(run: Run) -> str | None:
    """The evacuation must have reached the region's own replica: else its next read would say something older."""
    there = run.tables[run.lost].get(Control, (CONTROL, run.lost))
    here = run.seat.get(Control, (CONTROL, run.lost))
    return f"the tables of {run.lost} have caught up" if there == here else None


def _check_shipped(run: Run) -> str:
    takeover = run.seat.get(Takeover, (TAKEOVER, run.lost))
    return "the survivor shipped meanwhile" if takeover is not None and takeover.by_region else "nobody shipped for it meanwhile"


def _see_shipped(run: Run) -> str | None:
    """Every shipper of the region that is heard of says that no sealed segment waits on its volume."""
    now_s = run.clock()
    fresh = [told for told in run.seat.shipped(run.lost) if now_s - told.at_s <= FRESH_S]
    if not fresh or any(told.num_waiting for told in fresh):
        return None
    return f"{len(fresh)} shippers of {run.lost} have shipped all that their volumes held"


def _see_return(run: Run) -> str | None:
    said = {region: run.guard.get(f"{run.estate.region(region).url}{CONTROL_PATH}/{run.lost}").status for region in run.survivors}
    well = run.guard.get(f"{run.estate.region(run.lost).url}{REGION_HEALTH_PATH}").status == 200
    return f"{', '.join(said)} say that {run.lost} serves, and so does it" if set(said.values()) == {404} and well else None


def _still_out(run: Run) -> list[str]:
    """Other regions that are evacuated: each side of a partition may have left the other."""
    controls = {region: run.seat.get(Control, (CONTROL, region)) for region in run.survivors}
    return [region for region, control in controls.items() if control is not None and control.is_evacuated]


def _see_thaw(run: Run) -> str | None:
    if others := _still_out(run):
        return f"floors are lifted; deploys stay refused until {', '.join(others)} is back too"
    freeze = run.seat.get(Freeze, (FREEZE, DEPLOYS))
    return "floors are lifted, deploys are allowed" if freeze is not None and not freeze.is_frozen else None


def _end_items(run: Run) -> Sequence[Item]:
    return [*lower_items(run), *(() if _still_out(run) else thaw_items(run))]


def _check_report(run: Run) -> str:
    step = run.record.step("bring-back")
    return f"traffic came back after {step.started_at_s + step.took_s - run.record.started_at_s:.0f} s"


STEPS: tuple[Step, ...] = (
    Step(
        name="check-back",
        does="Looks whether the region is well: it reports, has engines of every class, and holds every release whole.",
        why="A region that comes back half is lost a second time, with users in it.",
        expect="Its engines by class; its tables have caught up.",
        if_it_fails="Leave it out. Nothing is urgent now: the survivors carry the load.",
        to_undo="It changes nothing.",
        takes="5 s, or as long as its tables take to catch up",
        check=_check_back,
        items=nothing,
        verify=_see_replicated,
        timeout_s=REPLICATION_S,
    ),
    Step(
        name="return-usage",
        does="Ends the takeover, and waits until the region has shipped what its volumes held.",
        why="Then the bills are whole: what it shipped before, what the survivor shipped for it, and the rest, each once.",
        expect="No sealed segment waits.",
        if_it_fails="Its shippers cannot reach the archive or the ledger: `flotilla logs` says why. They go on trying.",
        to_undo="It needs no undoing: rows are written once whoever writes them.",
        takes="10 s",
        check=_check_shipped,
        items=end_takeover_items,
        verify=_see_shipped,
        timeout_s=60.0,
        is_essential=False,
    ),
    Step(
        name="bring-back",
        does="Writes the control: the region serves again.",
        why="Health checks follow within their period, clients within 30 s of DNS.",
        expect="Survivors answer 404 at `/controls/REGION`, and the region answers 200 at `/region`.",
        if_it_fails="A survivor that still says 200 keeps the region out: nothing is lost by waiting. See its gateways' logs.",
        to_undo="`flotilla failover run REGION`.",
        takes="5 s",
        check=lambda run: "traffic comes back by health checks",
        items=return_items,
        verify=_see_return,
    ),
    Step(
        name="verify",
        does="Asks every class through the API's own address.",
        why="What clients see is what counts.",
        expect="An answer to each.",
        if_it_fails="`flotilla failover run REGION` takes it out again.",
        to_undo="It changes nothing.",
        takes="5 s",
        check=check_key,
        items=nothing,
        verify=see_answers,
        timeout_s=60.0,
    ),
    Step(
        name="lift",
        does="Lifts the floors and the freeze.",
        why="Survivors shrink by their own policy, slowly; deploys may go on.",
        expect="Deploys are allowed.",
        if_it_fails="Run the same command again.",
        to_undo="It needs no undoing.",
        takes="1 s",
        check=lambda run: "both regions serve",
        items=_end_items,
        verify=_see_thaw,
    ),
    Step(
        name="report",
        does="Says when traffic came back.",
        why="It ends the incident's timeline.",
        expect="Times.",
        if_it_fails="Read it again with `flotilla failover status REGION`.",
        to_undo="It changes nothing.",
        takes="1 s",
        check=_check_report,
        items=nothing,
        verify=lambda run: (
            run.record.step("return-usage").seen or "not all usage was seen shipped: `flotilla ledger verify` later"
        ),
    ),
)
