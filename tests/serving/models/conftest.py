"""A small release to publish and fetch, on moto or on the emulated AWS."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
import pytest
from moto import mock_aws

import serving.target
from serving.models.convert import CANARIES_NAME, CONVERSION_NAME, FILES_NAME, Conversion
from serving.models.manifest import Canaries, Canary
from serving.target import RegionTarget, Target

HOME = "us-east-2"
AWAY = "us-west-2"
TABLE = "registry"


@pytest.fixture
def conversion(tmp_path: Path) -> Path:
    """A finished conversion of a model that nobody could load: what matters here is bytes."""
    folder = tmp_path / "conversion"
    files = folder / FILES_NAME
    files.mkdir(parents=True)
    (files / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    (files / "config.json").write_text("{}")
    (files / "tokenizer.json").write_text('{"version": "1.0"}')
    described = Conversion("Tiny-Instruct", "pypi:tiny==1.0", 2048, {"dtype": "bfloat16"})
    (folder / CONVERSION_NAME).write_bytes(msgspec.json.encode(described))
    canaries = Canaries("reference", "a test", (Canary("One, two,", " three", 1),))
    (folder / CANARIES_NAME).write_bytes(msgspec.json.encode(canaries))
    return folder


def make_target(*regions: str, endpoint_url: str = "") -> Target:
    """A target whose regions exist only as names so far."""
    tables = {"registry": TABLE, "tenants": "tenants", "ledger": "ledger"}
    found = {name: RegionTarget("http://gateway/v1", "http://gateway", f"artifacts-{name}", tables) for name in regions}
    return Target("local", HOME, "", "", found, endpoint_url)


def make_resources(target: Target, *, replicated: bool = False) -> None:
    """The target's buckets and its registry table; `replicated` makes the first region's bucket copy to the others."""
    for name, region in target.regions.items():
        s3 = target.aws_client("s3", name)
        s3.create_bucket(Bucket=region.artifact_bucket, CreateBucketConfiguration={"LocationConstraint": name})
        s3.put_bucket_versioning(Bucket=region.artifact_bucket, VersioningConfiguration={"Status": "Enabled"})
    if replicated:
        first, *others = target.regions
        rules = [
            {
                "ID": name,
                "Status": "Enabled",
                "Priority": number,
                "Filter": {"Prefix": ""},
                "DeleteMarkerReplication": {"Status": "Disabled"},
                "Destination": {"Bucket": f"arn:aws:s3:::{target.regions[name].artifact_bucket}"},
            }
            for number, name in enumerate(others)
        ]
        target.aws_client("s3", first).put_bucket_replication(
            Bucket=target.regions[first].artifact_bucket,
            ReplicationConfiguration={"Role": "arn:aws:iam::000000000000:role/replication", "Rules": rules},
        )
    target.aws_client("dynamodb", HOME).create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
    )


_clients = functools.cache(serving.target.aws_client)
"""A client takes 0.1 s to make and moto is behind each one that exists, so tests share them."""


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty AWS inside this process."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr(serving.target, "aws_client", _clients)
    with mock_aws():
        yield


@pytest.fixture
def target(moto: None) -> Target:
    """One region, on moto."""
    target = make_target(HOME)
    make_resources(target)
    return target


@pytest.fixture
def s3(target: Target) -> Iterator[CountingS3]:
    """The S3 client that everything under test uses, watched."""
    counting = CountingS3(target.aws_client("s3", HOME))
    counting.before("*", lambda model, params, **_: counting.calls.append((model.name, params.get("Key", ""))))
    yield counting
    counting.close()


class CountingS3:
    """An S3 client that remembers which operations were asked of it, and with which keys."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: list[tuple[str, str]] = []
        self._handlers: list[tuple[str, Callable[..., None]]] = []

    def before(self, operation: str, handler: Callable[..., None]) -> None:
        """Calls `handler(params=, model=)` before each such operation."""
        event = f"before-parameter-build.s3.{operation}"
        self.client.meta.events.register(event, handler)
        self._handlers.append((event, handler))

    def close(self) -> None:
        for event, handler in self._handlers:
            self.client.meta.events.unregister(event, handler)

    def keys(self, *operations: str) -> list[str]:
        return [key.rpartition("/")[2] for name, key in self.calls if name in operations]


@pytest.fixture(scope="session")
def ministack_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MiniStack on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    closed = {"IOT_MTLS_ENABLED": "0", "SFTP_ENABLED": "0"}  # each would open a port on every interface
    env = {**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "PERSIST_STATE": "0", **closed}
    folder = tmp_path_factory.mktemp("ministack")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "ministack"], env=env, cwd=folder, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 30
            while not _answers(url):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "MiniStack did not start"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/_ministack/health", timeout=1):
            return True
    except (URLError, OSError):
        return False
