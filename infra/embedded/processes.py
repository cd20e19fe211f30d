"""Starts a container's process and ends it with everything it left behind.

A container is one process in a session of its own. Its descendants may start further sessions, change their title (which
wipes the environment that /proc shows) or outlive their parent, so a process belongs to a container when one of these holds:
it carries the container's marker in its environment; its environment is wiped and it works below the container's folder; it
is of the container's session; its parent belongs. Signals go through a pidfd whose start time is compared with that of the
process that was found, so a process id that the kernel has given to a stranger meanwhile is never hit.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.embedded.desired import MARKER

_INTACT = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*=")
"""How an environment begins that no title has been written over."""
KILL_ROUNDS = 50
"""A process may fork while its siblings are being killed, so the search is repeated until it finds nobody."""


@dataclass(frozen=True)
class Process:
    """A line of /proc. `started` is in clock ticks since boot."""

    pid: int
    parent: int
    session: int
    started: int
    is_zombie: bool


@dataclass(frozen=True)
class Membership:
    """Whose processes these are: those of one container, or of a whole state folder."""

    marker: str
    """Value of the marker variable, or a beginning of it that ends in `/`."""
    folder: Path
    session: int = 0
    """Session of a main process that has not been waited for, so that its number is still its own; 0 if there is none."""


def spawn(command: Sequence[str], env: Mapping[str, str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Starts `command` in `folder`, in a new session, writing to `log`; the log of the time before stays as `<log>.previous`.

    Raises:
        OSError: there is no such command, or no folder to write to.
    """
    if log.exists():
        log.replace(log.with_name(f"{log.name}.previous"))
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def members(whose: Membership) -> list[Process]:
    """The living processes that belong."""
    processes = {process.pid: process for process in _processes()}
    sessions = {whose.session} - {0}
    found = {pid for pid, process in processes.items() if process.session in sessions or _carries(pid, whose)}
    grew = True
    while grew:  # until closed under parenthood and under sessions that members lead
        sessions |= {pid for pid in found if processes[pid].session == pid}
        more = {pid for pid, process in processes.items() if process.parent in found or process.session in sessions} - found
        found |= more
        grew = bool(more)
    return [processes[pid] for pid in sorted(found) if not processes[pid].is_zombie]


def end_all(whose: Membership, grace_s: float) -> int:
    """SIGTERM to every process that belongs, then SIGKILL to those that are still there `grace_s` later; how many there were."""
    found = members(whose)
    for process in found:
        signal_process(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and members(whose):
        time.sleep(0.05)
    kill_all(whose)
    return len(found)


def kill_all(whose: Membership) -> int:
    """SIGKILLs every process that belongs, until there is none; the number killed."""
    num_killed = 0
    for _ in range(KILL_ROUNDS):
        found = members(whose)
        if not found:
            break
        num_killed += sum(signal_process(process, signal.SIGKILL) for process in found)
        time.sleep(0.01)
    return num_killed


def signal_process(process: Process, number: signal.Signals) -> bool:
    """Sends a signal; False if the process has gone, whoever has its number now."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = _process(process.pid)
        if now is None or now.started != process.started:
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _processes() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := _process(int(entry.name))):
            yield process


def _process(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold spaces and parentheses
    return Process(pid, parent=int(fields[1]), session=int(fields[3]), started=int(fields[19]), is_zombie=fields[0] in "ZX")


def _carries(pid: int, whose: Membership) -> bool:
    prefix = f"{MARKER}={whose.marker}".encode()
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        if any(item == prefix or (prefix.endswith(b"/") and item.startswith(prefix)) for item in environ.split(b"\0")):
            return True
        folder = str(whose.folder)
        cwd = str(Path(f"/proc/{pid}/cwd").readlink()).removesuffix(" (deleted)")
        return not _INTACT.match(environ) and (cwd == folder or cwd.startswith(f"{folder}/"))
    except OSError:
        return False
