"""A simulation as a table and bars in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from policies.autoscaling.fidelity import ModelError
from policies.autoscaling.outcome import Outcome
from policies.autoscaling.peak import Peak
from policies.cold_start import ColdStart

BARS = "▁▂▃▄▅▆▇█"
PICTURE_WIDTH = 96


def title(arrivals_per_s: Sequence[float], in_flight: float, cold_start_s: float) -> str:
    """What was simulated, in a line."""
    return (
        f"{sum(arrivals_per_s):,.0f} requests in {len(arrivals_per_s) / 3600:.1f} h; {in_flight:.0f} in flight an engine;"
        f" {cold_start_s:.0f} s until a new one serves"
    )


def outcomes_table(outcomes: Sequence[Outcome], heading: str) -> Table:
    """Policies side by side."""
    table = Table(box=None, pad_edge=False, title=heading, title_justify="left")
    names = (
        "kept",
        "in time",
        "shed",
        "lost",
        "P50, ms",
        "P99, ms",
        "queue, s",
        "useful",
        "GPU-hours",
        "$",
        "$/1,000 in time",
        "changes",
    )
    table.add_column("policy")
    for name in names:
        table.add_column(name, justify="right")
    for item in outcomes:
        per_1k = item.usd_per_1k_in_time
        table.add_row(
            item.policy,
            f"{item.kept_ratio:.1%}",
            f"{item.slo_ratio:.1%}",
            f"{item.shed_ratio:.2%}",
            f"{item.lost_ratio:.2%}",
            f"{item.ttft_p50_s * 1000:,.0f}",
            f"{item.ttft_p99_s * 1000:,.0f}",
            f"{item.max_queue_age_s:.1f}",
            f"{item.utilization_ratio:.0%}",
            f"{item.gpu_hours:,.0f}",
            f"{item.usd:,.0f}",
            "–" if per_1k is None else f"{per_1k:.3f}",
            f"{item.num_changes:,}",
        )
    return table


def buckets_table(outcomes: Sequence[Outcome]) -> Table:
    """P50 and share in time of each bucket."""
    buckets = sorted({bucket for item in outcomes for bucket in item.buckets})
    heading = "first tokens by uncached prompt tokens: P50 in ms, share within the promise"
    table = Table(box=None, pad_edge=False, title=heading, title_justify="left")
    table.add_column("policy")
    for bucket in buckets:
        table.add_column(f"≤ {bucket:,}", justify="right")
    for item in outcomes:
        cells = []
        for bucket in buckets:
            times = item.buckets.get(bucket)
            cells.append(f"{times.p50_s * 1000:,.0f}  {times.in_time_ratio:4.0%}" if times else "–")
        table.add_row(item.policy, *cells)
    return table


def errors_table(errors: Sequence[ModelError], num_requests: float) -> Table:
    """The fluid model beside the run request by request."""
    heading = f"fluid less event by event, the hour of the peak, {num_requests:,.0f} requests"
    table = Table(box=None, pad_edge=False, title=heading, title_justify="left")
    table.add_column("policy")
    for name in ("in time, points", "shed, points", "P50", "useful, points", "GPU-hours", "engines, at most"):
        table.add_column(name, justify="right")
    for item in errors:
        table.add_row(
            item.policy,
            f"{item.slo_points:+.1f}",
            f"{item.shed_points:+.1f}",
            f"{item.ttft_p50_ratio:+.0%}",
            f"{item.utilization_points:+.1f}",
            f"{item.gpu_hours_ratio:+.0%}",
            f"{item.max_engines}",
        )
    return table


def peaks(found: Sequence[Peak]) -> RenderableType:
    """Each class at its peak, and its buckets."""
    heading = "the hour of the peak of a day, under the deployed policy: useful ≥ 70 %, P50 < 200 ms, ≤ 0.1 % shed, all at once"
    table = Table(box=None, pad_edge=False, title=heading, title_justify="left")
    table.add_column("class")
    for name in ("requests/s", "engines", "useful", "P50, ms", "shed", "all at once"):
        table.add_column(name, justify="right")
    buckets = Table(box=None, pad_edge=False, title="\nP50 by uncached prompt tokens", title_justify="left")
    buckets.add_column("class")
    for name in ("tokens", "of requests", "P50, ms", "idle engine, ms", "P50 < 200 ms"):
        buckets.add_column(name, justify="right")
    for item in found:
        table.add_row(
            item.name,
            f"{item.req_per_s:,.0f}",
            f"{item.engines}",
            f"{item.utilization_ratio:.1%}",
            f"{item.ttft_p50_s * 1000:,.0f}",
            f"{item.shed_ratio:.2%}",
            "holds" if item.holds else "does not hold",
        )
        for part in item.buckets:
            buckets.add_row(
                item.name,
                f"≤ {part.bucket:,}",
                f"{part.share_ratio:.0%}",
                f"{part.p50_s * 1000:,.0f}",
                f"{part.bound_s * 1000:,.0f}",
                part.holds.value,
            )
    note = Text(
        "\nCannot hold: an idle engine is later than that already, for the bucket's median prompt."
        " Simulated from a modelled step law (policies/capacity/step_law.py), not measured.",
        style="dim",
    )
    return Group(table, buckets, note)


def bars(arrivals_per_s: Sequence[float], outcomes: Sequence[Outcome]) -> RenderableType:
    """The load, and the engines of each policy, over time."""
    minutes = [sum(arrivals_per_s[begin : begin + 60]) for begin in range(0, len(arrivals_per_s), 60)]
    lines = [Text(f"{'requests':>13} {_bars(minutes)}")]
    return Group(*lines, *(Text(f"{item.policy:>13} {_bars(item.engines)}") for item in outcomes))


def cold_start_note(cold: ColdStart, node_s: float) -> str:
    """Where a new engine's time goes."""
    return (
        f"A new engine: node {node_s:.0f} s (assumed), image {cold.pull_s:.0f}, weights {cold.fetch_s:.0f}, digests"
        f" {cold.verify_s:.0f}, load {cold.load_s:.0f}, compile {cold.compile_s:.0f}, warm-up {cold.warm_up_s:.0f}."
    )


def _bars(values: Sequence[float]) -> str:
    """A line of bars, the largest value full height."""
    width = min(PICTURE_WIDTH, len(values))
    if not width:
        return ""
    per = len(values) / width
    means = [_mean(values[int(index * per) : max(int(index * per) + 1, int((index + 1) * per))]) for index in range(width)]
    top = max(means) or 1
    return "".join(BARS[min(len(BARS) - 1, int(mean / top * len(BARS)))] for mean in means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
