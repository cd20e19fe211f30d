"""Two local regions of twins in a folder of their own, brought up and driven by the commands that a user has.

Whatever a user has up beside them is not touched. What a region holds is read by that region's own way to AWS, so that what is
read after a loss is what a survivor could read.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec

from infra.embedded import faults, furniture
from infra.embedded.faults import Cut, RegionFaults
from infra.embedded.state import State
from infra.recovery.estate import Estate, load_estate
from serving.errors import UserError
from serving.metering.archive import PREFIX
from serving.metering.ledger import read_rows
from serving.metering.rows import LedgerRow
from serving.target import LOCAL, Target, aws_client

REGIONS = ("us-east-2", "us-west-2")
"""The first is the home region: the harder one to lose."""
OFFSETS = range(12_000, 20_000, 400)
COMMAND_LIMIT_S = 300.0
ALL_TIME_MS = 2**53


@dataclass(frozen=True)
class Holdings:
    """What a region holds, each thing by its key with a value that changes when the thing does."""

    keys: Mapping[str, str]
    """Tenants, and their API keys."""
    registry: Mapping[str, str]
    releases: Mapping[str, str]
    """Objects of artifacts."""
    archived: Mapping[str, str]
    """Segments of the lost region's usage."""
    rows: Mapping[str, str]
    """Of the ledger."""

    def lost_in(self, later: Holdings) -> dict[str, int]:
        """By kind, how many things are not in `later`, or are others there."""
        return {
            kind: sum(later_things.get(key) != value for key, value in things.items())
            for kind, things, later_things in ((name, getattr(self, name), getattr(later, name)) for name in vars(self))
        }


@dataclass
class TwoRegions:
    """Both, up."""

    root: Path
    env: Mapping[str, str]
    state: State = field(init=False)
    records: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """By twin and number, what it has told of its requests so far."""

    def __post_init__(self) -> None:
        self.state = State(self.root)

    @property
    def target(self) -> Target:
        """Addresses and the demo tenant's key."""
        return msgspec.json.decode(self.state.access_file.read_bytes(), type=Target)

    @property
    def estate(self) -> Estate:
        """What failovers know."""
        return load_estate(LOCAL, state_dir=self.root)

    @property
    def edge(self) -> tuple[str, int]:
        """Where clients ask."""
        return _address(self.estate.api_url)

    def address(self, region: str) -> tuple[str, int]:
        """Where the region's gateways answer, past the edge."""
        return _address(self.estate.region(region).url)

    def command(self, *arguments: str) -> list[str]:
        """`flotilla` as a process of its own."""
        return [sys.executable, "-m", "infra.cli", *arguments]

    def run(self, *arguments: str) -> str:
        """What the command printed.

        Raises:
            UserError: it exited otherwise than 0.
        """
        done = subprocess.run(
            self.command(*arguments), env=self.env, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-2:]
            raise UserError(f"flotilla {' '.join(arguments)} exited with {done.returncode}: {' '.join(last)}")
        return done.stdout

    def lose(self, region: str, survivor: str) -> None:
        """The region has no power, and its part of AWS cannot be reached from the survivor."""
        faults.plant(self.state, survivor, RegionFaults(cuts=(Cut(region=region),)))
        faults.plant(self.state, region, RegionFaults(cuts=(Cut(),), is_killed=True))

    def heal(self) -> None:
        """Power, volumes and AWS are back."""
        faults.heal_all(self.state)

    def has_pods(self, region: str) -> bool:
        """Whether a process of the region's gateways or engines is left."""
        return any(status.region == region for status in self._pods())

    def is_serving(self, region: str) -> bool:
        """Every pod of the region is ready."""
        found = [status.ready for status in self._pods() if status.region == region]
        return bool(found) and all(found)

    def client(self, service: str, region: str) -> Any:
        """A client for the region's AWS, by the region's own way to it."""
        return aws_client(service, region, self.estate.region(region).aws_url)

    def rows(self, region: str) -> list[LedgerRow]:
        """The ledger as the region has it."""
        table = self.target.regions[region].tables["ledger"]
        return list(read_rows(self.client("dynamodb", region), table, None, 0, ALL_TIME_MS))

    def holdings(self, region: str, of: str) -> Holdings:
        """What `region` holds; of archived usage that of the region `of`."""
        its, s3 = self.target.regions[region], self.client("s3", region)

        def objects(bucket: str, prefix: str = "") -> dict[str, str]:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return {item["Key"]: item["ETag"] for page in pages for item in page.get("Contents", ())}

        return Holdings(
            keys=self._items(region, its.tables["tenants"]),
            registry=self._items(region, its.tables["registry"]),
            releases=objects(its.artifact_bucket),
            archived=objects(its.archive_bucket, f"{PREFIX}{of}/"),
            rows={f"{row.key.pk} {row.key.sk}": row.canonical().decode() for row in self.rows(region)},
        )

    def poll_twins(self) -> None:
        """Asks every twin that is up what has happened since it was last asked."""
        for status in self._pods():
            if not status.workload.rpartition(".")[2].startswith("engine-small") or not status.ready:
                continue
            known = self.records.setdefault(f"{status.address} {status.started_at_ms}", {})
            running = [number for number, record in known.items() if record["outcome"] == "running"]
            since = min(running, default=max(known, default=-1) + 1)
            try:
                with urlopen(f"http://{status.address}:8000/twin/requests?since={since}", timeout=10) as answer:
                    known.update({record["number"]: record for record in json.loads(answer.read())})
            except OSError:  # it has just been killed: what it told before is what is known
                continue

    def told(self) -> list[dict[str, Any]]:
        """What twins have told of requests that ended; those a twin died with are not told of."""
        return [record for twin in self.records.values() for record in twin.values() if record["outcome"] != "running"]

    def _pods(self) -> tuple[Any, ...]:
        status = self.state.status()
        return tuple(pod for pod in status.pods if pod.namespace != "infrastructure") if status is not None else ()

    def _items(self, region: str, table: str) -> dict[str, str]:
        pages = self.client("dynamodb", region).get_paginator("scan").paginate(TableName=table)
        items = [item for page in pages for item in page["Items"]]
        return {f"{item['pk']['S']} {item['sk']['S']}": json.dumps(item, sort_keys=True, default=str) for item in items}


@contextmanager
def two_regions(keep: bool = False) -> Iterator[TwoRegions]:
    """Both regions on twins, in a new folder; taken down afterwards, after Ctrl-C and SIGTERM too, and with `keep` its logs stay.

    Raises:
        UserError: they do not come up.
    """
    folder = Path(tempfile.mkdtemp(prefix="flotilla-drill-"))
    root = folder / LOCAL
    regions = TwoRegions(root, {**os.environ, "FLOTILLA_STATE": str(root), "FLOTILLA_API_KEY": "", "COLUMNS": "200"})
    # By default SIGTERM ends a process without a `finally`, and both regions would go on running.
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        named = [part for region in REGIONS for part in ("--region", region)]
        regions.run("up", *named, "--engine", "twin", "--port-offset", str(_free_offset()), "--json")
        yield regions
    finally:
        subprocess.run(
            regions.command("down", *(() if keep else ("--purge",))),
            env=regions.env,
            capture_output=True,
            timeout=120,
            check=False,
        )
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def wait(condition: Any, timeout_s: float, what: str) -> float:
    """Seconds until `condition()` held.

    Raises:
        UserError: it did not in time.
    """
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > timeout_s:
            raise UserError(f"not within {timeout_s:.0f} s: {what}", "--keep keeps the folder with logs of every process")
        time.sleep(0.1)
    return time.monotonic() - began_s


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


def _free_offset() -> int:
    """An offset at which the edge's port and those after it are free.

    Raises:
        UserError: there is none.
    """
    for offset in random.sample(OFFSETS, len(OFFSETS)):  # two drills that start at once must not take the same
        try:
            for port in range(furniture.EDGE_PORT + offset, furniture.EDGE_PORT + offset + 40):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return offset
    raise UserError("no free ports on 127.0.0.1 from 20000 to 28000", "end what listens there: `ss -ltnp`")
