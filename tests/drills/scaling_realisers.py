"""The same series under real autoscalers: KEDA with its HPA on a real control plane, and the node agent of `flotilla up`.

One thread is the leader: it looks at the series, decides by the policy, and says so, as `/metrics` of a gateway and as
Prometheus' answer to KEDA. There are no nodes and engines do nothing: only how many of them are asked for is under test.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))  # where the control plane is

import keda
from control_plane import ControlPlane, control_plane
from kube import RefusedError, eventually
from prometheus_client import CollectorRegistry, generate_latest

from infra.components.workloads.engine_scaling import base_triggers
from infra.components.workloads.scaled_object import ScaledObjectArgs
from infra.embedded import state as files
from infra.embedded.agent import Agent
from infra.embedded.desired import Container, Desired, Scaling, Template, Workload
from infra.embedded.state import State
from policies.autoscaling.decide import Data, Reason, ScaleDecision
from policies.autoscaling.pace import Pace
from policies.autoscaling.policy import Limits, ScalingPolicy
from serving.gateway.scaling.exported import Exported
from serving.series import DESIRED_REPLICAS
from tests.drills.scaling_series import Decider, Series, Trajectory

NAMESPACE, FLEET, MODEL_CLASS = "serving", "engine-small", "small"
POLL_S = 0.05
SAME_SYNC_S = 0.3
"""The two questions of a sync are less far apart."""
Listener = Callable[[float | None, float | None], None]
BEGIN_S = 60.0
"""How long a real autoscaler may take to begin where the series does."""


class Leader:
    """Says what the policy decides, over the whole series. `listener` hears desired replicas (None: silence) and the work that
    Prometheus would sum (None where it has no answer either)."""

    def __init__(
        self, series: Series, policy: ScalingPolicy, limits: Limits, start: int, look_s: float, listener: Listener
    ) -> None:
        self.exported = Exported()
        first = ScaleDecision(start, start, Reason.ENOUGH, Data.FRESH, base=start)
        self.exported.say(MODEL_CLASS, first, time.monotonic() + BEGIN_S)
        self._series, self._look_s, self._listener = series, look_s, listener
        self._decider = Decider(policy, limits, start)

    def run(self) -> None:
        """Takes as long as the series."""
        began_s = time.monotonic()
        while (at_s := time.monotonic() - began_s) < self._series.lasts_s:
            in_flight = self._series.at(at_s)[1]
            decision = self._decider.look(at_s, in_flight)
            self.exported.say(MODEL_CLASS, decision, time.monotonic() + 3 * self._look_s)
            self._listener(decision.base if decision.is_known else None, in_flight)
            time.sleep(max(0.0, began_s + (at_s // self._look_s + 1) * self._look_s - time.monotonic()))


@contextmanager
def metrics_server(exported: Exported) -> Iterator[int]:
    """A gateway's `/metrics`, on a port of loopback."""
    registry = CollectorRegistry()
    registry.register(exported)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = generate_latest(registry)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class Keda:
    """A fleet on a control plane, under the ScaledObject that our program renders for `policy`."""

    def __init__(self, plane: ControlPlane, prometheus: keda.PromAnswers, policy: ScalingPolicy, limits: Limits) -> None:
        self._plane, self._kube, self._prometheus = plane, plane.kube, prometheus
        triggers = base_triggers(MODEL_CLASS, policy)
        args = ScaledObjectArgs("Deployment", FLEET, limits.floor, limits.max_base, triggers, Pace.obeying(policy))
        self.spec = args.rendered()
        self._desired, self._work = [
            (each["metadata"]["serverAddress"], each["metadata"]["query"]) for each in self.spec["triggers"]
        ]
        self.say(None, None)

    def say(self, desired: float | None, in_flight: float | None) -> None:
        """Prometheus' answers from now on."""
        self._prometheus.values[self._desired] = desired
        unless_desired = 0.0 if desired is not None else in_flight
        self._prometheus.values[self._work] = unless_desired

    def apply(self, start: int) -> None:
        """The fleet, at `start`, and the object."""
        with suppress(RefusedError):
            self._kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        labels = {"app": FLEET}
        pod = {"containers": [{"name": "engine", "image": "none"}], "automountServiceAccountToken": False}
        self._kube.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": FLEET, "namespace": NAMESPACE},
                "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
            }
        )
        self._kube.scale("Deployment", FLEET, NAMESPACE, start)
        metadata = {"name": FLEET, "namespace": NAMESPACE}
        self._kube.apply({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata, "spec": self.spec})
        self.say(start, 0)
        eventually(lambda: self._is_scaling() and self.replicas() == start, f"the autoscaler holds {start}", BEGIN_S, self.events)

    def replicas(self) -> int:
        """What the fleet is told to have."""
        return int(self._kube.get("Deployment", FLEET, NAMESPACE, "apps/v1")["spec"]["replicas"])

    def sync_s(self, since_s: float) -> float:
        """How long it took from one question of the autoscaler's to its next, but for one in twenty; its period begins anew when
        it is done, so this is more than the period that it was given.

        Raises:
            RuntimeError: a part has ended, and nobody asks any more.
        """
        self._plane.check()
        asked = [at_s for at_s in self._prometheus.asked_s if at_s >= since_s]
        apart = sorted(gap for gap in map(float.__sub__, asked[1:], asked) if gap > SAME_SYNC_S)
        return apart[int(0.95 * len(apart))] + POLL_S

    def events(self) -> str:
        """What the autoscaler and KEDA last said."""
        last = self._kube.list("Event", NAMESPACE)[-6:]
        return "; ".join(f"{event['reason']}: {event['message']}" for event in last)

    def _is_scaling(self) -> bool:
        """Whether the autoscaler has had a number."""
        found = self._kube.list("HorizontalPodAutoscaler", NAMESPACE, "autoscaling/v2")
        return any(
            condition["type"] == "ScalingActive" and condition["status"] == "True"
            for each in found
            for condition in each.get("status", {}).get("conditions") or ()
        )


@contextmanager
def keda_fleet(assets: Path, folder: Path, policy: ScalingPolicy, limits: Limits, sync_s: float) -> Iterator[Keda]:
    """KEDA and its HPA, which syncs every `sync_s`, on a control plane of their own."""
    with keda.prom_answers() as prometheus, control_plane(assets, folder, hpa_sync_s=sync_s) as plane:
        keda.start(plane, prometheus)
        yield Keda(plane, prometheus, policy, limits)


class _OneGateway(Agent):
    """A node agent whose gateways are at one address of ours."""

    def _ready_addresses(self, key: str) -> list[str]:
        return ["127.0.0.1"]


@contextmanager
def local_fleet(folder: Path, policy: ScalingPolicy, limits: Limits, port: int) -> Iterator[Callable[[], int]]:
    """The fleet as processes under the node agent, which asks `port` for its size; gives how many processes there are."""
    state = State(folder)
    state.prepare()
    sleeper = Container(name="engine", command=(sys.executable, "-SE", "-c", "import time; time.sleep(1e6)"))
    scaling = Scaling(
        minimum=limits.floor,
        maximum=limits.max_base,
        series=DESIRED_REPLICAS.name,
        labels={"model_class": MODEL_CLASS, "fleet": "base"},
        source="gateway",
        port=port,
        pace=Pace.obeying(policy),
    )
    fleet = Workload(
        region="here",
        namespace=NAMESPACE,
        name=FLEET,
        kind="Deployment",
        replicas=limits.floor,
        template=Template(containers=(sleeper,), grace_s=5),
        max_surge=limits.max_base,
        scaling=scaling,
    )
    files.write_json(state.desired_file, Desired(workloads=(fleet,)))
    started, agents = threading.Event(), list[tuple[asyncio.AbstractEventLoop, Agent]]()

    async def serve() -> None:
        agent = _OneGateway(state)
        agents.append((asyncio.get_running_loop(), agent))
        started.set()
        await agent.run()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait()

    def num_pods() -> int:
        status = state.status()
        pods: list[Any] = [pod for pod in status.pods if pod.phase != "stopping"] if status else []
        return len(pods)

    try:
        yield num_pods
    finally:
        loop, agent = agents[0]
        loop.call_soon_threadsafe(agent.stop)
        thread.join()


def recorded(sources: dict[str, Callable[[], int]], lasts_s: float) -> list[Trajectory]:
    """What each source says for so long, polled side by side."""
    began_s = time.monotonic()

    def record(trajectory: Trajectory, source: Callable[[], int]) -> None:
        while (at_s := time.monotonic() - began_s) < lasts_s:
            with suppress(OSError):
                trajectory.note(at_s, source())
            time.sleep(POLL_S)

    trajectories = [Trajectory(name) for name in sources]
    threads = [
        threading.Thread(target=record, args=(trajectory, source))
        for trajectory, source in zip(trajectories, sources.values(), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return trajectories


def realised(
    series: Series, policy: ScalingPolicy, limits: Limits, start: int, look_s: float, assets: Path, folder: Path
) -> tuple[list[Trajectory], float]:
    """The series under both, at the same time: `keda` and `local`; and how long a sync of the HPA took.

    Raises:
        RuntimeError: a part of the control plane or of KEDA ended meanwhile.
    """
    with keda_fleet(assets, folder / "plane", policy, limits, look_s) as fleet:
        leader = Leader(series, policy, limits, start, look_s, fleet.say)
        with metrics_server(leader.exported) as port, local_fleet(folder / "local", policy, limits, port) as num_pods:
            fleet.apply(start)
            eventually(lambda: num_pods() == start, f"{start} processes run", BEGIN_S)
            thread = threading.Thread(target=leader.run)
            thread.start()
            trajectories = recorded({"keda": fleet.replicas, "local": num_pods}, series.lasts_s)
            thread.join()
            return trajectories, fleet.sync_s(since_s=time.monotonic() - series.lasts_s)
