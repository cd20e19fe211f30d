"""Two regions for failovers: their tables and buckets by moto, their gateways as one small server that reads those tables.

Replication, scaling policies and shippers are played by `World.settle`, which a run's own `sleep` calls: what a real region would
do within seconds happens between two looks. Region `down` does none of it, and its gateways do not answer.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from boto3.dynamodb.types import TypeDeserializer
from moto import mock_aws

from infra.recovery.estate import Estate, RegionEstate
from infra.recovery.guard import Guard
from infra.recovery.operations import Recovery
from infra.recovery.step import Options
from infra.recovery.table import FailoverTable
from policies.failover.controls import Verdict, decide_evacuated, settle
from policies.failover.items import CONTROL, FLOOR, TAKEOVER, Control, Floor, Report, Shipped, TakenOver, Takeover, unpack

EAST, WEST = "us-east-2", "us-west-2"
REGIONS = (EAST, WEST)
TABLE = "failover"
KEY = "fk-test"
RELEASE_FILES = {"model.safetensors": b"weights", "tokenizer.json": b"{}"}


@dataclass
class Clock:
    """Time that passes when somebody waits, and a little with every look."""

    now_s: float = 1_800_000_000.0

    def __call__(self) -> float:
        self.now_s += 0.01
        return self.now_s


@dataclass
class World:
    """What is true, and what was asked of it."""

    estate: Estate
    clock: Clock
    down: set[str] = field(default_factory=set)
    in_flight: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REGIONS, 20))
    num_ready: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REGIONS, 2))
    max_engines: int = 4
    release_id: str = ""
    asked: list[str] = field(default_factory=list)
    """Paths of the synthetic requests, with their status."""
    said: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    clients: dict[str, Any] = field(default_factory=lambda: {it: boto3.client("dynamodb", region_name=it) for it in REGIONS})
    tables: dict[str, FailoverTable] = field(default_factory=dict)

    def recovery(self, **changes: Any) -> Recovery:
        """Somebody who runs failovers here."""
        made = Recovery(
            self.estate,
            changes.pop("options", Options(api_key=KEY)),
            clock=self.clock,
            sleep=self.sleep,
            by=changes.pop("by", "kim"),
        )
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    def table(self, region: str) -> FailoverTable:
        if region not in self.tables:
            self.tables[region] = FailoverTable(Guard(self.estate, ""), TABLE, region)
        return self.tables[region]

    def items(self, region: str) -> dict[tuple[str, str], dict[str, Any]]:
        """Every item of the region's replica."""
        found = self.clients[region].scan(TableName=TABLE)["Items"]
        plain = [{name: TypeDeserializer().deserialize(value) for name, value in item.items()} for item in found]
        return {(item["pk"], item["sk"]): item for item in plain}

    def controls(self, region: str) -> dict[str, bool]:
        return {key[1]: item["is_evacuated"] for key, item in self.items(region).items() if key[0] == CONTROL}

    def sleep(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.settle()

    def settle(self) -> None:
        """Replicates, reports, scales and ships, as regions that are up do."""
        up = [region for region in REGIONS if region not in self.down]
        for region in up:
            self._obey(region)
        if len(up) == len(REGIONS):
            self._replicate()
        for region in up:
            self.table(region).put(self._report(region))
        if len(up) == len(REGIONS):
            self._replicate()

    def verdict(self, region: str, here: str) -> Verdict:
        """What gateways of `here` say of `region`."""
        controls = {key[1]: unpack(Control, item) for key, item in self.items(here).items() if key[0] == CONTROL}
        before = self.said.get((here, region), Verdict.SERVING)
        self.said[here, region] = settle(before, decide_evacuated(controls, region, here))
        return self.said[here, region]

    def _report(self, region: str) -> Report:
        floor = self.items(region).get((FLOOR, f"{region}#small"), {}).get("min_engines", 0)
        classes = {
            "small": {
                "num_ready": self.num_ready[region],
                "max_engines": self.max_engines,
                "places_per_engine": 32,
                "min_engines": max(1, int(floor)),
                "release_ids": [self.release_id],
                "in_flight": {"standard": self.in_flight[region]},
            }
        }
        return Report(region, "gateway-0", self.clock.now_s, classes)

    def _obey(self, region: str) -> None:
        table = self.table(region)
        table.put(Shipped(region, "gateway-0", self.clock.now_s, 0))
        for key, item in self.items(region).items():
            if key[0] == TAKEOVER and item["by_region"] == region:
                takeover = unpack(Takeover, item)
                done = TakenOver(takeover.region, region, takeover.run_id, self.clock.now_s, 7, 2, "2026-11-24T10:00:00Z")
                table.put(done)
            if key[0] == FLOOR and unpack(Floor, item).region == region:
                self.num_ready[region] = max(self.num_ready[region], int(item["min_engines"]))

    def _replicate(self) -> None:
        """The newer of two items wins, by the time that each carries."""
        for one, other in ((EAST, WEST), (WEST, EAST)):
            theirs = self.clients[other].scan(TableName=TABLE)["Items"]
            known = {(item["pk"]["S"], item["sk"]["S"]): item for item in theirs}
            for item in self.clients[one].scan(TableName=TABLE)["Items"]:
                key = (item["pk"]["S"], item["sk"]["S"])
                if key not in known or _written(item) > _written(known[key]):
                    self.clients[other].put_item(TableName=TABLE, Item=item)


def _written(item: dict[str, Any]) -> tuple[float, float]:
    return tuple(float(item.get(name, {"N": "0"})["N"]) for name in ("at_s", "revision"))  # type: ignore[return-value]


class _Gateways(BaseHTTPRequestHandler):
    """Answers for every region, by the first part of the path: `/us-east-2/region`, and `/api/…` for whoever is in rotation."""

    world: World

    def do_GET(self) -> None:
        _, region, *path = self.path.split("/")
        if region in self.world.down:
            self.close_connection = True
            return
        if path == ["region"]:
            self._answer(503 if self.world.verdict(region, region) is Verdict.EVACUATED else 200)
        else:
            self._answer(200 if self.world.verdict(path[-1], region) is Verdict.EVACUATED else 404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status = 200 if self.headers["authorization"] == f"Bearer {KEY}" else 401
        self.world.asked.append(f"{self.path} {status}")
        self._answer(status)

    def _answer(self, status: int) -> None:
        body = b'{"error": {"code": "invalid_api_key"}}' if status == 401 else b"{}"
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def two_regions() -> Iterator[World]:
    """The world, with one release of one class in both regions."""
    with mock_aws():
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Gateways)
        base = f"http://127.0.0.1:{server.server_port}"
        regions = {it: RegionEstate(it, f"{base}/{it}", f"artifacts-{it}", f"archive-{it}") for it in REGIONS}
        estate = Estate("prod", regions, TABLE, "registry", f"{base}/api", {"small": 7000})
        world = World(estate, Clock())
        server.RequestHandlerClass = type("Gateways", (_Gateways,), {"world": world})
        for region in REGIONS:
            _make_tables(region)
            world.release_id = _publish(region)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        world.settle()
        try:
            yield world
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _make_tables(region: str) -> None:
    boto3.client("dynamodb", region_name=region).create_table(
        TableName=TABLE,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
    )


def _publish(region: str) -> str:
    files = [
        {"path": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in RELEASE_FILES.items()
    ]
    manifest = json.dumps({"model": "small", "files": files}).encode()
    release_id = hashlib.sha256(manifest).hexdigest()
    s3 = boto3.client("s3", region_name=region)
    s3.create_bucket(Bucket=f"artifacts-{region}", CreateBucketConfiguration={"LocationConstraint": region})  # type: ignore[typeddict-item]
    for name, content in {**RELEASE_FILES, "manifest.json": manifest}.items():
        s3.put_object(Bucket=f"artifacts-{region}", Key=f"releases/small/{release_id}/{name}", Body=content)
    return release_id
