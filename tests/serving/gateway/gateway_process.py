"""The gateway as a process on an emulated AWS: its world, for tests and benchmarks."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
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
from urllib.request import urlopen

from gateway_support import CHAT_TEMPLATE, TOKENIZER_CONFIG, make_settings

from serving.metering.events import UsageClose
from serving.metering.framing import decode_segment
from serving.metering.segments import OPEN, SEALED
from serving.models.manifest import Manifest, ReleaseFile, release_prefix
from serving.models.registry import WeightedRelease, set_alias
from serving.target import RegionTarget, Target, aws_client

REGION = "us-east-2"
ADMIN_KEY = "admin-key"
SECRETS = {"pepper": "a pepper", "salt": "a salt", "admin": ADMIN_KEY}
TABLES = ("registry", "tenants", "ledger", "idempotency", "prompts", "failover", "conversations")
addresses = (f"127.{os.getpid() % 200 + 20}.{number // 250}.{number % 250 + 2}" for number in itertools.count())


@dataclass
class World:
    """What a gateway process finds around it."""

    aws_url: str
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def client(self, service: str) -> Any:
        return aws_client(service, REGION, self.aws_url)

    def make_secrets(self) -> None:
        for name, value in SECRETS.items():
            self.client("secretsmanager").create_secret(Name=name, SecretString=value)

    def publish(self, tokenizer_json: bytes, window: int) -> None:
        files = {
            "tokenizer.json": tokenizer_json,
            "tokenizer_config.json": TOKENIZER_CONFIG,
            "chat_template.jinja": CHAT_TEMPLATE.encode(),
        }
        listed = tuple(ReleaseFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items())
        manifest = Manifest("small", "Tiny", "test", window, {}, listed)
        for name, content in {**files, "manifest.json": manifest.encode()}.items():
            key = release_prefix("small", manifest.release_id) + name
            self.client("s3").put_object(Bucket="artifacts", Key=key, Body=content)
        weighted = (WeightedRelease(manifest.release_id),)
        set_alias(self.client("dynamodb"), "registry", "small", weighted, expected_revision=None, now_ms=1)

    def serve_by(self, port: int, addresses: Sequence[str] = ("127.0.0.1",)) -> None:
        """The realiser's file of the engines' Service."""
        found = [
            {"name": f"engine-small-{number}", "address": address, "ready": True} for number, address in enumerate(addresses)
        ]
        path = self.folder / "endpoints" / "serving.engine-small.json"
        path.with_suffix(".new").write_text(json.dumps({"ports": {"http": port}, "endpoints": found}))
        path.with_suffix(".new").replace(path)


@dataclass
class Process:
    """One gateway process, its journal and its addresses."""

    process: subprocess.Popen[bytes]
    address: str
    journal: Path

    @property
    def base_url(self) -> str:
        return f"http://{self.address}:8080"

    @property
    def ops_url(self) -> str:
        return f"http://{self.address}:8081"

    @property
    def admin_url(self) -> str:
        return f"http://{self.address}:8083"

    def ready(self) -> tuple[int, dict[str, Any]]:
        try:
            with urlopen(f"{self.ops_url}/readyz", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            return error.code, json.loads(error.read())
        except URLError:
            return 0, {}

    def wait_ready(self) -> None:
        deadline_s = time.monotonic() + 30
        while self.ready()[0] != 200:
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.ready()
            time.sleep(0.05)

    def target(self, api_key: str = "") -> Target:
        tables = {name: name for name in TABLES}
        region = RegionTarget(f"{self.base_url}/v1", self.admin_url, "artifacts", tables)
        return Target("local", REGION, ADMIN_KEY, api_key, {REGION: region})

    def closed(self) -> list[UsageClose]:
        """CLOSE records on disk, those of open segments included."""
        records: list[UsageClose] = []
        for path in sorted(self.journal.iterdir()):
            if path.suffix in (OPEN, SEALED):
                records += [record for record in decode_segment(path.read_bytes()).records if isinstance(record, UsageClose)]
        return records


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running_world(folder: Path, tokenizer_json: bytes, window: int = 2048) -> Iterator[World]:
    """An emulated AWS with a published release; its secrets are made by whoever wants them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "endpoints").mkdir()
    env = {**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0", "SFTP_ENABLED": "0"}
    with (folder / "aws.log").open("wb") as log:
        aws = subprocess.Popen([sys.executable, "-m", "ministack"], cwd=folder, env=env, stdout=log, stderr=log)
    world = World(f"http://127.0.0.1:{port}", folder)
    try:
        deadline_s = time.monotonic() + 30
        while not listens(port):
            assert aws.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.05)
        for bucket in ("artifacts", "bodies"):
            world.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        for name in TABLES:
            world.client("dynamodb").create_table(
                TableName=name,
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
                BillingMode="PAY_PER_REQUEST",
            )
        world.publish(tokenizer_json, window)
        yield world
    finally:
        for process in world.processes:
            process.kill()
        aws.terminate()
        aws.wait(10)


def start(world: World, *, journal: Path | None = None, python: Sequence[str] = (), **settings: Any) -> Process:
    """A gateway process; `python` are options for its interpreter."""
    address = next(addresses)
    folder = world.folder / address
    folder.mkdir()
    changes = {"key_cache_s": 0.5, "drain_s": 10, **settings}
    (folder / "gateway.json").write_text(make_settings(**changes).model_dump_json())
    env = {
        **os.environ,
        "AWS_ENDPOINT_URL": world.aws_url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "FLOTILLA_ENDPOINTS_DIR": str(world.folder / "endpoints"),
        "FLOTILLA_SETTINGS_FILE": str(folder / "gateway.json"),
        "FLOTILLA_JOURNAL_DIR": str(journal or folder / "journal"),
        "FLOTILLA_POD_NAME": "gateway-0",
        "FLOTILLA_POD_IP": address,
    }
    command = [sys.executable, *python, "-m", "serving.gateway"]
    process = subprocess.Popen(command, env=env, cwd=folder, stdout=(folder / "log").open("wb"), stderr=subprocess.PIPE)
    world.processes.append(process)
    return Process(process, address, journal or folder / "journal")


def stop(gateway: Process) -> int:
    gateway.process.terminate()
    return gateway.process.wait(20)
