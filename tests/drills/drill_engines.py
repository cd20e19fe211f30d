"""Measures what becomes of requests when clients leave and engines die, hang, stop, drip or lie.

Run by `make drill-engines`: real gateway processes on an emulated AWS and a real Valkey, before twins that are processes of their
own. Prints a table and one line of JSON; exits 1 where something does not hold. `ARGS="--requests 300 --per-s 15"` is short.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.bench_report import machine
from tests.drills import engine_faults, engine_scenes
from tests.drills.engine_fleet import Site, num_descriptors, num_sockets, running_site
from tests.drills.engine_scenes import Report, Stage
from tests.drills.stream_client import ask, wire

NUM_REPLICAS = 8
WARM_UP_PROMPTS = 24


async def drill(site: Site, num: int, per_s: float, seed: int) -> Report:
    """All scenes, one after the other; but that of the slow engines, which takes half a minute of nobody's time."""
    report = Report()
    (oracle,) = site.start_twins(1, "--speed", "0", name="oracle")
    twins = site.start_twins(NUM_REPLICAS)
    (spare,) = site.start_twins(1, name="spare")
    slow = site.start_twins(2, "--speed", str(engine_scenes.COLD_SPEED), name="slow")
    odd = site.start_twins(2, "--speed", "50", name="odd")
    site.serve_by(twins)
    site.serve_by(slow, "engine-slow")
    site.serve_by(odd, "engine-odd")
    gateway, slow_gateway = site.start_gateway(), site.start_gateway("engine-slow")
    odd_gateway = site.start_gateway("engine-odd", gap_s=engine_faults.GAP_S)
    gateways = [gateway, slow_gateway, odd_gateway]

    rng = random.Random(seed)
    for one in gateways:
        for _ in range(WARM_UP_PROMPTS if one is gateway else 2):
            request = wire(site.key, max_tokens=2, messages=engine_scenes.chat(engine_scenes.words(rng, 300)))
            reply = await ask(one.address, request)
            assert reply.is_complete, reply.body
    await asyncio.sleep(engine_scenes.SETTLE_S)
    held = [(one, num_sockets(one), num_descriptors(one)) for one in gateways]
    print(f"{len(site.twins)} twins, {len(gateways)} gateways", flush=True)

    stage = Stage(site, gateway, oracle, report, seed, per_s)
    cold = asyncio.create_task(engine_scenes.cold_prefill(replace(stage, gateway=slow_gateway)))
    await engine_scenes.disconnects(stage, twins, max(60, num // 10))
    await engine_faults.faults(replace(stage, gateway=odd_gateway), odd)
    await cold
    await engine_scenes.killed(stage, twins, spare, num)
    left = [*(twin for twin in twins if twin.process.poll() is None), spare]
    for victim, whole_group in ((left[0], True), (left[1], False)):
        await engine_scenes.stopped(replace(stage, per_s=per_s / 2), victim, whole_group=whole_group)
    await engine_scenes.leaks(held, [*left, *slow, *odd], report)
    return report


def main() -> int:
    """The drill."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=2000, help="of the load under which a replica is killed")
    options.add_argument("--per-s", type=float, default=40.0, help="their rate")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory() as folder, running_site(Path(folder)) as site:
        report = uvloop.run(drill(site, given.requests, given.per_s, given.seed))
    title = f"{NUM_REPLICAS} twins, {given.requests} requests at {given.per_s:g}/s, seed {given.seed}"
    table = Table("scene", "what", "measured", "limit", "holds", title=title, title_justify="left")
    for row in report.rows:
        table.add_row(row.scene, row.what, row.measured, row.limit, "yes" if row.holds else "[bold red]no[/]")
    Console(soft_wrap=True, highlight=False).print(table)
    holds = all(row.holds for row in report.rows)
    print(json.dumps({**report.figures, "seed": given.seed, "machine": machine(), "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
