"""A shipper's process in the drill: `python -m tests.drills.metering.shipping`, several of them at once.

Each ships every segment by the product's own `Shipper`, in an order of its own, from a folder of links of its own: as if the
volume had been taken over again and again. The AWS that it meets throttles and times out after commits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

from serving.metering.shipping import Destination, Shipper
from serving.target import aws_client

from .faulty_aws import make_faulty

LIMIT_S = 900.0


class Counts:
    """The observer: counts what it is told."""

    def __init__(self) -> None:
        self.segments: Counter[str] = Counter()
        self.rows_: Counter[str] = Counter()

    def segment(self, result: str) -> None:
        self.segments[result] += 1

    def rows(self, result: str, count: int) -> None:
        self.rows_[result] += count


def ship_all(folder: Path, segments: list[Path], shipper: Shipper) -> None:
    """Link one segment after the other into `folder` and ship it; what failed is shipped later."""
    deadline_s = time.monotonic() + LIMIT_S
    for number, path in enumerate(segments):
        os.link(path, folder / path.name)
        shipper.ship()
        if number % 50 == 49:
            print(f"{number + 1} of {len(segments)} segments", file=sys.stderr, flush=True)
    while shipper.backlog().num_segments:
        if time.monotonic() > deadline_s:
            raise SystemExit(f"{shipper.backlog().num_segments} segments are not shipped")
        shipper.ship()
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="for links; holds `segments`, a path a line")
    parser.add_argument("--aws", required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--table", default="ledger")
    parser.add_argument("--region", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--throttled", type=float, default=0.0)
    parser.add_argument("--timed-out", type=float, default=0.0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    segments = [Path(line) for line in (options.folder / "segments").read_text().splitlines()]
    rng.shuffle(segments)
    s3, dynamodb = aws_client("s3", options.region, options.aws), aws_client("dynamodb", options.region, options.aws)
    faults = make_faulty(dynamodb, rng, throttled=options.throttled, timed_out=options.timed_out)
    counts = Counts()
    destination = Destination(s3, dynamodb, options.region, options.bucket, options.table)  # type: ignore[arg-type]
    ship_all(options.folder, segments, Shipper(options.folder, destination, 3600, counts))
    print(json.dumps({"segments": counts.segments, "rows": counts.rows_, "faults": faults.counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
