"""Takes the steps of a run, one after the other, and keeps its record.

Each step is written down as running before anything of it is done, and as done when its verification has seen what should follow.
So a run that is killed anywhere goes on, when it is started again, with the step it was in; steps that are done are not taken
again. A step whose precondition does not hold stops the run before it has done anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from infra.errors import UserError
from infra.recovery.record import TAKEN, RunLog, State, StepRecord
from infra.recovery.step import Run, Step
from policies.failover.items import Item

POLL_S = 1.0
OnStep = Callable[[StepRecord], None]
Confirm = Callable[[Step], None]
"""Asked before a step is begun; raises where it must not be."""


class StepFailed(UserError):
    """A step did not come to its end; those before it hold, and the same command goes on from it."""


def take_steps(
    run: Run, steps: Sequence[Step], log: RunLog, sleep: Callable[[float], None], on_step: OnStep, confirm: Confirm
) -> None:
    """Takes every step that is not taken yet; `on_step` is told of each change.

    Raises:
        StepFailed: one did not come to its end.
    """
    for step in steps:
        record = log.record.step(step.name)
        if record.state in TAKEN:
            on_step(record)
            continue
        confirm(step)
        record.state, record.started_at_s = State.RUNNING, run.clock()
        log.save()
        on_step(record)
        try:
            record.reason = step.check(run)
            items = list(step.items(run))
            record.wrote = [describe(item) for item in items]
            if log.record.is_dry_run:
                record.state = State.PLANNED
            else:
                for item in items:
                    run.seat.put(item)
                record.seen = _wait(run, step, log, sleep, on_step) or ""
                record.state = State.DONE if record.seen else State.UNVERIFIED
        except UserError as error:
            record.state, record.reason = State.FAILED, error.message
            record.took_s = run.clock() - record.started_at_s
            log.save()
            on_step(record)
            raise StepFailed(f"{step.name}: {error.message}", error.hint or step.if_it_fails) from error
        record.took_s = run.clock() - record.started_at_s
        log.save()
        on_step(record)
    log.record.state = State.PLANNED if log.record.is_dry_run else State.DONE
    log.record.ended_at_s = run.clock()
    log.save()


def undo_steps(run: Run, steps: Sequence[Step], log: RunLog, on_step: OnStep) -> None:
    """Takes back what was done, the last first, and ends the run as aborted."""
    log.save()
    for step in reversed(steps):
        record = log.record.step(step.name)
        if record.state is State.PENDING:
            continue
        items = list(step.undo(run))
        for item in items:
            run.seat.put(item)
        record.state, record.wrote = State.UNDONE, [describe(item) for item in items]
        log.save()
        on_step(record)
    log.record.state, log.record.ended_at_s = State.ABORTED, run.clock()
    log.save()


def describe(item: Item) -> str:
    """An item as a person reads it in a record: key and what it says."""
    told = {name: value for name, value in vars(item).items() if name not in ("region", "run_id", "by", "at_s", "reason")}
    return f"{' '.join(item.key)}: {', '.join(f'{name}={value}' for name, value in told.items())}"


def _wait(run: Run, step: Step, log: RunLog, sleep: Callable[[float], None], on_step: OnStep) -> str | None:
    """What the verification saw; None where it saw nothing in time and the step can do without.

    `on_step` is told why it waits, whenever that changes: a minute of silence at 3 a.m. looks like a hang.

    Raises:
        UserError: it saw nothing in time, and the step cannot.
    """
    deadline_s = run.clock() + step.timeout_s
    trouble, told = "nothing of it was seen", ""
    while True:
        try:
            seen = step.verify(run)
        except UserError as error:  # a survivor that does not answer may do so the next time
            seen, trouble = None, error.message
        if seen:
            return seen
        if run.clock() >= deadline_s:
            if step.is_essential:
                raise UserError(f"not seen within {step.timeout_s:.0f} s: {trouble}", step.if_it_fails)
            return None
        if trouble != told:
            why = f"waits up to {step.timeout_s:.0f} s: {trouble}; expected: {step.expect}"
            on_step(replace(log.record.step(step.name), seen=why))
            told = trouble
        log.renew()
        sleep(POLL_S)
