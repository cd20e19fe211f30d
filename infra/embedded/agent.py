"""The node agent: a background process that keeps this machine as the desired state says.

It stands in for the kubelet, the Deployment and StatefulSet controllers and kube-proxy, for one machine and no more. It
reads `desired.json` whenever that changes, decides (`rollout`), acts (`pods`), and writes `status.json` and a file of
endpoints for each Service. Order at start: take the lock, end what a killed predecessor left, then work. Order at the end
(SIGTERM): workloads drain while the cache and the emulated AWS still answer them, then those, then the ports close and the
status is written for the last time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from infra.embedded import faults
from infra.embedded import state as files
from infra.embedded.desired import Desired, Service, ServiceStatus, Status, Workload, WorkloadStatus
from infra.embedded.folders import PodIdentity
from infra.embedded.forwarder import Forwarder
from infra.embedded.pods import Pod, RestartPolicy
from infra.embedded.processes import Membership, end_all
from infra.embedded.rollout import PodView, decide_steps
from infra.embedded.scaler import SYNC_S, LocalScaler
from infra.embedded.state import State
from serving.errors import UserError

TICK_S = 0.2
FIRST_POD_ADDRESS = 64
"""Addresses below are for parts with a fixed one: the emulated AWS and the caches."""
LAST_ADDRESS = 4094
LEFTOVER_GRACE_S = 5
NUM_KEPT_LOGS = 20
"""Log files of pods that are no more."""
MAX_LOG_BYTES = 64 * 1024 * 1024
LOGS_LOOK_S = 10
_log = logging.getLogger("flotilla.agent")


class Agent:
    """Supervises everything of one state folder. The caller holds its lock."""

    def __init__(self, state: State, policy: RestartPolicy | None = None) -> None:
        self.state = state
        self._policy = policy or RestartPolicy()
        self._desired = Desired()
        self._desired_mtime_ns = 0
        self._desired_error = ""
        self._port_errors: dict[int, str] = {}
        self._killed: frozenset[str] = frozenset()
        self._pods: dict[str, list[Pod]] = {}
        self._scaler = LocalScaler()
        self._forwarders: dict[int, Forwarder] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._next_address = FIRST_POD_ADDRESS
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._started_at_ms = time.time_ns() // 1_000_000
        self._written: dict[Path, bytes] = {}
        self._next_logs_look = 0.0

    async def run(self) -> None:
        """Works until `stop` is called, then ends everything in order."""
        end_leftovers(self.state)
        with contextlib.suppress(OSError):  # a stranger has the name: the long path serves all but sockets
            self.state.shortcut.unlink(missing_ok=True)
            self.state.shortcut.symlink_to(self.state.pods)
        scaling = asyncio.create_task(self._scale())
        while not self._stop.is_set():
            try:
                self._read_desired()
                self._read_faults()
                await self._forward()
                self._reconcile()
                self._publish()
                self._bound_logs()
            except Exception:  # the pods run on; the next tick tries again
                _log.exception("tick failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._changed.wait()
            self._changed.clear()
        scaling.cancel()
        await self._drain()

    def stop(self) -> None:
        """Begins the end."""
        self._stop.set()
        self._changed.set()

    async def _scale(self) -> None:
        """Follows the sizes that gateways say, until cancelled."""
        while True:
            try:
                if await self._scaler.sync(self._desired.workloads, self._ready_addresses):
                    self._changed.set()
            except Exception:  # sizes stay; the next look tries again
                _log.exception("scaling failed")
            await asyncio.sleep(SYNC_S)

    def _ready_addresses(self, key: str) -> list[str]:
        return [pod.identity.address for pod in self._pods.get(key, ()) if pod.ready]

    def _sized(self) -> list[Workload]:
        """The workloads, each with as many replicas as it should have now."""
        return [msgspec.structs.replace(each, replicas=self._scaler.size(each)) for each in self._desired.workloads]

    def _read_desired(self) -> None:
        try:
            mtime_ns = self.state.desired_file.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if mtime_ns == self._desired_mtime_ns:
            return
        self._desired_mtime_ns = mtime_ns
        try:
            self._desired = self.state.desired()
            self._desired_error = ""
        except UserError as error:  # written by another version of us: keep what runs, and say so
            self._desired_error = error.message
            _log.error("%s", error.message)
            return
        _log.info("desired state %s: %d workloads", self._desired.digest, len(self._desired.workloads))

    def _read_faults(self) -> None:
        """Which regions a drill has taken the power from; what cannot be read leaves things as they are."""
        try:
            killed = faults.killed(self.state)
        except UserError as error:
            _log.error("%s", error.message)
            return
        if killed != self._killed:
            _log.info("regions without power: %s", ", ".join(sorted(killed)) or "none")
            self._killed = killed

    async def _forward(self) -> None:
        """Opens and closes ports of 127.0.0.1 as the Services say."""
        wanted = {port: (service, name) for service in self._desired.services for name, port in service.host_ports.items()}
        for port in set(self._forwarders) - set(wanted):
            await self._forwarders.pop(port).stop()
        self._port_errors = {port: error for port, error in self._port_errors.items() if port in wanted}
        for port in set(wanted) - set(self._forwarders):
            forwarder = Forwarder(port, lambda port=port: self._backends(port))  # type: ignore[misc]
            try:
                await forwarder.start()
            except OSError as error:  # tried again at every tick
                self._port_errors[port] = f"port {port} of 127.0.0.1 cannot be opened: {error.strerror}"
            else:
                self._forwarders[port] = forwarder
                self._port_errors.pop(port, None)

    def _backends(self, host_port: int) -> list[tuple[str, int]]:
        for service in self._desired.services:
            for name, port in service.host_ports.items():
                if port == host_port:
                    return [
                        (pod.identity.address, service.ports[name])
                        for pod in self._pods_of(service)
                        if pod.ready or service.has_unready
                    ]
        return []

    def _reconcile(self) -> None:
        wanted = {workload.key: workload for workload in self._sized() if workload.region not in self._killed}
        for key in set(self._pods) - set(wanted):
            for pod in self._pods[key]:
                if pod.identity.region in self._killed:
                    pod.kill()
            self._stop_pods(self._pods[key])
        for key, workload in wanted.items():
            pods = self._pods.setdefault(key, [])
            views = [PodView(pod.identity.name, pod.revision, pod.ready, pod.is_stopping) for pod in pods]
            steps = decide_steps(workload, views)
            self._stop_pods(pod for pod in pods if pod.identity.name in steps.stop)
            for name in steps.start:
                pods.append(self._start_pod(workload, name))

    def _start_pod(self, workload: Workload, name: str) -> Pod:
        address = workload.address or self._free_address()
        identity = PodIdentity(self.state, workload.region, workload.namespace, name, address)
        _log.info("starting %s (%s) at %s", identity.key, workload.template.revision, address)
        return Pod(identity, workload.key, workload.template, self._policy, self._changed.set)

    def _stop_pods(self, pods: Iterable[Pod]) -> None:
        for pod in pods:
            if not pod.is_stopping:
                pod.is_stopping = True
                _log.info("stopping %s", pod.identity.key)
                task = asyncio.create_task(self._end(pod))
                self._stopping.add(task)
                task.add_done_callback(self._stopping.discard)

    async def _end(self, pod: Pod) -> None:
        await pod.stop()
        pods = self._pods[pod.workload]
        pods.remove(pod)
        if not pods and all(workload.key != pod.workload for workload in self._desired.workloads):
            del self._pods[pod.workload]
        _log.info("stopped %s", pod.identity.key)
        self._changed.set()

    def _free_address(self) -> str:
        """The next address in turn, so that one is not used again soon after its pod has gone."""
        taken = {pod.identity.address for pods in self._pods.values() for pod in pods}
        while True:
            address = self.state.address(self._next_address)
            self._next_address = FIRST_POD_ADDRESS if self._next_address == LAST_ADDRESS - 1 else self._next_address + 1
            if address not in taken:
                return address

    def _pods_of(self, service: Service) -> list[Pod]:
        return [pod for key in service.workloads for pod in self._pods.get(key, ())]

    def _publish(self) -> None:
        """Writes status and endpoints where they have changed."""
        services = []
        wanted = {}
        for service in self._desired.services:
            pods = self._pods_of(service)
            endpoints = [{"name": pod.identity.name, "address": pod.identity.address, "ready": pod.ready} for pod in pods]
            path = self.state.endpoints / service.region / f"{service.namespace}.{service.name}.json"
            wanted[path] = msgspec.json.encode({"ports": service.ports, "endpoints": endpoints})
            addresses = {name: f"127.0.0.1:{port}" for name, port in service.host_ports.items()}
            services.append(
                ServiceStatus(
                    region=service.region,
                    namespace=service.namespace,
                    name=service.name,
                    host_addresses=addresses,
                    ready=sum(pod.ready for pod in pods),
                    total=len(pods),
                )
            )
        workloads = []
        for workload in self._sized():
            pods = self._pods.get(workload.key, [])
            sized = self._scaler.says(workload)
            updated = [pod for pod in pods if pod.revision == workload.template.revision and not pod.is_stopping]
            num_ready = sum(pod.ready for pod in updated)
            workloads.append(
                WorkloadStatus(
                    key=workload.key,
                    replicas=workload.replicas,
                    ready=num_ready,
                    updated=len(updated),
                    pods=len(pods),
                    desired=sized.desired if sized else None,
                    reason=sized.reason if sized else "",
                )
            )
        status = Status(
            pid=os.getpid(),
            started_at_ms=self._started_at_ms,
            digest=self._desired.digest,
            error=self._desired_error or next(iter(self._port_errors.values()), ""),
            workloads=tuple(workloads),
            pods=tuple(pod.status() for pods in self._pods.values() for pod in pods),
            services=tuple(services),
        )
        wanted[self.state.status_file] = msgspec.json.encode(status)
        for path in set(self._written) - set(wanted):
            path.unlink(missing_ok=True)
            del self._written[path]
        for path, data in wanted.items():
            if self._written.get(path) != data:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                files.write(path, data)
                self._written[path] = data

    def _bound_logs(self) -> None:
        """Keeps a container's log below a size, its older part as the previous one, and few logs of pods that are no more."""
        if time.monotonic() < self._next_logs_look:
            return
        self._next_logs_look = time.monotonic() + LOGS_LOOK_S
        live = {pod.identity.key for pods in self._pods.values() for pod in pods}
        dead: list[tuple[float, Path]] = []
        for path in self.state.logs.glob("*.*.*.*.log*"):
            stat = path.stat()
            if ".".join(path.name.split(".")[:3]) not in live:
                dead.append((stat.st_mtime, path))
            elif path.suffix == ".log" and stat.st_size > MAX_LOG_BYTES:
                shutil.copyfile(path, path.with_name(f"{path.name}.previous"))
                os.truncate(path, 0)  # it is written in append mode, so its writer goes on at the new end
        for _, path in sorted(dead)[:-NUM_KEPT_LOGS]:
            path.unlink()

    async def _drain(self) -> None:
        kinds = {workload.key: workload.kind for workload in self._desired.workloads}
        for infrastructure in (False, True):
            for key, pods in list(self._pods.items()):
                if (kinds.get(key) == "Infrastructure") is infrastructure:
                    self._stop_pods(pods)
            while self._stopping:
                with contextlib.suppress(Exception):
                    self._publish()
                await asyncio.wait(self._stopping, timeout=TICK_S)
        for forwarder in self._forwarders.values():
            await forwarder.stop()
        self._desired = Desired()
        with contextlib.suppress(UserError):  # a full disk does not keep us from ending
            self._publish()
        end_leftovers(self.state)
        _log.info("ended")


def end_leftovers(state: State) -> int:
    """Ends every process of a container of this folder, and removes scratch folders and endpoints; how many it ended.

    Only when no agent lives. All are told at the same time and have `LEFTOVER_GRACE_S`: enough for the emulated AWS to save
    and for a gateway to seal its journal, not for streams to finish.
    """
    num_ended = end_all(Membership(f"{state.tag}/", state.root), LEFTOVER_GRACE_S)
    if num_ended:
        _log.info("ended %d processes that were left over", num_ended)
    for folder in (state.pods, state.endpoints):
        for path in folder.glob("*"):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        state.shortcut.unlink(missing_ok=True)
    return num_ended


async def _main(state: State) -> None:
    agent = Agent(state)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, agent.stop)
    await agent.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = State(Path(sys.argv[1]))
    if files.hold(folder.agent_lock) is None:
        sys.exit(f"another agent (pid {folder.agent_pid()}) has {folder.root}")
    asyncio.run(_main(folder))
