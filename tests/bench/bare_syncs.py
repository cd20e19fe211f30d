"""What the disk alone takes: appends of a record's length, each made durable, at random arrivals; in a process of its own.

It runs beside a load, so that machine and disk are as busy as they are for the journal that it is compared with, and in its own
process, so that no interpreter lock is measured. Until it is told to end (SIGTERM); then prints the times in ms, sorted, as JSON.

    python tests/bench/bare_syncs.py FILE PER_S
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RECORD_BYTES = 512


@contextmanager
def bare_syncs(path: Path, per_s: float) -> Iterator[list[float]]:
    """Syncs while the block runs; the list has their times in ms, sorted, once it has ended."""
    found: list[float] = []
    command = [sys.executable, str(Path(__file__)), str(path), str(per_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as syncing:
        try:
            yield found
        finally:
            syncing.terminate()
            found += json.loads(syncing.communicate(timeout=30)[0])


def main(path: str, per_s: float) -> None:
    """Sync until SIGTERM."""
    is_over = False

    def end(*_: object) -> None:
        nonlocal is_over
        is_over = True

    signal.signal(signal.SIGTERM, end)
    rng, times = random.Random(0), []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    while not is_over:
        time.sleep(rng.expovariate(per_s))
        began_s = time.perf_counter()
        os.write(descriptor, bytes(RECORD_BYTES))
        os.fdatasync(descriptor)
        times.append((time.perf_counter() - began_s) * 1e3)
    os.close(descriptor)
    print(json.dumps(sorted(times)))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
