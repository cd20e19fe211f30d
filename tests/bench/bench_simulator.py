"""`make bench-simulator`: the deployed policy for scaling beside those that it is judged by, over four loads, one of them real.

For each load and contender: the share of requests that were served within the SLO (`policies.autoscaling.frontier`), and the
dollars. The system design's function, KEDA on queues and a plain HorizontalPodAutoscaler on CPU are run as they are usually set,
and at other settings; ours at a dozen targets. On each load's second half, ours is to attain no less for the dollars of each of
the three. What never grows costs less than anything that serves the load: there ours has nothing as cheap, and the table says so.
It also says what became of ours when its target was tuned to another's dollars on the first half.
`work` is what our own ScaledObjects fall back on, shown beside. Then the fluid model's error
against the same run request by request, whether all promises hold at the peak of every class, and how long 24 hours of 100
engines take to simulate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench_report import DOCUMENT, machine, write_section
from frontier_picture import frontier_picture

from infra.scaling.recordings import recorded_load
from infra.scaling.setting import Setting, setting
from policies.autoscaling.contenders import OURS, contender
from policies.autoscaling.fidelity import ModelError, checkable, model_error
from policies.autoscaling.frontier import EQUAL_SLO_RATIO, SETTINGS, Half, Match, Point, best, lead, match, runner
from policies.autoscaling.loads import LOADS, diurnal
from policies.autoscaling.peak import Peak, at_peak
from policies.autoscaling.replay import replay
from policies.autoscaling.scenario import Load
from policies.autoscaling.simulation import simulate

HOURS = {"diurnal": 24.0, "spike": 4.0, "bursts": 4.0}
TRACE = "azure_2023_conv.csv"
NODE_S, SPOT_LOSSES_PER_H = 90.0, 0.05
PEAK_REQ_PER_S = 400.0
JUDGED_BY = ("system-design", "queue", "cpu")
USUAL: Mapping[str, float] = {"system-design": 0.2, "queue": 5, "cpu": 0.7, "work": 91}
"""What each is usually tuned to: the promise, KEDA's example, a common share of CPU; and ours."""
MAX_DAY_S = 30.0
FRONTIER = DOCUMENT.with_name("scaling-frontier.svg")
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
    loads = halved(traces, given.hours_ratio)
    compared = {name: comparison(name, halves, found) for name, halves in loads.items()}
    errors = {name: checked(name, halves[0].load, found) for name, halves in loads.items()}
    peaks = [peaked(model_class) for model_class in ("small", "medium", "large")]
    day_s = timed_day(found)
    text = tables(compared, errors, peaks, found, day_s)
    print(text)
    behind = {load: each.not_ahead() for load, each in compared.items()}
    holds = (
        all(item.holds for item in peaks)
        and not any(behind.values())
        and all(abs(item.slo_points) <= MAX_SLO_POINTS for item in errors.values())
        and all(abs(item.ttft_p50_ratio) <= MAX_P50_RATIO for item in errors.values())
        and day_s <= MAX_DAY_S
    )
    figures = {
        "machine": machine(),
        "slo_ratio_and_usd": {load: each.figures() for load, each in compared.items()},
        "not_ahead_of": behind,
        "lead_at_equal_usd_points": {
            load: {name: round(points, 1) for name in USUAL if (points := each.lead(name)) is not None}
            for load, each in compared.items()
        },
        "least_lead_at_equal_usd_points": {
            load: {name: round(points, 1) for name in USUAL if (points := each.leads(name)[0]) is not None}
            for load, each in compared.items()
        },
        "model_error": {
            load: {key: value for key, value in asdict(item).items() if key != "policy"} for load, item in errors.items()
        },
        "peak_useful_ratio": {item.name: round(item.utilization_ratio, 3) for item in peaks},
        "peak_ttft_p50_ms": {item.name: round(item.ttft_p50_s * 1000) for item in peaks},
        "day_of_100_engines_s": round(day_s, 1),
        "holds": holds,
    }
    if given.write:
        FRONTIER.write_text(frontier_picture({load: curves(each) for load, each in compared.items()}), encoding="utf-8")
        write_section("bench-simulator", text)
    print(json.dumps(figures))
    return 0 if holds else 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Comparison:
    """All contenders at all their settings over one load, and ours tuned beside each one's usual setting."""

    sweeps: Mapping[str, Sequence[Point]]
    deployed: Point
    matches: Mapping[str, Match]

    def not_ahead(self) -> list[str]:
        """Of those that ours is judged by at their usual settings: who attains more for the same dollars."""
        return [name for name in JUDGED_BY if (points := self.lead(name)) is not None and points < -EQUAL_SLO_RATIO * 100]

    def lead(self, name: str) -> float | None:
        """By how many points of the SLO ours leads at the dollars of another's usual setting; below 0 it trails, and None is said
        where ours has no setting as cheap."""
        return self._leads([self.matches[name].other])[0]

    def leads(self, name: str) -> tuple[float | None, float | None]:
        """The same at least and at most, over all settings of another whose dollars ours can match."""
        points = [each for each in self._leads(self.sweeps[name]) if each is not None]
        return (min(points), max(points)) if points else (None, None)

    def _leads(self, others: Sequence[Point]) -> list[float | None]:
        found = lead([point.measured for point in others], [point.measured for point in self.sweeps[OURS]])
        return [None if ratio is None else ratio * 100 for _, ratio in found]

    def figures(self) -> dict[str, list[float]]:
        """Attained and paid on the second half, by contender."""
        points = {"deployed": self.deployed, **{name: it.other for name, it in self.matches.items()}}
        points |= {f"ours_beside_{name}": it.ours for name, it in self.matches.items() if it.ours}
        return {name: [round(it.measured.slo_ratio, 4), round(it.measured.usd, 1)] for name, it in points.items()}


def curves(compared: Comparison) -> dict[str, list[tuple[float, float]]]:
    """What can be had for how much, by contender."""
    return {
        name: [(one.usd, one.slo_ratio) for one in best(point.measured for point in points)]
        for name, points in compared.sweeps.items()
    }


def halved(trace: Path, hours_ratio: float) -> dict[str, tuple[Half, Half]]:
    """The loads, each in two halves: generated ones twice with other noise, the recorded hour cut in the middle."""
    found = {}
    for name, make in LOADS.items():
        first, second = (Half(Load(make(PEAK_REQ_PER_S, int(HOURS[name] * hours_ratio * 3600), seed))) for seed in (1, 2))
        found[name] = first, second
    azure = recorded_load(trace, PEAK_REQ_PER_S, 0.0)
    middle, end = len(azure.arrivals_per_s) // 2, len(azure.arrivals_per_s)
    found["azure"] = Half(azure, range(middle)), Half(azure, range(middle, end))
    return found


def comparison(name: str, halves: tuple[Half, Half], found: Setting) -> Comparison:
    """Every contender over one load."""
    say(f"{name}: {sum(sum(half.load.arrivals_per_s) for half in halves):,.0f} requests, {sum(map(len, SETTINGS.values()))} runs")
    run = runner(found.policy, halves, found.engine, found.bounds)
    sweeps = {each: [run(each, setting) for setting in SETTINGS[each]] for each in SETTINGS}
    matches = {each: match(run(each, usual), sweeps[OURS], run) for each, usual in USUAL.items()}
    return Comparison(sweeps, run(OURS, found.policy.target_in_flight), matches)


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


def tables(
    compared: Mapping[str, Comparison],
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
        f" {found.engine.cold_start_s:.0f} s until a new engine serves. Each load's second half.",
        "",
        "| load | policy | tuned to | within the SLO | shed | P50, ms | useful | $ | ours, tuned to its dollars | within the SLO"
        " | $ | so ours is | lead for its dollars, points | over all settings |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for load, each in compared.items():
        lines.append(_row(load, OURS, each.deployed))
        for name, one in each.matches.items():
            least, most = each.leads(name)
            span = "" if least is None or most is None else f"{least:+.1f} to {most:+.1f}"
            points, mine = each.lead(name), one.ours
            usual = "" if points is None else f"{points:+.1f}"
            beside = " | | " if mine is None else f"{mine.setting:.0f} | {mine.measured.slo_ratio:.1%} | {mine.measured.usd:,.0f}"
            lines.append(f"{_row(load, name, one.other)} {beside} | {one.verdict} | {usual} | {span} |")
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


def _row(load: str, name: str, point: Point) -> str:
    it = point.measured
    return (
        f"| {load} | {name} | {point.setting:g} | {it.slo_ratio:.1%} | {it.shed_ratio:.2%} | {it.ttft_p50_s * 1000:,.0f}"
        f" | {it.utilization_ratio:.0%} | {it.usd:,.0f} |" + (" | | | | | |" if name == OURS else "")
    )


if __name__ == "__main__":
    sys.exit(main())
