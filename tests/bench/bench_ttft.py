"""Measures how well first tokens are predicted (`policies/routing/ttft.py`), by `make bench-ttft`.

The twins' engines and this gateway's policies serve conversations in virtual time (`routing_sim.py`): the prediction is made with
what the gateway knew when it asked, from first tokens that had come by then. The errors are exact and seeded; the time of a
decision over 64 replicas is this machine's CPU. Prints a table and one line of JSON; exits 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from pathlib import Path
from statistics import median
from time import thread_time

sys.path.insert(0, str(Path(__file__).parent))

from bench_report import machine
from rich.console import Console
from rich.table import Table
from routing_sim import FirstToken, Fleet, simulate
from routing_traffic import conversations

from policies.routing.ttft import OWN_SAMPLES, Predictor, features

NUM_REPLICAS = 8
LOADS_PER_S = (4.0, 8.0, 12.0)
"""Conversations' turns a second at eight replicas of the small class: from idle to busy."""
MAX_MEDIAN_ERROR = 0.15
MAX_DECISION_US = 50.0


def errors(first_tokens: list[FirstToken]) -> list[float]:
    """|predicted - true| / true of each request that could be predicted."""
    predictor, coming, found = Predictor(), list[tuple[float, int, FirstToken]](), list[float]()
    for number, one in enumerate(sorted(first_tokens, key=lambda each: each.sent_s)):
        while coming and coming[0][0] <= one.sent_s:
            came = heapq.heappop(coming)[2]
            predictor.learn(came.replica, _features(came), came.came_s - came.sent_s)
        predicted_s = predictor.predict_s(one.replica, _features(one))
        true_s = one.came_s - one.sent_s
        if predicted_s is not None:
            found.append(abs(predicted_s - true_s) / true_s)
        heapq.heappush(coming, (one.came_s, number, one))
    return found


def _features(one: FirstToken) -> tuple[float, float, float, float, float]:
    return features(one.uncached_tokens, one.queued_tokens, one.num_running)


def decision_us(num_replicas: int) -> float:
    """CPU time to predict for every replica and take the least."""
    predictor = Predictor()
    names = [f"engine-{number}" for number in range(num_replicas)]
    for name in names:
        for number in range(OWN_SAMPLES + 1):
            predictor.learn(name, features(100 * number, 50 * number, number % 12), 0.05 + 0.01 * number)
    took_s = []
    for _ in range(300):
        began_s = thread_time()
        min(predictor.predict_s(name, features(1000, 500 * n, n)) or 0.0 for n, name in enumerate(names))
        took_s.append(thread_time() - began_s)
    return median(took_s) * 1e6


def main() -> int:
    """The benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=4000, help="at each load")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    table = Table("load", "requests", "median error", "p90 error", title="TTFT predictor, a100-small, simulated")
    figures: dict[str, float] = {}
    for per_s in LOADS_PER_S:
        fleet = Fleet(NUM_REPLICAS, "flotilla", profile="a100-small", block_tokens=64, seed=given.seed)
        asks = conversations(given.requests, per_s, block_tokens=64, seed=given.seed)
        found = sorted(errors(simulate(asks, fleet).first_tokens))
        half, most = median(found), found[int(0.9 * len(found))]
        table.add_row(f"{per_s:g}/s", str(len(found)), f"{half:.1%}", f"{most:.1%}")
        figures |= {f"median_error_ratio_at_{per_s:g}_per_s": half, f"p90_error_ratio_at_{per_s:g}_per_s": most}
        print(f"{per_s:g}/s: median {half:.1%}", flush=True)
    figures["decision_us_over_64_replicas"] = decision_us(64)
    Console(soft_wrap=True, highlight=False).print(table)
    worst = max(value for name, value in figures.items() if name.startswith("median"))
    holds = worst <= MAX_MEDIAN_ERROR and figures["decision_us_over_64_replicas"] <= MAX_DECISION_US
    print(json.dumps({**{k: round(v, 4) for k, v in figures.items()}, "seed": given.seed, "machine": machine(), "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
