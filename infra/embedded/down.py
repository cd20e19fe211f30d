"""Takes everything down: drains, ends every process, closes every port. What was acknowledged stays in the folder."""

from __future__ import annotations

from infra.embedded import access, faults, lifecycle
from infra.embedded import state as files
from infra.embedded.desired import Desired, Status
from infra.embedded.progress import Steps
from infra.embedded.state import State


def down(state: State, *, purge: bool, steps: Steps) -> bool:
    """Ends what runs, and with `purge` removes the state folder too; whether anything ran. Safe to repeat, and after any kill.

    Raises:
        UserError: an `up` is at work on the folder.
    """
    if not state.root.is_dir():
        return False

    def show(status: Status) -> None:
        steps.step("Drain and stop", detail=f"{len(status.pods)} pods left")

    with files.exclusively(state):
        steps.step("Drain and stop")
        was_up = lifecycle.end_agent(state, show)
        steps.result("")
        if state.desired_file.exists():
            files.write_json(state.desired_file, Desired())
        state.status_file.unlink(missing_ok=True)
        access.set_aside(state)
        faults.heal_all(state)
        if purge:
            steps.step("Remove the state")
            lifecycle.purge(state)
    return was_up
