"""Makers of usage records, readers of journal directories, and an emulated AWS."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen, UsageProgress, UsageRecord
from serving.metering.framing import SegmentHeader, decode_segment, encode_header, encode_record
from serving.metering.segments import OPEN, SEALED, SegmentName, list_segments
from serving.settings import JournalSettings
from serving.target import aws_client

SOURCE = "gateway-0-0"
REGION = "us-east-2"
NOON_MS = 1_763_812_800_000  # 2025-11-22T12:00:00Z
NEVER_SEALED = JournalSettings(seal_after_s=3600)


class Records:
    """Makes usage records; every event has its own id."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def open(self, **changes: Any) -> UsageOpen:
        values: dict[str, Any] = {
            "event_id": f"019aab7c-0000-7000-8000-{next(self._numbers):012d}",
            "tenant": "acme",
            "key_id": "k1",
            "model": "small",
            "release_id": "a" * 64,
            "region": REGION,
            "gateway": SOURCE,
            "endpoint": "chat.completions",
            "opened_at_ms": NOON_MS,
            "prompt_tokens": 100,
            "price_version": "2025-11",
            "input_micro_usd_per_mtok": 100_000,
            "cached_input_micro_usd_per_mtok": 50_000,
            "output_micro_usd_per_mtok": 400_000,
        }
        return UsageOpen(**{**values, **changes})

    def progress(self, event: UsageOpen, output_tokens: int) -> UsageProgress:
        return UsageProgress(event.event_id, event.prompt_tokens, 0, output_tokens)

    def close(self, event: UsageOpen, output_tokens: int = 10, **changes: Any) -> UsageClose:
        values: dict[str, Any] = {
            "open": event,
            "outcome": Outcome.FINISHED,
            "source": CountSource.ENGINE_FINAL,
            "prompt_tokens": event.prompt_tokens,
            "cached_tokens": 0,
            "output_tokens": output_tokens,
            "closed_at_ms": event.opened_at_ms + 1500,
            "finish_reason": "stop",
            "ttft_ms": 120.25,
        }
        return UsageClose(**{**values, **changes})


class JournalFolder:
    """A journal directory, and what it says to whoever reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def write(
        self, *records: UsageRecord, seq: int = 0, epoch: int = NOON_MS, suffix: str = SEALED, source: str = SOURCE
    ) -> Path:
        """Put a segment there, as a writer would have."""
        path = self.path / f"{SegmentName(source, epoch, seq).stem}{suffix}"
        header = encode_header(SegmentHeader(source, epoch, seq, NOON_MS))
        path.write_bytes(header + b"".join(map(encode_record, records)))
        return path

    def records(self, suffix: str = SEALED) -> list[UsageRecord]:
        """The records of all segments in a state, oldest first."""
        return [record for path in list_segments(self.path, suffix) for record in decode_segment(path.read_bytes()).records]

    def closes(self) -> list[UsageClose]:
        return [record for record in self.records() if isinstance(record, UsageClose)]

    def names(self) -> list[str]:
        """File names, without locks."""
        return sorted(path.name for path in self.path.iterdir() if path.suffix != ".lock")

    def is_settled(self) -> bool:
        return not list_segments(self.path, OPEN)


@pytest.fixture(scope="session")
def records() -> Records:
    return Records()


@pytest.fixture
def folder(tmp_path: Path) -> JournalFolder:
    return JournalFolder(tmp_path / "journal")


@pytest.fixture(scope="session")
def never_sealed() -> JournalSettings:
    """Journal settings under which only `aclose` seals."""
    return NEVER_SEALED


@dataclass
class EmulatedAws:
    """MiniStack on loopback, and a bucket and a table of its own for each test."""

    endpoint_url: str
    s3: Any
    dynamodb: Any
    bucket: str = ""
    table: str = ""

    def objects(self) -> dict[str, bytes]:
        """Key -> content of everything in the bucket."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key: self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def empty_bucket(self) -> None:
        for key in self.objects():
            self.s3.delete_object(Bucket=self.bucket, Key=key)

    def make_table(self, name: str) -> None:
        self.dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an emulated AWS that lives as long as the tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("ministack")
    env = {**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "ministack"], cwd=folder, env=env, stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + 30
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None and time.monotonic() < deadline_s, (folder / "log").read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def aws(ministack: str, request: pytest.FixtureRequest) -> EmulatedAws:
    emulated = EmulatedAws(ministack, aws_client("s3", REGION, ministack), aws_client("dynamodb", REGION, ministack))
    unique = f"{abs(hash(request.node.nodeid)) % 10**10:010d}"
    emulated.bucket, emulated.table = f"archive-{unique}", f"ledger-{unique}"
    emulated.s3.create_bucket(Bucket=emulated.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    emulated.make_table(emulated.table)
    return emulated


@pytest.fixture
def no_aws() -> tuple[Any, Any]:
    """Clients of an AWS that is not there, and who say so at once."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=1)
    options = {"endpoint_url": "http://127.0.0.1:9", "aws_access_key_id": "none", "aws_secret_access_key": "none"}
    s3, dynamodb = (boto3.client(name, region_name=REGION, config=config, **options) for name in ("s3", "dynamodb"))
    return s3, dynamodb


@pytest.fixture
def wait_until() -> Callable[..., None]:
    def wait(condition: Callable[[], bool], timeout_s: float = 10) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
            time.sleep(0.02)

    return wait
