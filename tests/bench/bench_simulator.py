"""`make bench-simulator`: the deployed policy for scaling beside those that it is judged by, over four loads, one of them real.

For each load: how much of it was served while the promise was kept (half of the first tokens within 200 ms, nobody shed), and
what it cost. Ours is to keep it no less than the system design's function, KEDA on queues and a plain HorizontalPodAutoscaler
on CPU, at equal or lower dollars; the last never grows, so nothing that serves the load can cost less. `work` is what our own
ScaledObjects fall back on, and is shown beside. Then the fluid model's error against the same run request by request, whether
all promises hold at the peak of every class, and how long 24 hours of 100 engines take to simulate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench_report import machine, write_section

from infra.scaling.recordings import recorded_load
from infra.scaling.setting import Setting, setting
from policies.autoscaling.contenders import CONTENDERS, OURS, contender
from policies.autoscaling.fidelity import ModelError, checkable, model_error
from policies.autoscaling.loads import LOADS, diurnal
from policies.autoscaling.outcome import Outcome
from policies.autoscaling.peak import Peak, at_peak
from policies.autoscaling.replay import replay
from policies.autoscaling.scenario import Load
from policies.autoscaling.simulation import simulate

HOURS = {"diurnal": 24.0, "spike": 4.0, "bursts": 4.0}
TRACE = "azure_2023_conv.csv"
NODE_S, SPOT_LOSSES_PER_H = 90.0, 0.05
PEAK_REQ_PER_S = 400.0
JUDGED_BY = ("system-design", "queue", "cpu")
NEVER_GROWS = "cpu"
EQUAL_RATIO = 0.01
"""Dollars within a hundredth are equal."""
MAX_DAY_S = 30.0
MAX_SLO_POINTS, MAX_P50_RATIO = 8.0, 0.2


def main() -> int:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    options.add_argument("--hours-ratio", type=float, default=1.0, help="of the generated loads' lengths; less is quicker")
    given = options.parse_args()
    traces = Path(os.environ.get("FLOTILLA_TRACES", "")) / TRACE
    if not traces.is_file():
        say(f"no {TRACE}: FLOTILLA_TRACES must name its folder (Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv)")
        return 2
    found = setting("prod", "small", NODE_S, SPOT_LOSSES_PER_H)
    loads = {name: Load(make(PEAK_REQ_PER_S, int(HOURS[name] * given.hours_ratio * 3600), 1)) for name, make in LOADS.items()}
    loads["azure"] = recorded_load(traces, PEAK_REQ_PER_S, 0.0)
    outcomes = {name: compared(name, load, found) for name, load in loads.items()}
    errors = {name: checked(name, load, found) for name, load in loads.items()}
    peaks = [peaked(model_class) for model_class in ("small", "medium", "large")]
    day_s = timed_day(found)
    behind = {load: not_ahead(items) for load, items in outcomes.items()}
    text = tables(outcomes, errors, peaks, found, day_s)
    print(text)
    holds = (
        all(item.holds for item in peaks)
        and all(set(names) <= {NEVER_GROWS} for names in behind.values())
        and all(abs(item.slo_points) <= MAX_SLO_POINTS for item in errors.values())
        and all(abs(item.ttft_p50_ratio) <= MAX_P50_RATIO for item in errors.values())
        and day_s <= MAX_DAY_S
    )
    figures = {
        "machine": machine(),
        "kept_ratio": {load: round(ours(items).kept_ratio, 4) for load, items in outcomes.items()},
        "usd": {load: {item.policy: round(item.usd, 1) for item in items} for load, items in outcomes.items()},
        "not_ahead_of": behind,
        "model_error": {
            load: {key: value for key, value in asdict(item).items() if key != "policy"} for load, item in errors.items()
        },
        "peak_useful_ratio": {item.name: round(item.utilization_ratio, 3) for item in peaks},
        "peak_ttft_p50_ms": {item.name: round(item.ttft_p50_s * 1000) for item in peaks},
        "day_of_100_engines_s": round(day_s, 1),
        "holds": holds,
    }
    if given.write:
        write_section("bench-simulator", text)
    print(json.dumps(figures))
    return 0 if holds else 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compared(name: str, load: Load, found: Setting) -> list[Outcome]:
    """Every policy over one load."""
    say(f"{name}: {sum(load.arrivals_per_s):,.0f} requests")
    return [
        simulate(policy, contender(policy, found.policy, found.bounds), load, found.engine, found.bounds) for policy in CONTENDERS
    ]


def checked(name: str, load: Load, found: Setting) -> ModelError:
    """Ours, fluid less event by event, over the hour of the peak."""
    part, bounds = checkable(load, found.bounds)
    say(f"{name}: {sum(part.arrivals_per_s):,.0f} requests one by one")
    runs = [run(OURS, contender(OURS, found.policy, bounds), part, found.engine, bounds) for run in (simulate, replay)]
    return model_error(*runs)


def peaked(model_class: str) -> Peak:
    """The peak of a day, as `flotilla simulate --peak` has it."""
    say(f"{model_class}: the peak of a day")
    found = setting("prod", model_class, NODE_S)
    bounds = replace(found.bounds, minimum=max(1, found.bounds.maximum // 8))
    load = Load(diurnal(found.peak_req_per_s, 86_400, 1))
    return at_peak(model_class, contender(OURS, found.policy, bounds), load, found.engine, bounds)


def timed_day(found: Setting) -> float:
    """Seconds for 24 hours at a load that 100 engines are needed for."""
    bounds = replace(found.bounds, minimum=10, maximum=120, spot=0)
    load = Load(diurnal(900.0, 86_400, 1))
    begun = time.perf_counter()
    outcome = simulate(OURS, contender(OURS, found.policy, bounds), load, found.engine, bounds)
    day_s = time.perf_counter() - begun
    say(f"24 hours with up to {max(outcome.engines)} engines: {day_s:.1f} s")
    return day_s


def ours(items: Sequence[Outcome]) -> Outcome:
    return next(item for item in items if item.policy == OURS)


def not_ahead(items: Sequence[Outcome]) -> list[str]:
    """Those it is judged by that kept the promise more, or cost less."""
    mine = ours(items)
    return [
        item.policy
        for item in items
        if item.policy in JUDGED_BY and (item.kept_ratio > mine.kept_ratio or item.usd * (1 + EQUAL_RATIO) < mine.usd)
    ]


def tables(
    outcomes: Mapping[str, Sequence[Outcome]],
    errors: Mapping[str, ModelError],
    peaks: Sequence[Peak],
    found: Setting,
    day_s: float,
) -> str:
    """What goes into the document."""
    buckets = [f"≤ {part.bucket:,}" for part in peaks[0].buckets]
    lines = [
        machine(),
        "",
        f"Simulated: class small of prod, {found.bounds.minimum} to {found.bounds.maximum} engines of which the last"
        f" {found.bounds.spot} on spot, {PEAK_REQ_PER_S:.0f} requests a second in the busiest minute,"
        f" {found.engine.cold_start_s:.0f} s until a new engine serves, seed 1.",
        "",
        "| load | policy | promise kept | in time | shed | P50, ms | useful | GPU-hours | $ | $ per 1,000 in time |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for load, items in outcomes.items():
        for item in items:
            per_1k = "" if item.usd_per_1k_in_time is None else f"{item.usd_per_1k_in_time:.3f}"
            lines.append(
                f"| {load} | {item.policy} | {item.kept_ratio:.1%} | {item.slo_ratio:.1%} | {item.shed_ratio:.2%}"
                f" | {item.ttft_p50_s * 1000:,.0f} | {item.utilization_ratio:.0%} | {item.gpu_hours:,.0f} | {item.usd:,.0f}"
                f" | {per_1k} |"
            )
    lines += [
        "",
        "The fluid model less the same run request by request (ours, the hour of the peak, from the floor):",
        "",
        "| load | in time, points | shed, points | P50 | useful, points | GPU-hours | engines, at most |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for load, error in errors.items():
        lines.append(
            f"| {load} | {error.slo_points:+.1f} | {error.shed_points:+.1f} | {error.ttft_p50_ratio:+.0%}"
            f" | {error.utilization_points:+.1f} | {error.gpu_hours_ratio:+.0%} | {error.max_engines} |"
        )
    lines += [
        "",
        "The hour of the peak of a day, the deployed policy (P50 by uncached prompt tokens; a bound in parentheses is what an"
        " idle engine takes, where that is 200 ms or more):",
        "",
        f"| class | requests/s | engines | useful | shed | P50, ms | {' | '.join(buckets)} |",
        "|---|--:|--:|--:|--:|--:|" + "--:|" * len(buckets),
    ]
    for peak in peaks:
        cells = [
            f"{part.p50_s * 1000:,.0f}" + (f" ({part.bound_s * 1000:,.0f})" if part.bound_s >= found.bounds.ttft_slo_s else "")
            for part in peak.buckets
        ]
        lines.append(
            f"| {peak.name} | {peak.req_per_s:,.0f} | {peak.engines} | {peak.utilization_ratio:.0%} | {peak.shed_ratio:.2%}"
            f" | {peak.ttft_p50_s * 1000:,.0f} | {' | '.join(cells)} |"
        )
    lines += ["", f"24 simulated hours with 100 engines at the peak: {day_s:.1f} s."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
