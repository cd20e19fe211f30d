"""A pod as a group of processes: started, probed, restarted with back-off, and ended as the kubelet would.

A container that ends is started again: at once the first time, then after 10 s, doubling to 5 min, from the beginning once
it has run for 10 min. Its end takes its whole family with it (`processes`). To stop is: not ready from that moment, preStop,
SIGTERM to the main process, the rest of the grace period, SIGKILL to all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

from infra.embedded.desired import Action, Container, ContainerStatus, PodStatus, Probe, Template
from infra.embedded.folders import PodIdentity, command_line
from infra.embedded.probes import ask
from infra.embedded.processes import kill_all, spawn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestartPolicy:
    """Delays between a container's end and its next start; the defaults are the kubelet's, but for the first."""

    first_s: float = 0
    base_s: float = 10
    max_s: float = 300
    healthy_after_s: float = 600

    def delay_s(self, num_failures: int) -> float:
        """The delay after this many restarts in a row: 0 gives `first_s`, 1 `base_s`, then doubling."""
        return self.first_s if num_failures == 0 else float(min(self.base_s * 2 ** (num_failures - 1), self.max_s))


class ContainerRunner:
    """Keeps one container running until told to stop."""

    def __init__(
        self, container: Container, template: Template, pod: PodIdentity, policy: RestartPolicy, changed: Callable[[], None]
    ) -> None:
        self.container = container
        self.ready = False
        self.restarts = 0
        self.state: Literal["waiting", "starting", "running", "stopped"] = "waiting"
        self.reason = ""
        self.last_end = ""
        self.pid = 0
        self._template = template
        self._pod = pod
        self._policy = policy
        self._changed = changed
        self._stop = asyncio.Event()
        self._is_killed = False
        self._env: dict[str, str] = {}
        self._task = asyncio.create_task(self._run(), name=f"{pod.key}/{container.name}")

    def status(self) -> ContainerStatus:
        """As it is now."""
        return ContainerStatus(
            name=self.container.name,
            state=self.state,
            ready=self.ready,
            restarts=self.restarts,
            pid=self.pid,
            reason=self.reason,
            last_end=self.last_end,
        )

    async def stop(self) -> None:
        """Ends the container; returns when none of its processes is left."""
        self._stop.set()
        self._set(ready=False, reason="stopping")
        await self._task

    def kill(self) -> None:
        """Ends the container by SIGKILL alone: no hook, no SIGTERM, no grace."""
        self._is_killed = True
        self._stop.set()

    async def _run(self) -> None:
        num_failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                reason = await self._once()
            except Exception as error:  # a fault of ours or a full disk: this container is tried again later, the others go on
                _log.exception("%s", self._task.get_name())
                reason = f"{type(error).__name__}: {error}"
            self.pid = 0
            if self._stop.is_set():
                break
            if time.monotonic() - began >= self._policy.healthy_after_s:
                num_failures = 0
            delay_s = self._policy.delay_s(num_failures)
            num_failures += 1
            self.restarts += 1
            self.last_end = reason
            self._set(state="waiting", ready=False, reason=f"{reason}; again in {delay_s:g} s" if delay_s else reason)
            await _first(self._stop.wait(), asyncio.sleep(delay_s))
        self._set(state="stopped", ready=False, reason="")

    async def _once(self) -> str:
        """Runs the process once, until it ends, fails a probe or is told to stop; why it ended."""
        try:
            command, self._env = command_line(self.container, self._template, self._pod)
            process = spawn(command, self._env, self._pod.folder / self.container.name, self._pod.log(self.container.name))
        except OSError as error:
            return f"cannot start: {error.strerror}: {error.filename or self.container.command[0]}"
        self.pid = process.pid
        self._set(state="starting", ready=False, reason="starting")
        exited = asyncio.create_task(_exit_of(process.pid))
        watched = asyncio.create_task(self._watch())
        try:
            await _first(exited, watched, self._stop.wait())
            if exited.done():
                reason = ""
            else:
                self._set(ready=False)
                reason = watched.result() if watched.done() else "stopping"
                watched.cancel()
                if not self._is_killed:
                    await self._terminate(process.pid, exited)
        finally:
            watched.cancel()
            exited.cancel()
            # The main process is not waited for yet: until it is, nobody else can have its session's number.
            await asyncio.to_thread(kill_all, self._pod.membership(self.container.name, process.pid))
            status = process.wait()
        return reason or _ended(status)

    async def _terminate(self, pid: int, exited: asyncio.Task[None]) -> None:
        """preStop, SIGTERM, and what is left of the grace period; SIGKILL is the caller's."""
        deadline = time.monotonic() + self._template.grace_s
        if self.container.pre_stop:
            hook = asyncio.create_task(self._ask(self.container.pre_stop, self._template.grace_s))
            await _first(hook, exited)
            hook.cancel()
        if not exited.done():
            os.kill(pid, signal.SIGTERM)
            await asyncio.wait({exited}, timeout=max(0.0, deadline - time.monotonic()))

    async def _watch(self) -> str:
        """Why the container must be restarted: its startup or liveness probe says so. Keeps `ready` up to date meanwhile."""
        if self.container.startup and (reason := await self._fails(self.container.startup, until_success=True)):
            return f"startup probe: {reason}"
        self._set(
            state="running",
            ready=self.container.readiness is None,
            reason="" if self.container.readiness is None else "not ready yet",
        )
        readiness = asyncio.create_task(self._follow_readiness())
        try:
            if self.container.liveness:
                return f"liveness probe: {await self._fails(self.container.liveness)}"
            await asyncio.Event().wait()
            return ""
        finally:
            readiness.cancel()

    async def _fails(self, probe: Probe, *, until_success: bool = False) -> str:
        """The reason once `failure_threshold` answers in a row were no; empty at the first yes, if that is what is waited for."""
        await asyncio.sleep(probe.initial_delay_s)
        num_failures = 0
        while True:
            reason = await self._ask(probe.action, probe.timeout_s)
            if not reason and until_success:
                return ""
            num_failures = num_failures + 1 if reason else 0
            if num_failures >= probe.failure_threshold:
                return reason
            await asyncio.sleep(probe.period_s)

    async def _follow_readiness(self) -> None:
        probe = self.container.readiness
        if probe is None:
            return
        await asyncio.sleep(probe.initial_delay_s)
        num_alike, last = 0, False
        while True:
            reason = await self._ask(probe.action, probe.timeout_s)
            num_alike = num_alike + 1 if (not reason) is last else 1
            last = not reason
            if num_alike >= (probe.success_threshold if last else probe.failure_threshold):
                self._set(ready=last, reason=reason)
            elif not self.ready:
                self._set(reason=reason or self.reason)
            await asyncio.sleep(probe.period_s)

    async def _ask(self, action: Action, timeout_s: float) -> str:
        return await ask(action, self._pod.address, self._beside, timeout_s)

    async def _beside(self, command: tuple[str, ...]) -> int:
        """Runs a command of a probe or hook in the container's environment; its exit status."""
        process = subprocess.Popen(  # noqa: ASYNC220 (its end is awaited through a pidfd)
            command, env=self._env, cwd=self._pod.folder / self.container.name,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            await _exit_of(process.pid)
        finally:
            process.kill()
            status = process.wait()
        return status

    def _set(
        self,
        *,
        ready: bool | None = None,
        reason: str | None = None,
        state: Literal["waiting", "starting", "running", "stopped"] | None = None,
    ) -> None:
        before = (self.state, self.ready, self.reason)
        self.ready = (self.ready if ready is None else ready) and not self._stop.is_set()
        self.state = state or self.state
        self.reason = self.reason if reason is None else reason
        if (self.state, self.ready, self.reason) != before:
            self._changed()


class Pod:
    """One pod, running from the moment it is made."""

    def __init__(
        self, identity: PodIdentity, workload: str, template: Template, policy: RestartPolicy, changed: Callable[[], None]
    ) -> None:
        self.identity = identity
        self.workload = workload
        self.template = template
        self.revision = template.revision
        self.started_at_ms = time.time_ns() // 1_000_000
        self.is_stopping = False
        self._containers = [ContainerRunner(container, template, identity, policy, changed) for container in template.containers]

    @property
    def ready(self) -> bool:
        """Every container is ready, and it is not being stopped."""
        return not self.is_stopping and all(container.ready for container in self._containers)

    def kill(self) -> None:
        """Every process of it gets SIGKILL now; `stop` then waits for their end."""
        for container in self._containers:
            container.kill()

    async def stop(self) -> None:
        """Ends every container, all at the same time, and removes the scratch folder."""
        self.is_stopping = True
        await asyncio.gather(*(container.stop() for container in self._containers))
        shutil.rmtree(self.identity.folder, ignore_errors=True)

    def status(self) -> PodStatus:
        """As it is now."""
        containers = tuple(container.status() for container in self._containers)
        has_failed = any(container.state == "waiting" and container.restarts for container in containers)
        is_running = all(container.state == "running" for container in containers)
        return PodStatus(
            region=self.identity.region,
            namespace=self.identity.namespace,
            workload=self.workload.rpartition(".")[2],
            name=self.identity.name,
            address=self.identity.address,
            revision=self.revision,
            phase="stopping" if self.is_stopping else "back_off" if has_failed else "running" if is_running else "starting",
            ready=self.ready,
            restarts=sum(container.restarts for container in containers),
            started_at_ms=self.started_at_ms,
            containers=containers,
        )


async def _exit_of(pid: int) -> None:
    """Waits until the process has ended, and leaves its status to be read."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _first(*awaitables: Coroutine[Any, Any, object] | asyncio.Task[Any]) -> None:
    """Waits for the first of these to end. Coroutines are cancelled then; tasks are the caller's."""
    tasks = {item if isinstance(item, asyncio.Task) else asyncio.create_task(item): item for item in awaitables}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, item in tasks.items():
            if task is not item:
                task.cancel()


def _ended(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
