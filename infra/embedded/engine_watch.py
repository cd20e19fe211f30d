"""Shows how far a starting engine is, by what its supervisor says of itself at `/readyz`."""

from __future__ import annotations

import json
import time
from collections.abc import Set
from urllib.error import HTTPError
from urllib.request import urlopen

from infra.components.workloads.engine_fleet import OPS_PORT
from infra.embedded.desired import PodStatus, Status
from infra.embedded.lifecycle import key_of
from infra.embedded.progress import Steps

LOOK_S = 0.5


class EngineWatch:
    """Shows how far the first engine that is not ready has come, in its supervisor's own words."""

    def __init__(self, engines: Set[str], steps: Steps) -> None:
        self._engines = engines
        self._steps = steps
        self._next_look = 0.0

    def __call__(self, status: Status) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        for pod in status.pods:
            if not pod.ready and key_of(pod) in self._engines:
                phase, detail = _phase(pod)
                self._steps.step(f"Start {pod.workload} of {pod.region}: {phase.replace('_', ' ')}", detail=detail)
                return


def _phase(pod: PodStatus) -> tuple[str, str]:
    """Phase and detail of the supervisor's `/readyz`; it answers 503 until it is ready."""
    try:
        try:
            with urlopen(f"http://{pod.address}:{OPS_PORT}/readyz", timeout=1) as answer:
                body = answer.read()
        except HTTPError as error:
            body = error.read()
        said = json.loads(body)
        return str(said["phase"]), str(said.get("detail", ""))
    except (OSError, ValueError, KeyError, TypeError):
        return "process", ""
