"""Starting, finding and ending the node agent, and waiting for what it was asked."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from infra.embedded import state as files
from infra.embedded.agent import end_leftovers
from infra.embedded.desired import Desired, PodStatus, Status
from infra.embedded.state import State
from serving.errors import UserError

POLL_S = 0.1
AGENT_START_TIMEOUT_S = 15
AGENT_END_SLACK_S = 30
"""Beyond the longest grace period; after it the agent is killed, and its processes with it."""
AGENT_ERROR_S = 2
"""An error that the agent still reports after this is not about the desired state of before."""
MAX_RESTARTS = 3
"""A container that has ended this often while we wait will not be ready by waiting."""


def ensure_agent(state: State) -> bool:
    """Starts the node agent of the folder unless it lives; whether it had to. What a killed one left is ended first.

    Raises:
        UserError: it does not come up; the message names its log.
    """
    if state.agent_pid():
        return False
    state.status_file.unlink(missing_ok=True)
    log = state.logs / "agent.log"
    if log.exists():
        log.replace(log.with_name("agent.log.previous"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.embedded.agent", str(state.root)],
            cwd=state.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + AGENT_START_TIMEOUT_S
    while not ((status := state.status()) and status.pid == process.pid):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"{log}: the node agent did not start: {_last_line(log.read_text())}", "see that file")
        time.sleep(POLL_S)
    return True


def hand_over(state: State, desired: Desired) -> None:
    """Gives the agent its new desired state; the same one again is not even written."""
    if state.desired() != desired:
        files.write_json(state.desired_file, desired)


def wait_for(state: State, keys: Iterable[str], deadline: float, on_poll: Callable[[Status], None] = lambda status: None) -> None:
    """Returns once the agent works on the desired state as it stands in the folder and the workloads `keys` are as they
    should be.

    Raises:
        UserError: the time is over, the agent has gone or refuses, or a container keeps ending; the message names it and its log.
    """
    wanted, began = set(keys), time.monotonic()
    digest = state.desired().digest
    restarts_before: dict[tuple[str, str], int] = {}
    while True:
        status = state.status()
        if not state.agent_pid() or status is None:
            raise UserError(f"{state.logs / 'agent.log'}: the node agent has ended", "run `flotilla up` again")
        if status.error and time.monotonic() - began > AGENT_ERROR_S:
            raise UserError(status.error, "run `flotilla down`, then `flotilla up`")
        waiting = {workload.key for workload in status.workloads if not workload.is_settled} & wanted
        if status.digest == digest and not waiting:
            return
        on_poll(status)
        for pod in status.pods:
            before = restarts_before.setdefault((pod.region, pod.name), pod.restarts)
            if pod.restarts - before >= MAX_RESTARTS and key_of(pod) in wanted:
                raise UserError(*_why(state, pod))
        if time.monotonic() > deadline:
            late = next((pod for pod in status.pods if not pod.ready and key_of(pod) in waiting), None)
            message, hint = _why(state, late) if late else (f"not ready: {', '.join(sorted(waiting))}", "see `flotilla status`")
            raise UserError(f"the time is over, and {message}", f"{hint}; or give it longer with --timeout-s")
        time.sleep(POLL_S)


def end_agent(state: State, on_poll: Callable[[Status], None] = lambda status: None) -> bool:
    """Drains and ends everything; whether there was anything. Returns when no process is left."""
    pid = state.agent_pid()
    if not pid:
        return end_leftovers(state) > 0
    deadline = time.monotonic() + AGENT_END_SLACK_S
    with contextlib.suppress(UserError):  # of another version: it is ended all the same
        deadline += max((workload.template.grace_s for workload in state.desired().workloads), default=0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while state.agent_pid() == pid and time.monotonic() < deadline:
            with contextlib.suppress(UserError):
                if status := state.status():
                    on_poll(status)
            time.sleep(POLL_S)
        if state.agent_pid() == pid:
            os.kill(pid, signal.SIGKILL)
            while state.agent_pid() == pid:
                time.sleep(POLL_S)
    end_leftovers(state)
    return True


def purge(state: State) -> None:
    """Removes the folder and all it holds; nothing may run."""
    shutil.rmtree(state.root, ignore_errors=True)
    if state.root.exists():
        raise UserError(f"{state.root}: cannot be removed entirely", "remove it by hand")


def key_of(pod: PodStatus) -> str:
    """Key of the pod's workload."""
    return f"{pod.region or 'global'}.{pod.namespace}.{pod.workload}"


def _why(state: State, pod: PodStatus) -> tuple[str, str]:
    """Message and hint for a pod that does not become ready: its container, the reason, and the last line it wrote."""
    container = min(pod.containers, key=lambda item: (item.ready, -item.restarts))
    log = state.logs / f"{pod.region or 'global'}.{pod.namespace}.{pod.name}.{container.name}.log"
    logs = [path for path in (log, log.with_name(f"{log.name}.previous")) if path.exists()]
    said = next(filter(None, (_last_line(path.read_text(errors="replace")) for path in logs)), "")
    problem = f"keeps ending: {container.last_end}" if container.last_end else f"is not ready: {container.reason}"
    return f"{pod.name}/{container.name} {problem}{f' ({said})' if said else ''}", f"see {log}, or `flotilla logs {pod.workload}`"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:200]
