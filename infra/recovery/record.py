"""The record of a failover or failback: one item in a surviving region, written before and after each step.

Whoever runs it holds a lease on it, so two operators do not run it at once; the lease of one that was killed runs out, or is
taken at once where its process is known to be gone. So a run that was killed goes on with the step it was in.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from infra.errors import UserError
from infra.recovery.table import Changed, FailoverTable
from policies.failover.items import RUN

LEASE_S = 30.0
"""Renewed by every write and every second of waiting."""


class Kind(StrEnum):
    """What is run."""

    FAILOVER = "failover"
    FAILBACK = "failback"


class State(StrEnum):
    """Of a run or of a step."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    UNVERIFIED = "unverified"
    """Done, and what should follow was not seen in time: the run goes on, and the report says so."""
    FAILED = "failed"
    PLANNED = "planned"
    """What a dry run says of a step that it would have taken."""
    UNDONE = "undone"
    ABORTED = "aborted"


TAKEN = frozenset({State.DONE, State.UNVERIFIED})
"""A step in one of these is not taken again."""


@dataclass
class StepRecord:
    """What became of one step."""

    name: str
    state: State = State.PENDING
    reason: str = ""
    """What its precondition found; or why it failed."""
    wrote: list[str] = field(default_factory=list)
    seen: str = ""
    """What its verification saw."""
    started_at_s: float = 0.0
    took_s: float = 0.0


@dataclass
class RunRecord:
    """A run, its steps in order."""

    run_id: str
    kind: Kind
    lost: str
    seat: str
    """The surviving region that holds this record."""
    by: str
    reason: str
    started_at_s: float
    steps: list[StepRecord]
    state: State = State.RUNNING
    ended_at_s: float = 0.0
    is_dry_run: bool = False
    owner: str = ""
    """`user@host:pid` of who runs it now; empty while nobody does."""
    lease_until_s: float = 0.0
    revision: int = 0

    def step(self, name: str) -> StepRecord:
        """The record of the step `name`."""
        return next(step for step in self.steps if step.name == name)

    def as_values(self) -> dict[str, Any]:
        """Plain values, as `--json` prints and the table keeps them."""
        return asdict(self)


def operator() -> str:
    """Who runs this: user and host."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def read_run(table: FailoverTable, lost: str) -> RunRecord | None:
    """The newest run for `lost`, as the table's region has it."""
    values = table.get_values((RUN, lost))
    if values is None:
        return None
    steps = [StepRecord(**{**its, "state": State(its["state"])}) for its in values.pop("steps")]
    kept = {name: value for name, value in values.items() if name not in ("pk", "sk")}
    return RunRecord(**{**kept, "kind": Kind(kept["kind"]), "state": State(kept["state"]), "steps": steps})


class RunLog:
    """Keeps a run's record up to date. In a dry run nothing is written anywhere."""

    def __init__(self, table: FailoverTable, record: RunRecord, clock: Callable[[], float]) -> None:
        self.record = record
        self._table = table
        self._clock = clock
        self._owner = f"{operator()}:{os.getpid()}"

    def begin(self, before: RunRecord | None) -> None:
        """Takes the place of `before`, which has ended and is kept under its run's id; or takes up a run again.

        Raises:
            UserError: somebody else runs it.
        """
        now_s = self._clock()
        if before is not None and before.run_id == self.record.run_id:
            self.check_free(before, now_s)
        if self.record.is_dry_run:
            return
        if before is not None and before.run_id != self.record.run_id:
            kept = {**before.as_values(), "pk": RUN, "sk": f"{before.lost}#{before.run_id}"}
            with suppress(Changed):  # kept already, by a run that was killed here
                self._table.put_if(kept, 0)
        self.record.revision = before.revision if before is not None else 0
        self.save()

    def check_free(self, record: RunRecord, now_s: float) -> None:
        """Passes where nobody else runs `record` now.

        Raises:
            UserError: somebody does.
        """
        if record.owner in ("", self._owner) or record.lease_until_s < now_s or _is_gone(record.owner):
            return
        raise UserError(
            f"{record.owner} is running this {record.kind} (run {record.run_id})",
            f"`flotilla failover status {record.lost}` shows it; had it died, this works in {record.lease_until_s - now_s:.0f} s",
        )

    def save(self) -> None:
        """Writes the record and renews the lease.

        Raises:
            UserError: somebody else has taken the run over.
        """
        if self.record.is_dry_run:
            return
        is_ended = self.record.state is not State.RUNNING
        self.record.owner = "" if is_ended else self._owner
        self.record.lease_until_s = 0.0 if is_ended else self._clock() + LEASE_S
        try:
            self._table.put_if({"pk": RUN, "sk": self.record.lost, **self.record.as_values()}, self.record.revision)
        except Changed as error:
            raise UserError(
                f"somebody else has taken up run {self.record.run_id} for {self.record.lost}",
                f"watch it with `flotilla failover status {self.record.lost}`; nothing is lost",
            ) from error
        self.record.revision += 1

    def renew(self) -> None:
        """Renews the lease where half of it is gone; called while waiting."""
        if not self.record.is_dry_run and self.record.lease_until_s - self._clock() < LEASE_S / 2:
            self.save()


def _is_gone(owner: str) -> bool:
    """`owner` was a process of this machine, and it is not there any more."""
    who, _, pid = owner.rpartition(":")
    if who != operator() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def new_steps(names: Sequence[str]) -> list[StepRecord]:
    """Records of steps that are all to be taken."""
    return [StepRecord(name) for name in names]
