"""The node agent with real child processes: what a kubelet and its controllers would do, on one machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import msgspec
import pytest
from embedded_support import QUICK, RunningAgent, child, http, workload

from infra.embedded import faults
from infra.embedded import state as files
from infra.embedded.agent import end_leftovers
from infra.embedded.desired import Action, Desired, Mount, Probe, Service, Volume
from infra.embedded.processes import Membership, members
from infra.embedded.state import State

WEB = {"WEB": "1"}


async def test_a_pod_is_ready_only_while_its_readiness_probe_succeeds(agent: RunningAgent, state: State) -> None:
    agent.want(workload(child(env=WEB, readiness=http("/ready"))))
    await agent.until(lambda: any("serving" in agent.log(name) for name in agent.pods()), "served")
    (pod,) = agent.pods().values()
    assert not pod.ready
    flag = state.pods / "-".join(pod.address.split(".")[2:]) / "main" / "ready"
    flag.touch()
    await agent.settled()
    flag.unlink()
    await agent.until(lambda: not agent.pods()[pod.name].ready, "not ready again")
    assert agent.pods()[pod.name].restarts == 0


async def test_liveness_failure_restarts_the_container_through_its_grace(agent: RunningAgent) -> None:
    is_up = http("/echo-env", failure_threshold=200)
    agent.want(workload(child(env=WEB, startup=is_up, liveness=http("/never"))))
    await agent.until(lambda: any(pod.restarts >= 1 for pod in agent.pods().values()), "restarted")
    (pod,) = agent.pods().values()
    previous = agent.state.logs / f"us-east-2.serving.{pod.name}.main.log.previous"
    await agent.until(previous.exists, "the log of the run before is set aside as the next one starts")
    assert previous.read_text().splitlines()[-2:] == ["term", "drained"]


async def test_liveness_waits_for_the_startup_probe(agent: RunningAgent) -> None:
    slow = child(env=WEB, startup=http("/started", failure_threshold=200), liveness=http("/started"))
    agent.want(workload(slow))
    await agent.until(lambda: any("serving" in agent.log(name) for name in agent.pods()), "served")
    await asyncio.sleep(0.5)
    (pod,) = agent.pods().values()
    assert (pod.restarts, pod.phase) == (0, "starting")


@pytest.mark.parametrize(
    ("command", "is_ready"), [(("true",), True), (("false",), False), (("sleep", "60"), False), (("no-such",), False)]
)
async def test_an_exec_probe_runs_in_the_container_and_is_ended_when_late(
    agent: RunningAgent, command: tuple[str, ...], is_ready: bool
) -> None:
    probe = Probe(action=Action(kind="exec", command=command), period_s=0.05, timeout_s=0.2)
    agent.want(workload(child(readiness=probe)))
    await agent.until(lambda: any(agent.log(name) for name in agent.pods()), "started")
    await asyncio.sleep(0.6)
    (pod,) = agent.pods().values()
    assert pod.ready is is_ready
    assert agent.processes() <= 2


async def test_restarts_back_off_and_say_why(agent: RunningAgent) -> None:
    began = time.monotonic()
    agent.want(workload(child(env={"EXIT": "3"})))
    await agent.until(lambda: any(pod.restarts >= 4 for pod in agent.pods().values()), "4 restarts")
    (pod,) = agent.pods().values()
    assert pod.phase == "back_off"
    assert pod.containers[0].reason.startswith("exited with status 3; again in")
    assert time.monotonic() - began >= 0 + 0.2 + 0.4  # the waits between the first four starts


def test_the_delay_is_the_kubelets_but_for_the_first() -> None:
    policy = type(QUICK)()
    assert [policy.delay_s(number) for number in (0, 1, 2, 3, 5, 6, 50)] == [0, 10, 20, 40, 160, 300, 300]


async def test_a_killed_process_comes_back_at_once_and_its_brood_is_ended(agent: RunningAgent) -> None:
    agent.want(workload(child(env={"BROOD": "1"})))
    await agent.until(lambda: agent.processes() == 3, "brood is up")
    (pod,) = agent.pods().values()
    os.kill(pod.containers[0].pid, signal.SIGKILL)
    await agent.until(lambda: agent.pods()[pod.name].restarts == 1 and agent.processes() == 3, "back, with a new brood")
    assert agent.pods()[pod.name].containers[0].reason == ""


async def test_a_region_without_power_dies_at_once_and_stays_down_until_it_is_healed(agent: RunningAgent) -> None:
    """A drill that lost a region to SIGKILL alone would see it come back within a second."""
    survivor = msgspec.structs.replace(workload(child(env=WEB)), region="us-west-2")
    agent.want(workload(child(env={**WEB, "DRAIN_S": "30"}), child(env={"BROOD": "1"}, name="beside"), grace_s=60), survivor)
    await agent.settled()
    lost, kept = sorted(agent.pods().values(), key=lambda pod: pod.region)
    faults.plant(agent.state, lost.region, faults.RegionFaults(is_killed=True))
    await agent.until(lambda: list(agent.pods()) == [kept.name], "only the survivor is left", timeout_s=5)
    assert agent.log(lost.name)[-1] == "serving"  # no SIGTERM: nothing could be said
    await asyncio.sleep(0.5)
    assert agent.pods() == {kept.name: kept}
    faults.heal(agent.state, [lost.region])
    await agent.settled()
    assert {pod.region for pod in agent.pods().values()} == {lost.region, kept.region}


async def test_stopping_runs_the_hook_then_sigterm_and_lets_it_drain(agent: RunningAgent) -> None:
    hook = Action(kind="exec", command=("sh", "-c", "echo hook >> said"))
    volumes = {"kept": Volume(kind="retained", key="kept")}
    drainer = child(env={"DRAIN_S": "0.3", "KEPT": "/kept"}, pre_stop=hook, mounts=(Mount(path="/kept", volume="kept"),))
    agent.want(workload(drainer, volumes=volumes))
    await agent.until(lambda: any(agent.log(name) for name in agent.pods()), "started")
    (name,) = agent.pods()
    agent.want()
    await agent.until(lambda: not agent.pods(), "gone")
    assert agent.log(name) == ["started", "term", "drained"]


async def test_a_pod_that_is_being_stopped_is_not_ready_from_that_moment(agent: RunningAgent) -> None:
    agent.want(workload(child(env={"DRAIN_S": "0.6"})))
    await agent.settled()
    agent.want()
    await agent.until(lambda: any(pod.phase == "stopping" for pod in agent.pods().values()), "stopping")
    assert not any(pod.ready for pod in agent.pods().values())


async def test_whoever_ignores_sigterm_is_killed_after_the_grace_period(agent: RunningAgent) -> None:
    agent.want(workload(child(env={"DEAF": "1", "BROOD": "1"}), grace_s=0.5))
    await agent.until(lambda: agent.processes() == 3, "up")
    began = time.monotonic()
    agent.want()
    await agent.until(lambda: agent.processes() == 0, "gone")
    assert 0.4 <= time.monotonic() - began < 3


async def test_the_same_desired_state_again_changes_nothing(agent: RunningAgent) -> None:
    wanted = workload(child(env=WEB), replicas=2)
    agent.want(wanted)
    await agent.settled()
    before = agent.pods()
    agent.want(wanted)
    await asyncio.sleep(0.4)
    assert agent.pods() == before


async def test_a_deployment_rolls_only_when_its_own_template_changed_and_never_below_its_size(agent: RunningAgent) -> None:
    other = workload(child("other"), name="other")
    agent.want(workload(child("one", env=WEB, readiness=http("/.")), replicas=2), other)
    await agent.settled()
    before = agent.pods()
    fewest_ready = 2
    agent.want(workload(child("two", env=WEB, readiness=http("/.")), replicas=2), other)

    def is_rolled() -> bool:
        nonlocal fewest_ready
        pods = agent.pods()
        fewest_ready = min(fewest_ready, sum(pod.ready for name, pod in pods.items() if pod.workload == "web"))
        assert len(pods) <= 4
        new = [name for name in pods if name not in before]
        return len(pods) == 3 and len(new) == 2 and all(pod.ready for pod in pods.values())

    await agent.until(is_rolled, "rolled")
    assert fewest_ready == 2
    assert [name for name in agent.pods() if name in before] == [name for name in before if name.startswith("other")]


async def test_a_changed_config_map_rolls_the_workload_that_mounts_it(agent: RunningAgent, state: State) -> None:
    def configured(text: str) -> tuple[str, ...]:
        volumes = {"settings": Volume(kind="files", files={"a.json": text})}
        mounts = (Mount(path="/etc/app", volume="settings"),)
        env = {**WEB, "SETTINGS": "/etc/app/a.json", "ALSO": "$(SETTINGS)", "OTHER": "/etc/apple"}
        agent.want(workload(child("--file", "/etc/app/a.json", env=env, mounts=mounts, readiness=http("/.")), volumes=volumes))
        return ()

    configured("1")
    await agent.settled()
    (first,) = agent.pods()
    configured("2")
    await agent.until(lambda: first not in agent.pods() and all(pod.ready for pod in agent.pods().values()), "rolled")
    (pod,) = agent.pods().values()
    with urlopen(f"http://{pod.address}:8000/echo-env") as answer:
        env = json.loads(answer.read())
    assert Path(env["SETTINGS"]).read_text() == "2"
    assert Path(env["SETTINGS"]).stat().st_mode & 0o777 == 0o600
    assert env["ALSO"] == env["SETTINGS"]
    assert env["OTHER"] == "/etc/apple"
    assert agent.log(pod.name)[0] == f"started --file {env['SETTINGS']}"


async def test_a_stateful_set_replaces_one_ordinal_at_a_time_and_keeps_its_volumes(agent: RunningAgent, state: State) -> None:
    def journal(version: str, replicas: int = 2) -> None:
        volumes = {"journal": Volume(kind="retained", key="us-east-2/serving/journal-{pod}")}
        mounts = (Mount(path="/var/lib/j", volume="journal"),)
        container = child(version, env={**WEB, "JOURNAL": "/var/lib/j"}, mounts=mounts, readiness=http("/."))
        agent.want(workload(container, name="gateway", kind="StatefulSet", replicas=replicas, volumes=volumes))

    journal("one")
    await agent.settled()
    assert sorted(agent.pods()) == ["gateway-0", "gateway-1"]
    for name in agent.pods():
        (state.volumes / "us-east-2" / "serving" / f"journal-{name}" / "segment").write_text(name)
    before = {name: pod.started_at_ms for name, pod in agent.pods().items()}
    journal("two")
    fewest = 2

    def is_replaced() -> bool:
        nonlocal fewest
        pods = agent.pods()
        fewest = min(fewest, sum(pod.ready for pod in pods.values()))
        return len(pods) == 2 and all(pod.ready and pod.started_at_ms > before[name] for name, pod in pods.items())

    await agent.until(is_replaced, "replaced")
    assert fewest == 1
    assert agent.pods()["gateway-1"].started_at_ms < agent.pods()["gateway-0"].started_at_ms
    journal("two", replicas=1)
    await agent.until(lambda: list(agent.pods()) == ["gateway-0"], "scaled in")
    for name in before:
        assert (state.volumes / "us-east-2" / "serving" / f"journal-{name}" / "segment").read_text() == name


async def test_two_containers_of_a_pod_share_its_address_and_volumes_and_one_restarts_alone(agent: RunningAgent) -> None:
    volumes = {"shared": Volume(kind="scratch")}
    mounts = (Mount(path="/shared", volume="shared"),)
    both = [child(name=name, env={"SHARED": "/shared"}, mounts=mounts) for name in ("gateway", "shipper")]
    agent.want(workload(*both, volumes=volumes))
    await agent.settled()
    (pod,) = agent.pods().values()
    pids = {container.name: container.pid for container in pod.containers}
    os.kill(pids["shipper"], signal.SIGKILL)
    await agent.until(lambda: agent.pods()[pod.name].restarts == 1 and agent.pods()[pod.name].ready, "restarted")
    now = {container.name: container.pid for container in agent.pods()[pod.name].containers}
    assert now["gateway"] == pids["gateway"]
    assert now["shipper"] != pids["shipper"]


async def test_a_service_that_publishes_unready_pods_reaches_them(agent: RunningAgent, free_port: int) -> None:
    """The one gateway of a region was drained, and the request that was to end it found nobody."""
    served = workload(child(env=WEB, readiness=http("/nowhere")))
    name = {"region": "us-east-2", "namespace": "serving", "name": "web", "workloads": (served.key,), "ports": {"http": 8000}}
    service = msgspec.convert({**name, "host_ports": {"http": free_port}, "has_unready": True}, Service)
    agent.want(served, services=(service,))

    def status() -> int:
        with urlopen(f"http://127.0.0.1:{free_port}/echo-env") as answer:
            return int(answer.status)

    async with asyncio.timeout(20):
        while True:
            with suppress(OSError):
                assert await asyncio.to_thread(status) == 200
                break
            await asyncio.sleep(0.05)


async def test_endpoints_follow_the_pods_and_the_host_port_reaches_them(
    agent: RunningAgent, state: State, free_port: int
) -> None:
    served = workload(child(env=WEB, readiness=http("/.")), replicas=2)
    services = (
        Service(
            region="us-east-2",
            namespace="serving",
            name="web",
            workloads=(served.key,),
            ports={"http": 8000},
            host_ports={"http": free_port},
        ),
    )
    agent.want(served, services=services)
    await agent.settled()
    path = state.endpoints / "us-east-2" / "serving.web.json"

    def endpoints() -> list[dict[str, object]]:
        return json.loads(path.read_bytes())["endpoints"]

    assert json.loads(path.read_bytes())["ports"] == {"http": 8000}
    assert {item["name"]: item["ready"] for item in endpoints()} == dict.fromkeys(agent.pods(), True)
    assert len({item["address"] for item in endpoints()}) == 2
    reached = set()
    for _ in range(4):
        env = json.loads(await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{free_port}/echo-env").read()))
        reached.add(env["FLOTILLA_POD_IP"])
    assert reached == {item["address"] for item in endpoints()}
    victim = next(iter(agent.pods().values()))
    os.kill(victim.containers[0].pid, signal.SIGSTOP)
    await agent.until(lambda: sum(bool(item["ready"]) for item in endpoints()) == 1, "one is out")
    os.kill(victim.containers[0].pid, signal.SIGKILL)
    await agent.until(lambda: all(item["ready"] for item in endpoints()), "both are back")
    agent.want()
    await agent.until(lambda: not path.exists(), "no endpoints")


async def test_an_end_drains_workloads_before_what_they_depend_on(agent: RunningAgent, state: State) -> None:
    base = workload(child(), name="cache", kind="Infrastructure")
    agent.want(workload(child(env={"DRAIN_S": "0.4"})), base)
    await agent.settled()
    (web,) = [name for name in agent.pods() if name.startswith("web")]
    await agent.until(lambda: agent.log(web) and agent.log("cache-0"), "started")
    agent.agent.stop()
    await asyncio.sleep(0.25)
    assert agent.log("cache-0") == ["started"]
    await agent.task
    assert agent.log(web)[-1] == agent.log("cache-0")[-1] == "drained"
    assert not any(state.pods.iterdir())


def test_what_a_killed_agent_left_is_ended_by_the_next_and_its_lock_is_free(state: State) -> None:
    whole = Membership(f"{state.tag}/", state.pods)
    files.write_json(state.desired_file, Desired(workloads=(workload(child(env={"BROOD": "1"})),)))
    before: set[int] = set()

    def is_new() -> bool:
        return len(now := {process.pid for process in members(whole)}) == 3 and not now & before

    for _ in range(2):
        agent = subprocess.Popen([sys.executable, "-m", "infra.embedded.agent", str(state.root)], stderr=subprocess.DEVNULL)
        try:
            wait_for(is_new)
            assert state.agent_pid() == agent.pid
            before |= {process.pid for process in members(whole)}
        finally:
            agent.kill()
            agent.wait()
        assert state.agent_pid() == 0
        assert len(members(whole)) == 3  # they run on without it
    assert end_leftovers(state) == 3
    assert not members(whole)


def test_a_second_agent_of_one_folder_refuses(state: State) -> None:
    command = [sys.executable, "-m", "infra.embedded.agent", str(state.root)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: state.agent_pid() == first.pid)
        second = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        assert second.returncode == 1
        assert str(first.pid) in second.stderr
    finally:
        first.terminate()
        assert first.wait(10) == 0


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_an_unreadable_desired_state_leaves_everything_running_and_is_reported(agent: RunningAgent, state: State) -> None:
    agent.want(workload(child()))
    await agent.settled()
    state.desired_file.write_text('{"workloads": [{"tier": "unknown"}]}')
    await agent.until(lambda: "desired.json" in agent.status().error, "reported")
    assert all(pod.ready for pod in agent.pods().values())


async def test_a_command_that_does_not_exist_is_named(agent: RunningAgent) -> None:
    broken = child()
    agent.want(workload(type(broken)(name="main", command=("no-such-command",))))
    await agent.until(lambda: any("no-such-command" in pod.containers[0].reason for pod in agent.pods().values()), "named")
