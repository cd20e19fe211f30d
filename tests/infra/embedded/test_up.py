"""`up` and `down` over the program's own graphs, a real emulated AWS, a real cache and the real agent.

Only the processes in the pods are small ones, and no release is made; the end-to-end tests have the real ones. The tests run in
order on one state folder, as a user would.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from embedded_support import CHILD
from rich.console import Console

from infra.embedded import access, lifecycle
from infra.embedded import up as bringing_up
from infra.embedded.desired import PodStatus
from infra.embedded.down import down
from infra.embedded.graph import Graph, Resource
from infra.embedded.graph_json import load_graph
from infra.embedded.processes import Membership, members
from infra.embedded.progress import Steps
from infra.embedded.report import print_up, render_status, status_json
from infra.embedded.state import State
from infra.embedded.up import UpOptions, UpReport, up
from serving.errors import UserError
from serving.models import publish
from serving.target import Target, aws_client

pytestmark = [pytest.mark.emulated_aws, pytest.mark.timeout(180)]
HOME, OTHER = "us-east-2", "us-west-2"
OFFSET = 11_000 + os.getpid() % 600 * 20  # clear of other runs, and below the ports that the system gives to clients

UNMOUNTED_CHILD = f"/{CHILD}"
"""The same file by a path that begins with no mount, wherever this repository lies: pods mount /tmp."""


def with_small_processes(graph: Graph, argument: str = "") -> Graph:
    """The stack with the test's child process in every container; everything around them is the program's."""

    def container(original: dict[str, Any], is_small_engine: bool) -> dict[str, Any]:
        probe = {"httpGet": {"path": "/.", "port": "http"}, "periodSeconds": 0.1}
        env = [*original["env"], {"name": "WEB", "value": "1"}] if original["name"] != "shipper" else original["env"]
        return {
            **{key: original[key] for key in ("name", "volumeMounts")},
            "image": "host:.venv",
            "command": ["python", "-SE", UNMOUNTED_CHILD, *([argument] if argument and is_small_engine else [])],
            "env": env,
            "ports": [{"name": port["name"], "containerPort": 8000} for port in original.get("ports", ())],
            **({"readinessProbe": probe} if env != original["env"] else {}),
        }

    def small(resource: Resource) -> Resource:
        if resource.type not in ("kubernetes:apps/v1:Deployment", "kubernetes:apps/v1:StatefulSet"):
            return resource
        inputs = json.loads(json.dumps(resource.inputs))
        pod = inputs["spec"]["template"]["spec"]
        pod["containers"] = [container(item, resource.name == "engine-small") for item in pod["containers"]]
        return replace(resource, inputs=inputs)

    return replace(graph, resources=tuple(map(small, graph.resources)))


@dataclass
class Machine:
    """A state folder that the tests bring up and down, and what they change in the program in between."""

    state: State
    program: dict[str, Graph]
    engine_argument: str = ""
    num_keys: int = 0

    def up(self, *regions: str, **options: Any) -> UpReport:
        with Steps(Console(file=io.StringIO())) as steps:
            return up(UpOptions(self.state, regions, **{"port_offset": OFFSET, "timeout_s": 60, **options}), steps)

    def down(self, *, purge: bool = False) -> bool:
        with Steps(Console(file=io.StringIO())) as steps:
            return down(self.state, purge=purge, steps=steps)

    def pods(self) -> dict[str, PodStatus]:
        status = self.state.status()
        assert status is not None
        return {f"{pod.region}/{pod.name}": pod for pod in status.pods}

    def num_processes(self) -> int:
        return len(members(Membership(f"{self.state.tag}/", self.state.pods)))

    def aws(self, service: str) -> Any:
        target = json.loads(self.state.access_file.read_bytes())
        return aws_client(service, HOME, target["aws_endpoint_url"])


@pytest.fixture(scope="module")
def machine(program: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(State(tmp_path_factory.mktemp("machine") / "local"), program)
    edge = Graph("local.edge", (), {})

    def record(stacks: list[str], overrides: Any) -> dict[str, Graph]:
        return {
            stack: edge if stack == "local.edge" else with_small_processes(machine.program[stack], machine.engine_argument)
            for stack in stacks
        }

    def ensure_published(target: Target, region: str, model_class: str, **_: Any) -> Any:
        assert target.aws_client("s3", region).head_bucket(Bucket=target.regions[region].artifact_bucket)
        return publish.ReleaseRef(model_class, "digest", 1, 1, 0, False, (region,))

    def ensure_key(target: Target, state: State) -> tuple[str, bool]:
        assert len(target.admin_key) == 48
        if kept := access._kept_key(state):
            return kept, False
        machine.num_keys += 1
        return "fl_demo_key", True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bringing_up, "record", record)
        patch.setattr(publish, "ensure_published", ensure_published)
        patch.setattr(access, "ensure_key", ensure_key)
        yield machine
        machine.down(purge=True)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_taken_port_is_refused_before_anything_starts(machine: Machine) -> None:
    with (
        socket.create_server(("127.0.0.1", 8081 + OFFSET)),
        pytest.raises(UserError, match=rf"{8081 + OFFSET}.*pid {os.getpid()}"),
    ):
        machine.up()
    assert machine.state.agent_pid() == 0
    assert not machine.state.desired_file.exists()


def test_an_unknown_region_is_refused_before_anything_starts(machine: Machine, program: dict[str, Graph]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        from infra.embedded.recorder import record

        patch.setattr(bringing_up, "record", record)
        with pytest.raises(UserError, match="mars-north-1"):
            machine.up("mars-north-1")
    assert machine.state.agent_pid() == 0


def test_the_first_up_starts_everything_and_says_how_to_reach_it(machine: Machine) -> None:
    report = machine.up()
    assert report.outcomes["created"] > 30
    assert set(report.workloads.values()) == {"started"}
    assert set(report.workloads) == {
        "global.infrastructure.aws",
        "us-east-2.infrastructure.aws-front",
        "us-east-2.infrastructure.cache",
        "us-east-2.serving.gateway",
        *(f"us-east-2.serving.engine-{model_class}" for model_class in ("small", "medium", "large")),
    }
    assert report.recorded_only["kubernetes:networking.k8s.io/v1:NetworkPolicy"] > 3
    assert report.recorded_only["aws:ec2/vpc:Vpc"] == 1
    assert "kubernetes:apps/v1:Deployment" not in report.recorded_only
    access_file = json.loads(machine.state.access_file.read_bytes())
    assert machine.state.access_file.stat().st_mode & 0o777 == 0o600
    assert access_file["api_key"] == "fl_demo_key"
    assert access_file["regions"][HOME] == {
        "base_url": f"http://127.0.0.1:{8080 + OFFSET}/v1",
        "admin_url": f"http://127.0.0.1:{8083 + OFFSET}",
        "artifact_bucket": "flotilla-local-use2-artifacts",
        "tables": {
            name: f"flotilla-local-{name}"
            for name in ("registry", "tenants", "ledger", "prompts", "failover", "idempotency", "conversations")
        },
        "archive_bucket": "flotilla-local-use2-archive",
    }
    out = io.StringIO()
    print_up(Console(file=out, width=80), report, "")
    shown = out.getvalue()
    assert report.as_json()["curl"] in shown
    assert report.as_json()["python"] in shown
    assert access_file["admin_key"] not in shown


def test_pods_get_their_environment_from_the_graph_and_the_cache_answers(machine: Machine) -> None:
    import redis

    env = json.loads(urlopen(f"http://127.0.0.1:{8080 + OFFSET}/echo-env").read())
    settings = json.loads(Path(env["FLOTILLA_SETTINGS_FILE"]).read_bytes())
    assert env["AWS_ENDPOINT_URL"] == json.loads((machine.state.root / "estate.json").read_text())["regions"][HOME]["aws_url"]
    assert machine.pods()[f"{HOME}/aws-front-0"].address in env["AWS_ENDPOINT_URL"]
    assert env["FLOTILLA_POD_NAME"] == "gateway-0"
    assert env["FLOTILLA_POD_IP"] == machine.pods()[f"{HOME}/gateway-0"].address
    assert len(f"{env['TMPDIR']}/{'0' * 36}") < 107  # the longest path of a Unix socket
    endpoints = json.loads((Path(env["FLOTILLA_ENDPOINTS_DIR"]) / "serving.engine-small.json").read_bytes())
    (engine,) = [pod for name, pod in machine.pods().items() if "engine-small" in name]
    assert endpoints["endpoints"] == [{"name": engine.name, "address": engine.address, "ready": True}]
    cache = redis.Redis.from_url(settings["cache_url"])
    assert cache.ping()
    assert cache.config_get("bind") == {"bind": machine.pods()[f"{HOME}/cache-0"].address}
    cache.close()


def test_a_second_up_changes_nothing_and_says_so(machine: Machine) -> None:
    before = machine.pods()
    report = machine.up(port_offset=None)
    assert report.is_unchanged
    assert machine.pods() == before
    out = io.StringIO()
    print_up(Console(file=out), report, "")
    assert "Nothing to change" in out.getvalue()


def test_a_changed_manifest_rolls_that_workload_only(machine: Machine) -> None:
    before = machine.pods()
    machine.engine_argument = "--max-num-seqs=4"
    report = machine.up()
    assert [key for key, change in report.workloads.items() if change != "unchanged"] == ["us-east-2.serving.engine-small"]
    replaced = {name for name in before if name not in machine.pods()}
    assert {name.rpartition("-")[0].rpartition("-")[0] for name in replaced} == {f"{HOME}/engine-small"}


def test_status_and_preview_know_what_is_up(machine: Machine) -> None:
    status = status_json(machine.state.status())
    assert {"gateway-0", "cache-0", "aws-0"} < {pod["name"] for pod in status["pods"]}
    assert all(pod["ready"] and pod["containers"][0]["pid"] for pod in status["pods"])
    out = io.StringIO()
    Console(file=out, width=160).print(render_status(machine.state.status()))
    assert f"127.0.0.1:{8080 + OFFSET}" in out.getvalue()
    kept = load_graph(machine.state.root, "local.serving.us-east-2")
    assert kept is not None and len(kept.resources) == len(machine.program["local.serving.us-east-2"].resources)


def test_another_region_comes_beside_and_the_one_not_named_runs_on(machine: Machine) -> None:
    before = machine.pods()
    report = machine.up(OTHER)
    assert before.items() <= machine.pods().items()
    assert {name for name in machine.pods() if name.startswith(OTHER)} > {f"{OTHER}/gateway-0", f"{OTHER}/cache-0"}
    assert report.target.regions[OTHER].base_url == f"http://127.0.0.1:{8090 + OFFSET}/v1"
    assert report.target.regions[HOME].base_url == f"http://127.0.0.1:{8080 + OFFSET}/v1"
    assert len({pod.address for pod in machine.pods().values()}) == len(machine.pods())


def test_while_one_is_at_work_another_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(*_: Any) -> None:
        with pytest.raises(UserError, match=rf"another flotilla \(pid {os.getpid()}\)"):
            machine.down()
        raise UserError("seen")

    monkeypatch.setattr(bringing_up, "realise_stack", second)
    with pytest.raises(UserError, match="seen"):
        machine.up()


def test_kill_9_of_the_emulated_aws_loses_nothing_that_is_a_second_old(machine: Machine) -> None:
    item = {"pk": {"S": "demo#2026-11-23"}, "sk": {"S": "event"}}
    machine.aws("dynamodb").put_item(TableName="flotilla-local-ledger", Item=item)
    machine.aws("s3").put_object(Bucket="flotilla-local-use2-artifacts", Key="young", Body=b"object")
    time.sleep(2.5)
    pod = machine.pods()["/aws-0"]
    os.kill(pod.containers[0].pid, signal.SIGKILL)
    wait_until(lambda: machine.pods()["/aws-0"].restarts == 1 and machine.pods()["/aws-0"].ready, "it is back")
    assert machine.aws("dynamodb").get_item(TableName="flotilla-local-ledger", Key=item)["Item"] == item
    assert machine.aws("s3").get_object(Bucket="flotilla-local-use2-artifacts", Key="young")["Body"].read() == b"object"
    assert machine.up(HOME, OTHER).is_unchanged


def test_after_kill_9_of_the_agent_the_next_up_goes_on(machine: Machine) -> None:
    num_before = machine.num_processes()
    agent = machine.state.agent_pid()
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: machine.state.agent_pid() == 0, "it is gone")
    assert machine.num_processes() == num_before
    report = machine.up(HOME, OTHER)
    assert set(report.outcomes) == {"unchanged"}
    assert machine.num_processes() == num_before
    assert machine.num_keys == 1


def test_a_pod_that_cannot_start_is_named_with_what_it_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MAX_RESTARTS", 1)
    broken = machine.program["local.serving.us-east-2"]

    def fail(resource: Resource) -> Resource:
        if resource.name != "gateway" or resource.type != "kubernetes:apps/v1:StatefulSet":
            return resource
        inputs = json.loads(json.dumps(resource.inputs))
        for container in inputs["spec"]["template"]["spec"]["containers"]:
            container["env"].append({"name": "EXIT", "value": "7"})
        return replace(resource, inputs=inputs)

    machine.program = {
        **machine.program,
        "local.serving.us-east-2": replace(broken, resources=tuple(map(fail, broken.resources))),
    }
    with pytest.raises(UserError, match=r"gateway-0/(gateway|shipper) keeps ending: exited with status 7.*\(started\)") as raised:
        machine.up()
    assert "gateway-0" in raised.value.hint
    machine.program = {**machine.program, "local.serving.us-east-2": broken}
    assert machine.up(timeout_s=60).workloads["us-east-2.serving.gateway"] == "changed"


def test_down_leaves_no_process_and_no_port_and_keeps_what_was_written(machine: Machine) -> None:
    journal = machine.state.volumes / HOME / "serving" / "journal-gateway-0"
    (journal / "segment").write_text("acknowledged")
    assert machine.down()
    assert machine.num_processes() == 0
    assert machine.state.agent_pid() == 0
    for port in (8080 + OFFSET, 8081 + OFFSET, 8083 + OFFSET, 8090 + OFFSET):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert not machine.state.access_file.exists()
    assert not machine.state.shortcut.is_symlink()
    assert not machine.down()
    report = machine.up()
    assert set(report.outcomes) == {"unchanged"}
    assert report.target.api_key == "fl_demo_key"
    assert machine.num_keys == 1
    assert (journal / "segment").read_text() == "acknowledged"
    key = {"pk": {"S": "demo#2026-11-23"}, "sk": {"S": "event"}}
    assert machine.aws("dynamodb").get_item(TableName="flotilla-local-ledger", Key=key)["Item"] == key


def test_purge_forgets_everything(machine: Machine) -> None:
    assert machine.down(purge=True)
    assert not machine.state.root.exists()
    assert machine.num_processes() == 0
    assert not machine.down(purge=True)


def test_a_full_disk_is_one_line(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(machine.state.root / "aws"))

    monkeypatch.setattr(bringing_up, "realise_stack", full)
    with pytest.raises(UserError, match="aws: the disk is full"):
        machine.up()
