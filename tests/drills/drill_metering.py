"""Proves the bill: gateways are killed, disks fail, ledgers throttle, clients leave, and nothing is lost or doubled.

    make drill-metering [ARGS="--requests 5000 --kills 10 --only storm"]

Real gateway processes on a real Valkey, twins for engines, MiniStack for AWS; every fault is seeded. What is billed is held
against what twins sent and clients saw. Prints a table of counts and, last, one line of JSON; exits 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from infra.drills.figures import Part, table_of
from infra.drills.judge import Verdict, judge, truths_of
from tests.drills.metering import cuts, disk, late, retries, storm, throughput
from tests.drills.metering.world import ROOT, DrillWorld, drill_world

sys.path.insert(0, str(ROOT / "tests" / "bench"))

from bench_report import machine

MAX_RECOVERY_S = 5.0
MIN_EVENTS_PER_CPU_S = 20_000
MAX_ADDED_P99_MS = 2.0
NUM_TENANTS = 8
console = Console(width=120, soft_wrap=True, highlight=False)
began_s = time.monotonic()


def say(text: str) -> None:
    """Progress, with the time since the start."""
    console.print(f"[dim]{time.monotonic() - began_s:6.1f} s[/] {text}")


def prepare(world: DrillWorld, names: list[str], seed: int, *, mean_answer_tokens: int = 24, **faults: str) -> None:
    """Twins, gateways that are ready, tenants and their keys."""
    world.start_twins(seed, mean_answer_tokens=mean_answer_tokens)
    gateways = [world.add_gateway(name, **faults) for name in names]
    for gateway in gateways:
        gateway.start()
    for gateway in gateways:
        gateway.wait_ready()
    world.make_keys(gateways[0], NUM_TENANTS)


def show_verdict(part: Part, verdict: Verdict) -> None:
    """The lines that every part with bills has."""
    for kind, named in verdict.wrong.items():
        say(f"[red]{kind}[/]: {named}")
    for what, kind in (
        ("acknowledged events lost", "lost"),
        ("events doubled", "doubled"),
        ("bills that differ from what arrived", "inexact"),
        ("bills over what had arrived", "over"),
        ("bills under by more than a PROGRESS interval", "under"),
    ):
        part.show(what, f"num_{kind}", verdict.counts[kind], verdict.counts[kind] == 0)


def run_storm(options: argparse.Namespace, folder: Path) -> list[Part]:
    """The parts `storm` and `late`."""
    part, replayed = Part("storm"), Part("late")
    with drill_world(folder) as world:
        prepare(world, [f"gateway-{number}" for number in range(3)], options.seed)
        say(f"storm: {options.requests} requests, {options.kills} kills of gateways, {options.valkey_kills} of the cache")
        running = storm.Storm(world, options.seed, say)
        started_s = time.monotonic()
        asyncio.run(running.run(options.requests, options.kills, options.valkey_kills))
        part.show("live requests", "num_requests", running.load.num_sent, running.load.num_sent >= options.requests)
        part.show("their duration, s", "lasted_s", round(time.monotonic() - started_s, 1))
        truths = truths_of(record for twin in world.twin_requests() for record in twin)
        segments = storm.sealed_segments(world)
        say(f"storm: {len(segments)} segments are shipped three times")
        shipped = storm.ship_three_times(world, segments, options.seed)
        rows = storm.ledger(world)
        verdict = judge(truths, running.load.seen, rows, storm.request_ids(segments))
        hashes = storm.hashes_in_any_order(segments, options.seed) | {storm.ledger_hash(rows)}
        recoveries_s = [recovery_s for gateway in world.gateways for recovery_s in gateway.recoveries_s]
        part.show("gateway SIGKILLs", "num_gateway_kills", len(recoveries_s), len(recoveries_s) == options.kills)
        part.show("Valkey SIGKILLs", "num_valkey_kills", options.valkey_kills)
        part.show("torn tails", "num_torn_tails", running.num_torn_tails)
        alike = running.num_torn_alike * 2 == running.num_torn_tails
        part.show("journals that gave the same bill torn and whole", "num_torn_alike", running.num_torn_alike, alike)
        show_verdict(part, verdict)
        part.show("most tokens that a kill cost a client's bill", "max_under_tokens", verdict.max_under_tokens)
        part.show("requests cut by a kill", "num_crashed", verdict.counts["gateway_crash"])
        part.show("tokens received where the gateway lived", "received_tokens", verdict.received_tokens)
        part.show(
            "tokens billed for them", "billed_tokens", verdict.exact_tokens, verdict.exact_tokens == verdict.received_tokens
        )
        longest_s = round(max(recoveries_s, default=0.0), 2)
        part.show("longest recovery, s", "max_recovery_s", longest_s, longest_s <= MAX_RECOVERY_S)
        part.show("median recovery, s", "median_recovery_s", round(statistics.median(recoveries_s or [0.0]), 2))
        part.show("segments", "num_segments", len(segments))
        part.show("puts of segments", "num_segment_puts", shipped["segments"].total() - shipped["segments"]["failed"])
        part.show("ledger rows", "num_ledger_rows", len(rows))
        part.show(
            "rows written, or found as they should be",
            "num_rows_settled",
            shipped["rows"]["written"] + shipped["rows"]["present"],
        )
        part.show("rows in conflict", "num_row_conflicts", shipped["rows"]["conflict"], not shipped["rows"]["conflict"])
        part.show("puts throttled", "num_throttled", shipped["faults"]["throttled"])
        part.show("puts timed out after commit", "num_timed_out", shipped["faults"]["timed_out_after_commit"])
        part.show("ledger hashes of all orders and of the table", "num_ledger_hashes", len(hashes), len(hashes) == 1)
        part.show("tokens billed in all", "all_billed_tokens", verdict.billed_tokens)

        hour = segments[: options.late_segments]
        say(f"late: {len(hour)} segments from the other region, then twice from their own")
        wanted, totals = late.of_journals(hour), late.replay(world, hour, options.seed)
        replayed.show("events of the hour", "num_events", wanted.num_rows)
        replayed.show(
            "totals that differ",
            "num_different",
            sum(total != wanted for total in totals.values()),
            set(totals.values()) == {wanted},
        )
    return [part, replayed]


def run_control(options: argparse.Namespace, folder: Path) -> list[Part]:
    """The storm's check on gateways whose journal is a queue in memory: it must fail."""
    part = Part("control")
    with drill_world(folder) as world:
        prepare(world, ["gateway-0", "gateway-1"], options.seed, memory="1")
        say(f"control: {options.control_requests} requests with the journal turned off")
        running = storm.Storm(world, options.seed, lambda _: None)
        asyncio.run(running.run(options.control_requests, 4, 1))
        truths = truths_of(record for twin in world.twin_requests() for record in twin)
        segments = storm.sealed_segments(world)
        rows = [storm.row_of(close) for path in segments for close in storm.decode_segment(path.read_bytes()).closes]
        verdict = judge(truths, running.load.seen, rows, storm.request_ids(segments))
    part.show("requests", "num_requests", running.load.num_sent)
    part.show("acknowledged events lost without a journal", "num_lost", verdict.counts["lost"], verdict.counts["lost"] > 0)
    return [part]


def run_cuts(options: argparse.Namespace, folder: Path) -> list[Part]:
    part = Part("cuts")
    with drill_world(folder) as world:
        prepare(world, ["gateway-0", "gateway-1"], options.seed, mean_answer_tokens=0)
        say(f"cuts: {options.cuts} streams")
        seen = asyncio.run(cuts.cut_streams(world, options.cuts, options.seed, say))
        num_leaked, waited_s = cuts.leaked_reservations(world, NUM_TENANTS)
        truths = truths_of(record for twin in world.twin_requests() for record in twin)
        segments = storm.sealed_segments(world)
        closes = {close.open.request_id: close for path in segments for close in storm.decode_segment(path.read_bytes()).closes}
        num_exact = sum(
            request_id in closes
            and closes[request_id].output_tokens == answer.num_tokens == sum(r["sent_tokens"] for r in truths[request_id])
            for request_id, answer in seen.items()
        )
        verdict = judge(truths, seen, [storm.row_of(close) for close in closes.values()], storm.request_ids(segments))
    part.show("streams cut", "num_cut", len(seen), len(seen) == options.cuts)
    part.show("billed to the token: twin sent, client saw, bill says", "num_exact", num_exact, num_exact == options.cuts)
    show_verdict(part, verdict)
    part.show("reservations and events leaked", "num_leaked", num_leaked, num_leaked == 0)
    part.show("until none was held, s", "released_after_s", round(waited_s, 1))
    return [part]


def run_disk(options: argparse.Namespace, folder: Path) -> list[Part]:
    """Parts `disk full` and `EIO`."""
    found: list[Part] = []
    with drill_world(folder) as world:
        prepare(world, ["gateway-0"], options.seed, eio=str(folder / "eio"))
        (gateway,) = world.gateways
        say("disk: fdatasync fails with EIO")
        found.append(_disk_part("EIO", world, asyncio.run(disk.fail_syncs(world, gateway, options.seed))))
        try:
            with disk.small_disk(folder / "small") as small:
                say("disk: a small disk fills up")
                world.gateways[:] = [world.add_gateway("gateway-1", journal=small / "journal")]
                world.gateways[0].start()
                world.gateways[0].wait_ready()
                trouble = asyncio.run(disk.fill_up(world, world.gateways[0], small, options.seed))
                found.append(_disk_part("disk full", world, trouble))
        except disk.NoMountError:
            part = Part("disk full")
            part.show("skipped: no file system may be mounted here; run as root", "is_skipped", 1)
            found.append(part)
    return found


def _disk_part(name: str, world: DrillWorld, trouble: disk.Trouble) -> Part:
    part = Part(name)
    truths = truths_of(record for twin in world.twin_requests() for record in twin)
    segments = storm.sealed_segments(world)
    asked = {request_id: records for request_id, records in truths.items() if request_id in trouble.seen}
    closes = [close for path in segments for close in storm.decode_segment(path.read_bytes()).closes]
    verdict = judge(asked, trouble.seen, [storm.row_of(close) for close in closes], storm.request_ids(segments))
    refused = trouble.answers[disk.REFUSED]
    part.show("answers", "num_answers", trouble.answers["200"])
    part.show(f"refused with {disk.REFUSED}", "num_refused", refused, refused > 0)
    part.show("was not ready, and the metric that alerts said so", "was_unready", trouble.was_unready and trouble.was_unhealthy,
              trouble.was_unready and trouble.was_unhealthy)  # fmt: skip
    part.show("ready again after, s", "healed_after_s", round(trouble.healed_s, 2), trouble.healed_s >= 0)
    show_verdict(part, verdict)
    return part


def run_retries(options: argparse.Namespace, folder: Path) -> list[Part]:
    part = Part("retries")
    with drill_world(folder) as world:
        prepare(world, [f"gateway-{number}" for number in range(3)], options.seed)
        say(f"retries: {options.retries} over {options.keys} keys, {options.retry_kills} kills of gateways")
        running = retries.Retries(world, options.seed, options.keys, options.retries)
        asyncio.run(running.run(options.retry_kills, say))
        truths = truths_of(record for twin in world.twin_requests() for record in twin)
        found = retries.tally(running, storm.sealed_segments(world), truths)
    answers, asked = running.asked.answers, running.asked
    part.show("keys", "num_keys", options.keys)
    part.show("attempts", "num_attempts", answers.total(), answers.total() >= options.keys + options.retries)
    for what in ("generated", "replayed", "cut", "unheard", retries.IN_FLIGHT, retries.LOST):
        part.show(f"of these {what}", f"num_{what}", answers[what])
    strange = answers.total() - sum(
        answers[what] for what in ("generated", "replayed", "cut", "unheard", retries.IN_FLIGHT, retries.LOST)
    )
    part.show("any other answer", "num_other", strange, strange == 0)
    part.show("gateway SIGKILLs", "num_gateway_kills", asked.num_kills)
    part.show("keys whose answer was lost with a gateway", "num_keys_lost", len(asked.lost), len(asked.lost) < options.keys / 2)
    part.show("keys generated more than once", "num_generated_twice", found.num_generated_twice, not found.num_generated_twice)
    part.show("keys billed more than once", "num_billed_twice", found.num_billed_twice, not found.num_billed_twice)
    part.show("keys generated and not billed", "num_unbilled", found.num_unbilled, not found.num_unbilled)
    part.show("keys with two different answers", "num_unlike", found.num_unlike, not found.num_unlike)
    part.show("keys answered whole and then called lost", "num_answered_and_lost", found.num_both, not found.num_both)
    return [part]


def run_journal(options: argparse.Namespace, folder: Path) -> list[Part]:
    part = Part("journal")
    say(f"journal: {options.events} events, and SQLite beside it, in turns")
    ours, theirs = [], []
    for number in range(3):
        (folder / str(number)).mkdir(parents=True)
        ours.append(asyncio.run(throughput.journal(folder / str(number), options.events // 2)))
        theirs.append(throughput.sqlite(folder / str(number) / "sqlite", options.events // 2, round(ours[-1].mean_batch)))
    per_cpu_s, sqlite_per_cpu_s = (round(statistics.median(one.per_cpu_s for one in found)) for found in (ours, theirs))
    part.show("events a second and core", "events_per_cpu_s", per_cpu_s, per_cpu_s >= MIN_EVENTS_PER_CPU_S)
    part.show("events a second", "events_per_s", round(statistics.median(one.per_s for one in ours)))
    part.show("records a commit", "mean_batch", round(statistics.median(one.mean_batch for one in ours)))
    part.show("SQLite, WAL FULL, same batches: a second and core", "sqlite_events_per_cpu_s", sqlite_per_cpu_s)
    part.show("SQLite: a second", "sqlite_events_per_s", round(statistics.median(one.per_s for one in theirs)))
    return [part]


def run_latency(options: argparse.Namespace, folder: Path) -> list[Part]:
    part = Part("latency")
    with drill_world(folder) as world:
        world.start_twins(options.seed, mean_answer_tokens=0)
        durable, memory = world.add_gateway("gateway-0"), world.add_gateway("gateway-1", memory="1")
        for gateway in (durable, memory):
            gateway.start()
            gateway.wait_ready()
        world.make_keys(durable, 1)
        say("latency: first tokens with and without the journal, in turns")
        found = asyncio.run(
            throughput.latency(world, durable, memory, rounds=options.rounds, num=300, per_s=100.0, seed=options.seed)
        )
    p99 = {name: statistics.median(values) for name, values in found.items()}
    added_ms = round(p99["journal"] - p99["memory"] - p99["fdatasync"], 2)
    for name, value in p99.items():
        part.show(f"p99, {name}, ms", f"{name}_p99_ms", round(value, 2))
    part.show("added p99 net of a bare fdatasync, ms", "added_p99_ms", added_ms, added_ms <= MAX_ADDED_P99_MS)
    return [part]


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[Part]]] = {
    "storm": run_storm,
    "control": run_control,
    "cuts": run_cuts,
    "disk": run_disk,
    "retries": run_retries,
    "journal": run_journal,
    "latency": run_latency,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; sizes are those of the promise unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="run this part; may be given again")
    parser.add_argument("--requests", type=int, default=50_000, help="of the storm")
    parser.add_argument("--kills", type=int, default=100, help="of gateways")
    parser.add_argument("--valkey-kills", type=int, default=20)
    parser.add_argument("--late-segments", type=int, default=20, help="that make the hour")
    parser.add_argument("--control-requests", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=10_000, help="streams that are cut")
    parser.add_argument("--keys", type=int, default=500, help="idempotency keys")
    parser.add_argument("--retries", type=int, default=10_000, help="over all keys")
    parser.add_argument("--retry-kills", type=int, default=10, help="of gateways meanwhile")
    parser.add_argument("--events", type=int, default=100_000, help="through the journal, three times")
    parser.add_argument("--rounds", type=int, default=5, help="of latency")
    parser.add_argument("--seed", type=int, default=8)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[Part]:
    """Every part that was asked for, one after the other."""
    parts: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="drill-metering-") as folder:
        for name in options.only or PARTS:
            (Path(folder) / name).mkdir()
            parts += PARTS[name](options, Path(folder) / name)
    return parts


def main() -> int:
    """The drill."""
    options = parse()
    parts = run(options)
    console.print(table_of(parts))
    figures = {part.name: part.figures for part in parts}
    holds = {part.name: part.holds for part in parts}
    print(json.dumps({**figures, "machine": machine(), "seed": options.seed, "holds": holds}))
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
