"""A supervisor around a fake engine, on an address of its own."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from policies.health import RestartLimits
from serving.engine.adapters import VllmAdapter
from serving.engine.metrics import Metrics
from serving.engine.process import adopt_orphans
from serving.engine.source import Obtained, ReleaseSource
from serving.engine.state import Cadence
from serving.engine.supervisor import Supervisor
from serving.models.fetch import FetchedRelease
from serving.models.files import Progress
from serving.models.manifest import Canaries, Canary, Manifest
from serving.settings import EngineSettings
from serving.target import Target
from tests.serving.models.conftest import ministack_url  # noqa: F401 (a fixture)

FAKE = Path(__file__).parent / "fake"
RELEASE = "a" * 64
CANARIES = {"reference": Canaries("reference", "a test", (Canary("One, two,", " three", 1),))}
_numbers = itertools.count(2)
QUICK = Cadence(
    watch_s=0.05,
    poll_s=0.05,
    registry_poll_s=0.05,
    settle_s=0.1,
    stop_grace_s=1.0,
    suspect_after_s=0.5,
    restarts=RestartLimits(stable_after_s=0.2, first_delay_s=0.05),
)


def free_address() -> str:
    """An address of this machine that no other test uses."""
    return f"127.{64 + os.getpid() % 64}.{os.getpid() // 64 % 250}.{next(_numbers)}"


def make_settings(**fields: Any) -> EngineSettings:
    base = EngineSettings(
        environment="local",
        region="us-east-2",
        model_class="small",
        registry_table="registry",
        artifact_bucket="artifacts",
        start_timeout_s=20,
        stall_limit_s=0.6,
        probe_timeout_s=0.5,
        drain_s=5,
    )
    return base.model_copy(update=fields)


@dataclass(frozen=True)
class ReadySource(ReleaseSource):
    """A release that is there already."""

    manifest_args: dict[str, str] = field(default_factory=lambda: {"dtype": "bfloat16"})

    def current(self) -> str:
        return RELEASE

    def obtain(self, release_id: str, on_progress: Callable[[Progress], None], stop: threading.Event) -> Obtained:
        manifest = Manifest("small", "Tiny", "a test", 2048, self.manifest_args, ())
        return Obtained(release_id, FetchedRelease(self.cache, manifest, 0.5, 1_000_000_000, 0.25, 1_000_000_000), CANARIES)


@dataclass
class Pod:
    """A supervisor that runs, and the engine it has started."""

    supervisor: Supervisor
    running: asyncio.Task[int]

    @property
    def base(self) -> str:
        return f"http://{self.supervisor.host}:8000"

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10) -> float:
        """Seconds until `condition` held."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s; {self.supervisor.status}"
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def until_ready(self) -> None:
        await self.until(lambda: self.supervisor.is_ready)

    async def control(self, **fields: Any) -> dict[str, Any]:
        """Tells the engine how to behave, or asks who it is."""
        return await asyncio.to_thread(self._control, fields)

    def _control(self, fields: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(fields).encode() if fields else None
        with urlopen(Request(f"{self.base}/control", data=data), timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def metric(self, line: str) -> float:
        """Value of the sample that is named so, labels and all."""
        samples = dict(row.rsplit(" ", 1) for row in self.supervisor.metrics.render().decode().splitlines() if row[0] != "#")
        return float(samples[line])

    def restarts(self, reason: str) -> float:
        return self.metric(f'flotilla_engine_restarts_total{{model="small",reason="{reason}"}}')


Start = Callable[..., Pod]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts pods; ends them, and shows that nothing of them is left."""
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    adopt_orphans()
    pods: list[Pod] = []

    def start_one(source: type[ReleaseSource] = ReadySource, engine_args: tuple[str, ...] = (), **fields: Any) -> Pod:
        cadence = replace(QUICK, **{name: fields.pop(name) for name in list(fields) if hasattr(QUICK, name)})
        adapter = fields.pop("adapter", VllmAdapter())
        release_source = source(make_settings(**fields), None, None, tmp_path)  # type: ignore[arg-type]
        supervisor = Supervisor(release_source, adapter, Metrics("small"), free_address(), engine_args, cadence)
        pods.append(Pod(supervisor, asyncio.create_task(supervisor.run())))
        return pods[-1]

    yield start_one
    for pod in pods:
        pod.supervisor.leave()
        await asyncio.wait_for(pod.running, 15)
        with pytest.raises(URLError):
            await asyncio.to_thread(pod._control, {})
    adopt_orphans(False)


def is_alive(pid: int) -> bool:
    """Whether the process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@dataclass
class PodProcess:
    """`python -m serving.engine` as the orchestrator runs it."""

    process: subprocess.Popen[bytes]
    host: str
    log: Path

    def get(self, path: str, port: int = 8001) -> tuple[int, Any]:
        """Status and body; status 0 when nobody answers."""
        try:
            with urlopen(f"http://{self.host}:{port}{path}", timeout=60) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def status(self) -> dict[str, Any]:
        """What /readyz says; empty when nobody answers."""
        found: dict[str, Any] = json.loads(self.get("/readyz")[1] or b"{}")
        return found

    def samples(self, port: int = 8001) -> dict[str, float]:
        """Every sample of /metrics, by name and labels."""
        rows = self.get("/metrics", port)[1].decode().splitlines()
        return {name: float(value) for name, value in (row.rsplit(" ", 1) for row in rows if row and row[0] != "#")}

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> float:
        """Seconds until `condition` held."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > timeout_s:
                raise AssertionError(f"not within {timeout_s} s: {self.status()}\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)
        return time.monotonic() - began

    def wait_ready(self, timeout_s: float) -> float:
        return self.wait_for(lambda: self.get("/readyz")[0] == 200, timeout_s)

    def end(self) -> int:
        """Tells it to leave; its exit status."""
        self.process.terminate()
        return self.process.wait(60)


def start_pod(python: str, target: Target, region: str, folder: Path, *engine_args: str, **env: str) -> PodProcess:
    """Starts an engine pod on an address of its own, with `folder` for its settings, cache and log."""
    host = free_address()
    folder.mkdir(exist_ok=True)
    settings = EngineSettings(
        environment="local",
        region=region,
        model_class="small",
        registry_table=target.regions[region].tables["registry"],
        artifact_bucket=target.regions[region].artifact_bucket,
    )
    (folder / "engine.json").write_text(settings.model_dump_json())
    environment = {
        **os.environ,
        "FLOTILLA_SETTINGS_FILE": str(folder / "engine.json"),
        "FLOTILLA_MODEL_CACHE_DIR": str(folder / "cache"),
        "FLOTILLA_POD_IP": host,
        "FLOTILLA_POD_NAME": "engine-small-0",
        "AWS_ENDPOINT_URL": target.aws_endpoint_url,
        **env,
    }
    log = folder / "log"
    with log.open("wb") as output:
        command = [python, "-m", "serving.engine", "--", *engine_args]
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True)
    return PodProcess(process, host, log)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kills whatever is left of the pod's session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, session = int(path.parent.name), int(path.read_text().rsplit(")", 1)[1].split()[3])
            if session == process.pid:
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
    process.wait()


def session_members(process: subprocess.Popen[bytes]) -> list[str]:
    """Command lines of what lives in the pod's session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            session = int((path / "stat").read_text().rsplit(")", 1)[1].split()[3])
            if session == process.pid and is_alive(int(path.name)):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
