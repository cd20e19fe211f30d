"""The engine's processes: started as one group, ended as one group.

An engine is a tree (vLLM: the API server, its core, its workers), and its parts can outlive each other. They share a process
group of their own in the supervisor's session, so that a signal reaches all of them and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.engine import tether

GONE_TIMEOUT_S = 10.0
"""The kernel frees a killed process's memory before it is gone; with hundreds of GB that takes seconds."""
POLL_S = 0.05


def adopt_orphans(adopt: bool = True) -> None:
    """Makes this process the parent of what an engine leaves behind, as a container's first process is, to wait for it."""
    tether.prctl(tether.PR_SET_CHILD_SUBREAPER, int(adopt))


class EngineProcess:
    """An engine that was started. The group's id is the main process's."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ended = asyncio.ensure_future(process.wait())
        self._is_gone = False

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> EngineProcess:
        """Starts `command`; its output goes where the supervisor's goes."""
        tethered = (sys.executable, "-SE", tether.__file__, *command)  # without site-packages it starts in a few milliseconds
        process = await asyncio.create_subprocess_exec(
            *tethered, env=dict(environment), cwd=folder, stdin=asyncio.subprocess.DEVNULL, process_group=0
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The main process, and the group."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Of the main process; negative for a signal, None while it lives."""
        return self._process.returncode

    async def ended_within(self, timeout_s: float) -> bool:
        """Whether the main process ends within `timeout_s`; returns as soon as it does."""
        await asyncio.wait({self._ended}, timeout=timeout_s)
        return self._ended.done()

    async def stop(self, grace_s: float) -> None:
        """Asks the main process to end, and kills what is left of the group after `grace_s`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        await self.ended_within(grace_s)
        await self.kill()

    async def kill(self) -> None:
        """Kills the whole group and waits until it is gone, its port and memory with it."""
        if self._is_gone:  # its number may be another's by now
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._ended
        deadline = asyncio.get_running_loop().time() + GONE_TIMEOUT_S
        while self._has_members() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 (nobody tells of a grandchild)
            await asyncio.sleep(POLL_S)
        self._is_gone = True

    def _has_members(self) -> bool:
        """Takes leave of members that have ended and were left to us, then looks whether any is left."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True
