"""Part `late`: an hour's segments reach the ledger late, from another region, and then twice more from their own.

A region is lost: its volumes are read in the other region, whose shipper ships them. Then the region returns, with its volumes,
and ships the hour itself, twice. Totals are those of the journals each time, in both regions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.metering.framing import decode_segment
from serving.metering.ledger import read_rows
from serving.metering.rows import LedgerRow, ledger_hash, row_of
from serving.target import aws_client

from .storm import FOREVER_MS
from .world import ARCHIVE, FAR_REGION, REGION, ROOT, DrillWorld

TABLE = "late"
REPLICA_LIMIT_S = 20.0


@dataclass(frozen=True)
class Total:
    """What a table says."""

    num_rows: int
    cost_pico_usd: int
    sha256: str

    @classmethod
    def of(cls, rows: Sequence[LedgerRow]) -> Total:
        return cls(len(rows), sum(row.cost_pico_usd for row in rows), ledger_hash(rows))


def of_journals(segments: Sequence[Path]) -> Total:
    """What the ledger must say, by the segments alone."""
    rows = {close.open.event_id: row_of(close) for path in segments for close in decode_segment(path.read_bytes()).closes}
    return Total.of(list(rows.values()))


def replay(world: DrillWorld, segments: Sequence[Path], seed: int) -> dict[str, Total]:
    """The totals of each region's table after each step."""
    dynamodb = world.client("dynamodb")
    dynamodb.create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    dynamodb.update_table(TableName=TABLE, ReplicaUpdates=[{"Create": {"RegionName": FAR_REGION}}])
    found: dict[str, Total] = {}
    for number, (step, region) in enumerate(
        (("far region, late", FAR_REGION), ("own region, returned", REGION), ("own region, again", REGION))
    ):
        _ship(world, segments, region, f"late-{number}", seed + number)
        for where in (REGION, FAR_REGION):
            found[f"{step}: {where}"] = _settled(world, where, of_journals(segments).num_rows)
    return found


def _ship(world: DrillWorld, segments: Sequence[Path], region: str, name: str, seed: int) -> None:
    folder = world.folder / name
    folder.mkdir()
    (folder / "segments").write_text("\n".join(map(str, segments)))
    command = [sys.executable, "-m", "tests.drills.metering.shipping", str(folder), "--aws", world.aws_url, "--table", TABLE]
    command += ["--bucket", ARCHIVE, "--region", region, "--seed", str(seed)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)


def _settled(world: DrillWorld, region: str, num_rows: int) -> Total:
    client = aws_client("dynamodb", region, world.aws_url)
    deadline_s = time.monotonic() + REPLICA_LIMIT_S
    while True:
        total = Total.of(list(read_rows(client, TABLE, None, 0, FOREVER_MS)))  # type: ignore[arg-type]
        if total.num_rows >= num_rows or time.monotonic() > deadline_s:
            return total
        time.sleep(0.2)
