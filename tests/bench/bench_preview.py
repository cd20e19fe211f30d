"""How long a preview of every stack takes, in all and by stack, and whether two are the same bytes.

    .venv/bin/python tests/bench/bench_preview.py [--write]

The whole is what a person waits for: `flotilla preview --all --json` as a fresh process on two cores, with no credentials in its
environment; the median of a few runs, each with another hash seed. By stack is the recording alone, in one process that has
imported the providers' classes, so the stacks add up to less than the whole. It favours us in one respect: byte code and the
kernel's file cache are warm, as they are from the second preview on. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_report import machine, write_section

from infra.embedded import recorder
from infra.embedded.graph import Graph

NUM_RUNS = 5
NUM_CORES = 2
LIMIT_S = 30.0


def whole(folder: Path, seed: int) -> tuple[float, bytes]:
    """Seconds of one preview of every stack, and what it printed."""
    command = [str(Path(sys.executable).with_name("flotilla")), "preview", "--all", "--json", "--state", str(folder / "none")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONHASHSEED": str(seed)}
    began_s = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return time.monotonic() - began_s, done.stdout


def by_stack(stacks: list[str]) -> dict[str, tuple[Graph, float]]:
    """Each stack's graph and the seconds that recording it took; the median of the runs."""
    took_s: dict[str, list[float]] = {stack: [] for stack in stacks}
    graphs: dict[str, Graph] = {}
    record_program = recorder.record_program

    def timed(program: Any, stack: str, **kwargs: Any) -> Graph:
        began_s = time.monotonic()
        graphs[stack] = record_program(program, stack, **kwargs)
        took_s[stack].append(time.monotonic() - began_s)
        return graphs[stack]

    recorder.record_program = timed
    for _ in range(NUM_RUNS + 1):
        recorder.record(stacks)
    # The first run imports.
    return {stack: (graphs[stack], statistics.median(took_s[stack][1:])) for stack in stacks}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])
    with tempfile.TemporaryDirectory(prefix="bench-preview-") as name:
        runs = [whole(Path(name), seed) for seed in range(NUM_RUNS)]
    digests = {hashlib.sha256(text).hexdigest() for _, text in runs}
    all_s = [took for took, _ in runs]
    stacks = by_stack(recorder.every_stack())
    num_resources = sum(len(graph.resources) for graph, _ in stacks.values())
    lines = [
        f"{machine()}; {NUM_RUNS} runs, median",
        "",
        "| stack | resources | recording, s |",
        "|---|---|---|",
        *(f"| {stack} | {len(graph.resources)} | {took:.2f} |" for stack, (graph, took) in stacks.items()),
        f"| all, as a command from start to end | {num_resources} | {statistics.median(all_s):.1f} (worst {max(all_s):.1f}) |",
    ]
    print("\n".join(lines))
    if arguments.write:
        write_section("bench-preview", "\n".join(lines))
    figures = {
        "preview_all_median_s": round(statistics.median(all_s), 2),
        "preview_all_worst_s": round(max(all_s), 2),
        "limit_s": LIMIT_S,
        "num_stacks": len(stacks),
        "num_resources": num_resources,
        "num_different_outputs": len(digests),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "num_cores": len(os.sched_getaffinity(0)),
        "holds": max(all_s) < LIMIT_S and len(digests) == 1,
    }
    print(json.dumps(figures))
    return 0 if figures["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
