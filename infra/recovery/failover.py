"""The steps by which traffic leaves a region, in order. `STEPS` is also what the runbook is written from.

The order, and why: nobody deploys into what follows; nothing is moved to where it cannot be carried; the survivors begin to grow
before the traffic comes; then the region is evacuated; only then is its usage accounted for, since it may go on until it is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import UserError
from infra.naming import CONTROL_PATH
from infra.recovery.releases import missing_releases
from infra.recovery.step import Run, Step
from policies.failover.capacity import SHED_ORDER, committed_load
from policies.failover.items import CONTROL, DEPLOYS, FLOOR, FREEZE, SHIPPED, Control, Floor, Freeze, Item, TakenOver, Takeover

MAX_CLOCK_ERROR_S = 60.0
"""A tenth of the RTO. Reports and leases are compared by clock; AWS itself refuses an error of 15 minutes (5 for S3)."""
DRAIN_S = 60.0
"""Resolvers keep the API's name for 30 s, and health checks see a control within 10 s; then nobody new comes."""
NUM_SYNTHETIC = 3
QUESTION = "Reply with one word: ready"


def nothing(_: Run) -> Sequence[Item]:
    """For a step that only looks."""
    return ()


# declare


def _check_declare(run: Run) -> str:
    now_s = run.clock()
    for region in run.survivors:
        run.tables[region].get(Freeze, (FREEZE, DEPLOYS))
        error_s = run.tables[region].clock_error_s
        if abs(error_s) > MAX_CLOCK_ERROR_S:
            raise UserError(
                f"this machine's clock is {abs(error_s):.0f} s {'ahead of' if error_s > 0 else 'behind'} that of {region}",
                "set it (timedatectl set-ntp true), then run the same command again",
            )
    for region in run.survivors:
        control = run.seat.get(Control, (CONTROL, region))
        if control is not None and control.is_evacuated:
            raise UserError(
                f"{region} is evacuated itself (run {control.run_id}, by {control.by}): both would be out",
                f"bring it back first: flotilla failover failback {region}",
            )
    told = run.reports().get(run.lost)
    if told is None:
        return f"{run.lost} has never reported"
    state = "reports still" if told.is_fresh(now_s) else f"last reported {told.age_s(now_s):.0f} s ago"
    return f"{run.lost} {state}, with {told.num_in_flight} requests in flight"


# freeze-deploys


def _freeze_items(run: Run) -> Sequence[Item]:
    why = f"{run.lost} is left: {run.record.reason}"
    return [Freeze(True, why, run.record.run_id, run.record.by, run.clock())]


def _see_freeze(run: Run) -> str | None:
    freeze = run.seat.get(Freeze, (FREEZE, DEPLOYS))
    return "deploys are refused" if freeze is not None and freeze.is_frozen else None


def thaw_items(run: Run) -> Sequence[Item]:
    """Deploys are allowed again."""
    return [Freeze(False, f"{run.record.kind} {run.record.run_id} is over", run.record.run_id, run.record.by, run.clock())]


# check-survivors


def _check_survivors(run: Run) -> str:
    now_s, told = run.clock(), run.reports()
    silent = [region for region in run.survivors if region not in told or not told[region].is_fresh(now_s)]
    if len(silent) == len(run.survivors):
        raise UserError(
            f"no survivor reports ({', '.join(silent)}): nobody knows what they can carry",
            "see that gateways run there; a region that says nothing must not be sent traffic",
        )
    faults = [fault for region in run.survivors if region not in silent for fault in missing_releases(run, region)]
    if faults:
        raise UserError("; ".join(faults), "publish the release there (`flotilla release publish`), or wait for its replication")
    plans = run.plan()
    over = {plan.model_class: sum(plan.shed_most.values()) for plan in plans if not plan.is_carried}
    if over and not run.options.accept_shedding:
        what = ", ".join(f"{count} requests of {name}" for name, count in over.items())
        raise UserError(
            f"the survivors cannot carry {what}, however many engines start",
            f"see `flotilla failover plan {run.lost}`; --accept-shedding goes on, {SHED_ORDER[0]} is shed first",
        )
    return "; ".join(
        f"{plan.model_class}: {plan.wanted} in flight, {plan.places_now} places now, {plan.places_most} at most" for plan in plans
    )


def _see_survivors(run: Run) -> str | None:
    load = "; ".join(committed_load(run.estate.committed_req_per_min, len(run.estate.regions)))
    return f"releases of every class are whole in {', '.join(run.survivors)}. {load}"


# raise-floors


def _floor_items(run: Run) -> Sequence[Item]:
    now_s = run.clock()
    return [
        Floor(region, plan.model_class, engines, run.record.run_id, now_s)
        for plan in run.plan()
        for region, engines in sorted(plan.engines.items())
    ]


def _see_floors(run: Run) -> str | None:
    """By what was written, not by a new plan: requests come and go meanwhile."""
    told = run.reports()
    for region, model_class in _served(run):
        floor = run.seat.get(Floor, (FLOOR, f"{region}#{model_class}"))
        if floor is not None and told[region].min_engines[model_class] < floor.min_engines:
            return None
    return "the survivors' scaling policies keep these floors; engines start now"


def lower_items(run: Run) -> Sequence[Item]:
    """No floors any more, in every survivor."""
    return [Floor(region, model_class, 0, run.record.run_id, run.clock()) for region, model_class in _served(run)]


def _served(run: Run) -> list[tuple[str, str]]:
    """(survivor, class) of every fleet that a survivor has told of."""
    told = run.reports()
    return [(region, name) for region in run.survivors if region in told for name in sorted(told[region].fleets)]


# evacuate


def _check_evacuate(run: Run) -> str:
    well = []
    for region in run.survivors:
        if run.guard.get(f"{run.estate.region(region).url}/region").status == 200:
            well.append(region)
    if not well:
        raise UserError(
            "no survivor says that it should receive traffic",
            "ask each why: its address and /region; an evacuation now would leave nobody",
        )
    return f"{', '.join(well)} can receive traffic"


def _evacuate_items(run: Run) -> Sequence[Item]:
    record = run.record
    return [Control(run.lost, True, record.reason, record.run_id, record.by, run.clock())]


def _see_evacuation(run: Run) -> str | None:
    """Every survivor that answers says so: one is enough for health checks, and one that is left out would bring traffic back."""
    said = {region: run.guard.get(f"{run.estate.region(region).url}{CONTROL_PATH}/{run.lost}").status for region in run.survivors}
    return f"{', '.join(said)} tell health checks that {run.lost} is out" if set(said.values()) == {200} else None


def return_items(run: Run) -> Sequence[Item]:
    """The region serves again."""
    record = run.record
    return [Control(run.lost, False, f"{record.kind} {record.run_id}: brought back", record.run_id, record.by, run.clock())]


# drain


def _see_drained(run: Run) -> str | None:
    told = run.reports().get(run.lost)
    if told is None or not told.is_fresh(run.clock()):
        return f"abandoned: {run.lost} says nothing, so nobody can wait for it"
    return f"{run.lost} has no request in flight" if not told.num_in_flight else None


# take-over-usage


def _takeover_items(run: Run) -> Sequence[Item]:
    return [Takeover(run.lost, run.record.seat, run.record.run_id, run.clock())]


def _see_takeover(run: Run) -> str | None:
    done = run.seat.get(TakenOver, (SHIPPED, f"{run.lost}#by"))
    if done is None or done.run_id != run.record.run_id:
        return None
    return (
        f"{done.num_segments} archived segments of {run.lost} are in the ledger, {done.num_new_rows} rows of them new; "
        f"the newest was archived at {done.newest_sealed_at or 'no time'}: what came later is on its volumes"
    )


def end_takeover_items(run: Run) -> Sequence[Item]:
    """The region accounts for its usage itself."""
    return [Takeover(run.lost, "", run.record.run_id, run.clock())]


# verify


def check_key(run: Run) -> str:
    """Passes with a key for synthetic requests."""
    if not run.options.api_key:
        raise UserError("there is no API key for synthetic requests", "set FLOTILLA_API_KEY to one that may use every class")
    return f"{NUM_SYNTHETIC} requests a class through {_asked(run)}"


def _asked(run: Run) -> str:
    """The API's own address; where no edge stands before the regions, that of the region which keeps the record."""
    return run.estate.api_url or run.estate.region(run.record.seat).url


def see_answers(run: Run) -> str | None:
    """Every class that some surviving region can serve answers through the API's own address."""
    told = run.reports()
    classes = sorted(
        {name for region in run.survivors if region in told for name, its in told[region].fleets.items() if its.num_ready}
    )
    for model_class in classes:
        body = {"model": model_class, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1, "temperature": 0}
        for _ in range(NUM_SYNTHETIC):
            answer = run.guard.get(f"{_asked(run)}/v1/chat/completions", key=run.options.api_key, body=body)
            if answer.status != 200:
                code = (answer.json() or {}).get("error", {}).get("code", "no reason given")
                raise UserError(f"{model_class} answers {answer.status} ({code})")
    return f"{NUM_SYNTHETIC} answers of each of {', '.join(classes)}" if classes else None


# report


def _check_report(run: Run) -> str:
    lines = []
    for name in ("evacuate", "verify"):
        step = run.record.step(name)
        lines.append(f"{name} after {step.started_at_s + step.took_s - run.record.started_at_s:.0f} s")
    unseen = [step.name for step in run.record.steps if step.state == "unverified"]
    return "; ".join(lines) + (f"; not seen in time: {', '.join(unseen)}" if unseen else "")


def _see_report(run: Run) -> str | None:
    takeover = run.record.step("take-over-usage").seen or "what was archived is not accounted for yet"
    return f"usage: {takeover}. Nothing of it is lost: volumes come back with {run.lost}, and `failback` reconciles"


STEPS: tuple[Step, ...] = (
    Step(
        name="declare",
        does="Opens the record of this run in a surviving region and takes the lease on it.",
        why="One operator at a time, and a record that outlives the region, this machine and you.",
        expect="What the lost region last said, and when.",
        if_it_fails="Read the line: another run, a clock, credentials or a second evacuated region. Nothing has been done yet.",
        to_undo="`flotilla failover abort REGION`.",
        takes="2 s",
        check=_check_declare,
        items=nothing,
        verify=lambda run: f"run {run.record.run_id}, recorded in {run.record.seat}",
    ),
    Step(
        name="freeze-deploys",
        does="Writes the freeze: `flotilla deploy` and the workflows refuse from now on.",
        why="A deployment in the middle of a failover changes what has just been checked.",
        expect="Deploys are refused.",
        if_it_fails="The table in the survivor cannot be written: try again; with another survivor, `--from REGION`.",
        to_undo="`abort` and `failback` take it back.",
        takes="1 s",
        check=lambda run: "nobody needs to agree",
        items=_freeze_items,
        verify=_see_freeze,
        undo=thaw_items,
    ),
    Step(
        name="check-survivors",
        does="Looks whether the survivors have engines, places and releases for all that the lost region carried.",
        why="Traffic that is moved to where it cannot be served is lost twice.",
        expect="By class: requests in flight, places now, places at most; releases whole.",
        if_it_fails=(
            "Too small: `flotilla failover plan REGION` shows who would be shed; `--accept-shedding` goes on. A missing release "
            "must be published or replicated first."
        ),
        to_undo="It changes nothing.",
        takes="5 s",
        check=_check_survivors,
        items=nothing,
        verify=_see_survivors,
    ),
    Step(
        name="raise-floors",
        does="Writes a floor for each class in each survivor: as many engines as all the traffic needs.",
        why="Autoscaling would start them too, after the traffic has come.",
        expect="The survivors' scaling policies name these floors; engines start.",
        if_it_fails="The run goes on without. See `flotilla_desired_replicas` there: its leader gateway may be down.",
        to_undo="`abort` and `failback` write floors of 0.",
        takes="10 s, and minutes until engines are ready",
        check=lambda run: "; ".join(f"{plan.model_class}: {plan.engines}" for plan in run.plan()),
        items=_floor_items,
        verify=_see_floors,
        timeout_s=15.0,
        is_essential=False,
        undo=lower_items,
    ),
    Step(
        name="evacuate",
        does="Writes the control: the region is out. The survivors' gateways tell it to health checks.",
        why="It needs neither the region nor a control plane, and works on a region that only half fails.",
        expect="Every survivor answers 200 at `/controls/REGION`.",
        if_it_fails="A survivor's gateways cannot read their table or do not answer: see `/region` there.",
        to_undo="`abort`, or `failback` once the region is well.",
        takes="5 s; clients follow within 10 s of health checks and 30 s of DNS",
        check=_check_evacuate,
        items=_evacuate_items,
        verify=_see_evacuation,
        undo=return_items,
    ),
    Step(
        name="drain",
        does="Waits until the region has no request in flight, or until it says nothing any more.",
        why="Streams that still run there end by themselves; a region that is gone has none to wait for.",
        expect="No request in flight, or: abandoned.",
        if_it_fails="The run goes on: who is still served there may stay.",
        to_undo="It changes nothing.",
        takes=f"up to {DRAIN_S:.0f} s",
        check=lambda run: "whoever is served there may finish",
        items=nothing,
        verify=_see_drained,
        timeout_s=DRAIN_S,
        is_essential=False,
    ),
    Step(
        name="take-over-usage",
        does="Tells the survivor's shippers to account for what the region has archived and not accounted for.",
        why="Bills and budgets must not wait for the region.",
        expect="How many segments, how many rows were new, and up to when.",
        if_it_fails="The run goes on; the shippers do it when they can. `flotilla logs` of the survivor's gateways says why.",
        to_undo="`failback` ends it. Rows are written once whoever writes them.",
        takes="10 s",
        check=lambda run: f"{run.record.seat} takes it over",
        items=_takeover_items,
        verify=_see_takeover,
        timeout_s=30.0,
        is_essential=False,
        undo=end_takeover_items,
    ),
    Step(
        name="verify",
        does=f"Asks every class {NUM_SYNTHETIC} questions through the API's own address.",
        why="What clients see is what counts.",
        expect="An answer to each.",
        if_it_fails="Ask the survivor by its own name: if that works, DNS or the edge still names the lost region.",
        to_undo="It changes nothing.",
        takes="5 s",
        check=check_key,
        items=nothing,
        verify=see_answers,
        timeout_s=60.0,
    ),
    Step(
        name="report",
        does="Adds up how long it took and what is known of usage.",
        why="The RTO and the RPO are what you will be asked for.",
        expect="Times, and the bound on what has not been shipped.",
        if_it_fails="Read it again with `flotilla failover status REGION`.",
        to_undo="It changes nothing.",
        takes="1 s",
        check=_check_report,
        items=nothing,
        verify=_see_report,
    ),
)
