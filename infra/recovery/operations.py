"""What `flotilla failover` does: plan, run, status, abort, failback. The commands print; this is what they call."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from infra.errors import UserError
from infra.recovery import failback, failover
from infra.recovery.estate import Estate
from infra.recovery.guard import Guard
from infra.recovery.record import Kind, RunLog, RunRecord, State, new_steps, operator, read_run
from infra.recovery.runner import Confirm, OnStep, take_steps, undo_steps
from infra.recovery.step import Options, Run, Step
from infra.recovery.table import FailoverTable
from policies.failover.capacity import ClassPlan, committed_load
from policies.failover.items import RUN
from policies.failover.reports import RegionReport

STEPS: Mapping[Kind, Sequence[Step]] = {Kind.FAILOVER: failover.STEPS, Kind.FAILBACK: failback.STEPS}


@dataclass(frozen=True)
class Plan:
    """What leaving a region would mean now."""

    lost: str
    reports: Mapping[str, RegionReport]
    classes: Sequence[ClassPlan]
    committed: Sequence[str]


@dataclass
class Recovery:
    """Failovers of one environment. `seat` is the surviving region that keeps records; None takes the first that answers."""

    estate: Estate
    options: Options = field(default_factory=Options)
    seat: str | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    on_step: OnStep = lambda _: None
    confirm: Confirm = lambda _: None
    by: str = field(default_factory=operator)

    def plan(self, lost: str) -> Plan:
        """What `lost` carries, what the others would carry of it, and who would be shed.

        Raises:
            UserError: there is no such region, or no survivor answers.
        """
        run = self._run_of(self._new(lost, Kind.FAILOVER, "plan", is_dry_run=True))
        return Plan(lost, run.reports(), run.plan(), committed_load(self.estate.committed_req_per_min, len(self.estate.regions)))

    def status(self, lost: str) -> RunRecord | None:
        """The newest run for `lost`."""
        return read_run(self._seat_table(lost), lost)

    def failover(self, lost: str, reason: str, *, is_dry_run: bool = False) -> RunRecord:
        """Takes traffic out of `lost`, or goes on with a run that has begun.

        Raises:
            UserError: it is out already, or a step did not come to its end.
        """
        before = self.status(lost)
        if before is not None and before.kind is Kind.FAILOVER and before.state is State.DONE:
            _is_out_already(before)
        if before is not None and before.kind is Kind.FAILBACK and before.state is State.RUNNING:
            RunLog(self._seat_table(lost), before, self.clock).check_free(before, self.clock())
        return self._take(lost, Kind.FAILOVER, reason, before, is_dry_run=is_dry_run)

    def failback(self, lost: str, reason: str, *, is_dry_run: bool = False) -> RunRecord:
        """Brings `lost` back, or goes on with bringing it back.

        Raises:
            UserError: it is not out, or a step did not come to its end.
        """
        before = self.status(lost)
        if before is None or before.state is State.ABORTED or (before.kind is Kind.FAILBACK and before.state is State.DONE):
            raise UserError(f"{lost} is not failed over", f"see `flotilla failover status {lost}`")
        if before.kind is Kind.FAILOVER and before.state is not State.DONE:
            raise UserError(
                f"the failover of {lost} (run {before.run_id}) is not over",
                f"finish it with `flotilla failover run {lost}`, or take it back with `flotilla failover abort {lost}`",
            )
        return self._take(lost, Kind.FAILBACK, reason, before, is_dry_run=is_dry_run)

    def abort(self, lost: str) -> RunRecord:
        """Takes back what an unfinished failover of `lost` has done.

        Raises:
            UserError: there is none.
        """
        before = self.status(lost)
        if before is None or before.kind is not Kind.FAILOVER or before.state is not State.RUNNING:
            raise UserError(
                f"no failover of {lost} is under way", f"`flotilla failover failback {lost}` brings back one that is over"
            )
        run = self._run_of(before)
        log = RunLog(run.seat, before, self.clock)
        log.check_free(before, self.clock())
        undo_steps(run, STEPS[Kind.FAILOVER], log, self.on_step)
        return before

    def _take(self, lost: str, kind: Kind, reason: str, before: RunRecord | None, *, is_dry_run: bool) -> RunRecord:
        goes_on = before is not None and before.kind is kind and before.state is State.RUNNING and not is_dry_run
        record = before if goes_on and before is not None else self._new(lost, kind, reason, is_dry_run=is_dry_run)
        run = self._run_of(record)
        log = RunLog(run.seat, record, self.clock)
        log.begin(before)
        take_steps(run, STEPS[kind], log, self.sleep, self.on_step, self.confirm)
        return record

    def _new(self, lost: str, kind: Kind, reason: str, *, is_dry_run: bool) -> RunRecord:
        now_s = self.clock()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_s))
        return RunRecord(
            run_id=f"{stamp}-{secrets.token_hex(2)}",
            kind=kind,
            lost=lost,
            seat=self._seat_table(lost).region,
            by=self.by,
            reason=reason,
            started_at_s=now_s,
            steps=new_steps([step.name for step in STEPS[kind]]),
            is_dry_run=is_dry_run,
        )

    def _run_of(self, record: RunRecord) -> Run:
        """Everything a run may look at: for a failover without the lost region, for a failback with it."""
        lost = record.lost
        guard = Guard(self.estate, lost if record.kind is Kind.FAILOVER else "")
        asked = [record.seat, *(region for region in self.estate.survivors(lost) if region != record.seat)]
        if record.kind is Kind.FAILBACK:
            asked.append(lost)
        tables = {region: FailoverTable(guard, self.estate.failover_table, region) for region in asked}
        return Run(self.estate, guard, record, tables, self.options, self.clock)

    def _seat_table(self, lost: str) -> FailoverTable:
        """The table of the region that keeps the record of `lost`: the one named, or the first survivor that answers.

        Raises:
            UserError: the named one is no survivor, or none answers.
        """
        survivors = self.estate.survivors(lost)
        if self.seat is not None and self.seat not in survivors:
            raise UserError(f"--from {self.seat} is not a survivor of {lost}", f"name one of {', '.join(survivors)}")
        guard = Guard(self.estate, lost)
        trouble: UserError | None = None
        for region in [self.seat] if self.seat is not None else survivors:
            table = FailoverTable(guard, self.estate.failover_table, region)
            try:
                table.get_values((RUN, lost))
            except UserError as error:
                trouble = trouble or error
            else:
                return table
        assert trouble is not None
        raise trouble


def _is_out_already(record: RunRecord) -> NoReturn:
    at = time.strftime("%H:%M:%S UTC", time.gmtime(record.ended_at_s))
    raise UserError(
        f"{record.lost} is failed over already (run {record.run_id}, by {record.by}, done at {at})",
        f"see `flotilla failover status {record.lost}`; `flotilla failover failback {record.lost}` brings it back",
    )
