"""What the tests of the node agent share: an agent in the test's own event loop, and workloads of a small child process."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.embedded import state as files
from infra.embedded.agent import Agent
from infra.embedded.desired import Action, Container, Desired, PodStatus, Probe, Service, Status, Template, Volume, Workload
from infra.embedded.pods import RestartPolicy
from infra.embedded.processes import Membership, members
from infra.embedded.state import State

QUICK = RestartPolicy(base_s=0.2, max_s=0.8, healthy_after_s=30)
CHILD = str(Path(__file__).with_name("child.py"))
FAST: dict[str, Any] = {"period_s": 0.05, "timeout_s": 1, "failure_threshold": 2}


def http(path: str, **changes: Any) -> Probe:
    return Probe(action=Action(kind="http", path=path, port=8000), **{**FAST, **changes})


def child(*arguments: str, name: str = "main", env: dict[str, str] | None = None, **changes: Any) -> Container:
    env = {"FLOTILLA_POD_IP": "{field:status.podIP}", **(env or {})}
    return Container(name=name, command=(sys.executable, "-SE", CHILD, *arguments), env=env, **changes)


def workload(
    *containers: Container,
    name: str = "web",
    kind: Any = "Deployment",
    replicas: int = 1,
    volumes: dict[str, Volume] | None = None,
    grace_s: float = 5,
    **changes: Any,
) -> Workload:
    template = Template(containers=containers or (child(),), volumes=volumes or {}, grace_s=grace_s)
    return Workload(
        region="us-east-2", namespace="serving", name=name, kind=kind, replicas=replicas, template=template, **changes
    )


class RunningAgent:
    """An agent that works in the test's own event loop, and what a test wants to ask of it."""

    def __init__(self, state: State, policy: RestartPolicy) -> None:
        self.state = state
        self.agent = Agent(state, policy)
        self.task = asyncio.create_task(self.agent.run())

    def want(self, *workloads: Workload, services: tuple[Service, ...] = ()) -> None:
        files.write_json(self.state.desired_file, Desired(workloads=workloads, services=services))

    def status(self) -> Status:
        status = self.state.status()
        assert status is not None
        return status

    def pods(self) -> dict[str, PodStatus]:
        status = self.state.status()
        return {pod.name: pod for pod in status.pods} if status else {}

    def log(self, pod: str, container: str = "main") -> list[str]:
        path = self.state.logs / f"us-east-2.serving.{pod}.{container}.log"
        return path.read_text().splitlines() if path.exists() else []

    def processes(self) -> int:
        """How many processes of any container of this state folder live."""
        return len(members(Membership(f"{self.state.tag}/", self.state.pods)))

    async def until(self, condition: Callable[[], object], what: str, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; {self.state.status()}"
            assert not self.task.done(), self.task
            await asyncio.sleep(0.02)

    async def settled(self) -> None:
        await self.until(
            lambda: (status := self.state.status()) and status.workloads and all(w.is_settled for w in status.workloads),
            "settled",
        )

    async def end(self) -> None:
        self.agent.stop()
        await self.task
