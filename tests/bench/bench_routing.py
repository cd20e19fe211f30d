"""How much of its prompts a fleet finds in its caches, by who places the requests.

    make bench-routing [ARGS="--write"]

Everything is simulated: the twins' engines and this gateway's policies in virtual time (`routing_sim.py`), exact and seeded, with
no socket. Index and choice are measured for real: resident memory, and the time of each choice. Then the trace's beginning is
sent live to twins behind this gateway and behind its peers (`routing_live.py`), and each is started anew in the middle of it.

Load is an engine's time in steps, and balance the busiest engine's over the mean of all, over the whole run. Requests sent stand
beside it, and requests in flight averaged over time. Answers differ in length, so even round robin has some 1.2 by time in steps.

The oracle is one cache as large as all of the fleet's together, in which each prompt is there before the next comes. No fleet has
that: it cannot split a popular prefix from its followers' load. Prints a table and, last, one line of
JSON; exits 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bench_report import DOCUMENT, machine, write_section
from routing_live import OURS, LiveRow, run_live
from routing_plot import scatter
from routing_sim import Fleet, Gateway, Outcome, oracle, simulate
from routing_traffic import TRACE_BLOCK_TOKENS, Ask, conversations, mooncake

from policies.routing.cache_events import EngineCache
from policies.routing.prefix_index import MAX_ENTRIES, PrefixIndex

SMALL_BLOCK_TOKENS = 64
LIVE_REQUESTS = 600


@dataclass(frozen=True)
class Load:
    """Traffic and the fleet that it goes to."""

    name: str
    traffic: str
    num: int
    rate: float
    """Times the trace's speed, or requests a second."""
    num_replicas: int
    profile: str

    def asks(self, trace: Path) -> list[Ask]:
        if self.traffic == "mooncake":
            return mooncake(trace, self.num, self.rate)
        return conversations(self.num, self.rate, block_tokens=SMALL_BLOCK_TOKENS)

    def fleet(self, **how: Any) -> Fleet:
        block_tokens = TRACE_BLOCK_TOKENS if self.traffic == "mooncake" else SMALL_BLOCK_TOKENS
        return Fleet(self.num_replicas, profile=self.profile, block_tokens=block_tokens, **how)


MOONCAKE = Load("Mooncake, 16 × 70B", "mooncake", 3000, 1.0, 16, "a100-large")
LOADS = (
    MOONCAKE,
    Load("Mooncake four times as fast, 64 × 70B", "mooncake", 6000, 4.0, 64, "a100-large"),
    Load("conversations, 8 × 7B, 16 a second", "conversations", 3000, 16.0, 8, "a100-small"),
    Load("conversations, 64 × 7B, 64 a second", "conversations", 9000, 64.0, 64, "a100-small"),
)
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("round robin", {"policy": "round_robin"}),
    ("least load", {"policy": "least_load"}),
    ("flotilla, one gateway", {"policy": "flotilla"}),
    ("flotilla, four gateways", {"policy": "flotilla", "num_gateways": 4}),
    ("flotilla, four gateways, no KV events", {"policy": "flotilla", "num_gateways": 4, "has_events": False}),
)
WITHOUT = ("round robin, caches off", {"policy": "round_robin", "is_caching": False})


@dataclass(frozen=True)
class Row:
    """A way of placing requests, under a load."""

    load: str
    way: str
    oracle_ratio: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    sent_peak_to_mean: float
    busy_peak_to_mean: float
    in_flight_peak_to_mean: float
    decision_p99_us: float
    used_ratio: float
    """Of the engines' time."""


def percentile(values: Sequence[float], ratio: float) -> float:
    """0 of none."""
    return sorted(values)[min(int(len(values) * ratio), len(values) - 1)] if values else 0.0


def peak_to_mean(values: Sequence[float]) -> float:
    return max(values) * len(values) / sum(values)


def run(job: tuple[Load, str, dict[str, Any], Path]) -> Row:
    """One simulation."""
    load, way, how, trace = job
    began_s = time.monotonic()
    asks, fleet = load.asks(trace), load.fleet(**how)
    found: Outcome = simulate(asks, fleet)
    row = Row(
        load.name,
        way,
        found.cached_tokens / oracle(asks, fleet),
        percentile(found.ttft_s, 0.5) * 1e3,
        percentile(found.ttft_s, 0.95) * 1e3,
        peak_to_mean(found.num_sent),
        peak_to_mean(found.busy_s),
        peak_to_mean(found.in_flight_s),
        percentile(found.decision_s, 0.99) * 1e6,
        sum(found.busy_s) / len(found.busy_s) / asks[-1].at_s,
    )
    print(f"{load.name}: {way} {dict(found.reasons)} [{time.monotonic() - began_s:.0f} s]", file=sys.stderr, flush=True)
    return row


def index_mb(_: None = None) -> float:
    """Resident memory of a gateway's index over 64 engines when it is full: every engine's events heard, every entry taken."""
    random, num, before = Random(1), 64, _rss_mb()
    index = PrefixIndex(MAX_ENTRIES // num)
    for n in range(num):
        cache = EngineCache(index, 1 << n, num)
        kept.append(cache)
        for _ in range(MAX_ENTRIES // num * 4 // 64):
            hashes = [random.getrandbits(64) for _ in range(64)]
            cache.stored(hashes, None, [random.randrange(50_000) for _ in range(1024)], 16, salt="salt")
    assert len(index) == MAX_ENTRIES
    return _rss_mb() - before


kept: list[EngineCache] = []


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def decision_us(_: None = None) -> tuple[float, float]:
    """Median and 99th percentile over choices among 64 replicas, each taken five times and the shortest kept: what the choice
    takes, not what else the machine does. Some prefixes are held by everybody, some by one; prompts have 64 to 16,000 tokens."""
    random = Random(1)
    gateway = Gateway(Fleet(64, "flotilla"), 1)
    systems = [[random.getrandbits(64) for _ in range(random.choice((4, 16, 64)))] for _ in range(50)]
    chains = [
        tuple(random.choice(systems) + [random.getrandbits(64) for _ in range(random.randrange(1, 190))]) for _ in range(4000)
    ]
    for chain in chains:
        gateway.index.add(1 << random.randrange(64), chain[: random.randrange(1, len(chain) + 1)])
    gc.collect()
    gc.freeze()
    gc.disable()
    shortest_us = []
    for _ in range(5000):
        chain, outcome = random.choice(chains), Outcome()
        for _ in range(5):
            n, uncached = gateway.choose(len(chain) * 64 + 5, chain, 1e6, outcome)
        gateway.index.add(1 << n, chain)
        shortest_us.append(min(outcome.decision_s) * 1e6)
        gateway.replicas[n].num_in_flight = random.randrange(40)
        gateway.replicas[n].queued_tokens = uncached
        gateway.replicas[n].num_recent = random.uniform(0, 30)
    return percentile(shortest_us, 0.5), percentile(shortest_us, 0.99)


def table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| load | placed by | cached, of the oracle's | TTFT p50, ms | p95, ms | requests, peak/mean | engine time, peak/mean"
        " | in flight, peak/mean | engines busy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.load} | {row.way} | {row.oracle_ratio:.1%} | {row.ttft_p50_ms:.0f} | {row.ttft_p95_ms:.0f}"
        f" | {row.sent_peak_to_mean:.2f} | {row.busy_peak_to_mean:.2f} | {row.in_flight_peak_to_mean:.2f}"
        f" | {row.used_ratio:.0%} |"
        for row in rows
    ]
    return lines


def live_table(live: Sequence[LiveRow]) -> list[str]:
    """The live part's lines."""
    lines = [
        "| live, 8 twins | cached, of the oracle's | TTFT p50, ms | p95, ms | requests, peak/mean | computed tokens, peak/mean"
        " | cached after a restart | back after, s | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.oracle_ratio:.1%} | {row.ttft_p50_ms:.0f} | {row.ttft_p95_ms:.0f} | {row.sent_peak_to_mean:.2f}"
        f" | {row.computed_peak_to_mean:.2f} | {row.after_restart_ratio:.1%} | {row.back_s or 'never'}"
        f" | {row.num_failed} |"
        for row in live
    ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the table and the plot into docs")
    parser.add_argument("--share", type=float, default=1.0, help="of the requests, for a short run")
    parser.add_argument("--peers", type=Path, help="folder of the peers' programs; without it only this gateway is asked live")
    parser.add_argument(
        "--trace", type=Path, default=Path(os.environ.get("FLOTILLA_TRACES", "../shared/traces")) / "mooncake_conversation.jsonl"
    )
    arguments = parser.parse_args()
    if not arguments.trace.exists():
        print(
            f"{arguments.trace}: no such file. FLOTILLA_TRACES names the folder of github.com/kvcache-ai/Mooncake's trace.",
            file=sys.stderr,
        )
        return 2
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(os.sched_getaffinity(0)), maxtasksperchild=1) as pool:
        memory, decision = pool.apply_async(index_mb), pool.apply_async(decision_us)
        jobs: list[Any] = [
            (
                Load(load.name, load.traffic, int(load.num * arguments.share), load.rate, load.num_replicas, load.profile),
                way,
                how,
                arguments.trace,
            )
            for load in LOADS
            for way, how in (*WAYS, *((WITHOUT,) if load is MOONCAKE else ()))
        ]
        rows = list(pool.imap(run, jobs))
        mb, (p50_us, p99_us) = memory.get(), decision.get()
    live = run_live(arguments.trace, arguments.peers, max(int(LIVE_REQUESTS * arguments.share), 150))
    return report(rows, live, mb, p50_us, p99_us, arguments)


def report(
    rows: Sequence[Row], live: Sequence[LiveRow], mb: float, p50_us: float, p99_us: float, arguments: argparse.Namespace
) -> int:
    """Print, write, judge."""
    one = [row for row in rows if row.way == "flotilla, one gateway"]
    four = [row for row in rows if row.way == "flotilla, four gateways"]
    without = next(row for row in rows if row.way == WITHOUT[0])
    figures: dict[str, Any] = {
        "one_gateway_of_oracle_ratio": round(min(row.oracle_ratio for row in one), 3),
        "four_gateways_of_oracle_ratio": round(min(row.oracle_ratio for row in four), 3),
        "engine_time_peak_to_mean": round(max(row.busy_peak_to_mean for row in (*one, *four)), 2),
        "index_64_replicas_mb": round(mb, 1),
        "decision_64_replicas_p50_us": round(p50_us, 1),
        "decision_64_replicas_p99_us": round(p99_us, 1),
        "mooncake_ttft_p50_ratio_one_gateway": round(one[0].ttft_p50_ms / without.ttft_p50_ms, 3),
        "mooncake_ttft_p50_ratio_four_gateways": round(four[0].ttft_p50_ms / without.ttft_p50_ms, 3),
    }
    ours = [row for row in live if row.name == OURS]
    for row in live:
        name = re.sub(r"\W+", "_", row.name)
        figures[f"live_{name}_of_oracle_ratio"] = round(row.oracle_ratio, 3)
        figures[f"live_{name}_restart_back_s"] = row.back_s
        figures[f"live_{name}_num_failed"] = row.num_failed
    figures["machine"] = machine()
    figures["holds"] = {
        "live_restart": bool(ours) and ours[0].back_s is not None and ours[0].back_s <= 5 and not ours[0].num_failed,
        "live_best_of_all": len(live) > 1 and bool(ours) and ours[0].oracle_ratio >= max(row.oracle_ratio for row in live),
        "one_gateway": figures["one_gateway_of_oracle_ratio"] >= 0.95,
        "four_gateways": figures["four_gateways_of_oracle_ratio"] >= 0.93,
        "balance": figures["engine_time_peak_to_mean"] <= 1.25,
        "index": mb <= 256,
        "decision": p99_us <= 50,
        "ttft": max(figures["mooncake_ttft_p50_ratio_one_gateway"], figures["mooncake_ttft_p50_ratio_four_gateways"]) <= 0.7,
    }
    lines = [*table(rows), "", *live_table(live)]
    print("\n".join(lines))
    if arguments.write:
        picture = scatter(
            [(row.load, row.way, row.busy_peak_to_mean, 100 * row.oracle_ratio) for row in rows if row.way != WITHOUT[0]]
        )
        (DOCUMENT.parent / "bench-routing.svg").write_text(picture)
        lines += ["", "![Cached tokens against balance, by who places requests](bench-routing.svg)"]
        write_section("bench-routing", "\n".join([machine(), "", *lines, "", "```json", json.dumps(figures), "```"]))
    print(json.dumps(figures))
    return 0 if all(figures["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
