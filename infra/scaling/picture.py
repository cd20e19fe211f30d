"""A simulation as a picture: SVG, written by hand since it is a few lines and rectangles, for any browser."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from policies.autoscaling.outcome import Outcome

WIDTH, PANEL, LEFT, RIGHT, GAP = 960, 130, 60, 320, 34
INK, FAINT, FILL, LINE = "#222", "#bbb", "#c9d8ea", "#1f5fa8"


def picture(title: str, arrivals_per_s: Sequence[float], outcomes: Sequence[Outcome]) -> str:
    """The load, and below it the engines that each policy had, with its figures beside. One point for each minute."""
    minutes = [sum(arrivals_per_s[begin : begin + 60]) / 60 for begin in range(0, len(arrivals_per_s) - 59, 60)]
    most = max((max(item.engines, default=1) for item in outcomes), default=1)
    height = 40 + (1 + len(outcomes)) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        _panel(0, minutes, max(minutes, default=1) or 1, "requests a second", []),
    ]
    parts += [
        _panel(1 + index, item.engines, most, f"engines: {item.policy}", _figures(item)) for index, item in enumerate(outcomes)
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _figures(item: Outcome) -> list[str]:
    return [
        f"{item.slo_ratio:.1%} in time, {item.shed_ratio:.2%} shed",
        f"first token P50 {item.ttft_p50_s * 1000:,.0f} ms, P99 {item.ttft_p99_s * 1000:,.0f} ms",
        f"queue at most {item.max_waiting:,.0f}, {item.max_queue_age_s:.1f} s old",
        f"{item.utilization_ratio:.0%} useful, {item.gpu_hours:,.0f} GPU-hours, ${item.usd:,.0f}",
    ]


def _panel(index: int, values: Sequence[float], most: float, label: str, figures: Sequence[str]) -> str:
    """A filled curve from 0 to `most`, and lines of text beside it."""
    top = 44 + index * (PANEL + GAP)
    bottom, width = top + PANEL, WIDTH - LEFT - RIGHT
    each = width / max(1, len(values))
    points = [f"{LEFT},{bottom}"]
    for place, value in enumerate(values):
        y = bottom - PANEL * value / most
        points += [f"{LEFT + place * each:.1f},{y:.1f}", f"{LEFT + (place + 1) * each:.1f},{y:.1f}"]
    points.append(f"{LEFT + width},{bottom}")
    texts = "".join(
        f'<text x="{WIDTH - RIGHT + 16}" y="{top + 30 + line * 20}">{escape(figure)}</text>'
        for line, figure in enumerate(figures)
    )
    return (
        f'<text x="{LEFT}" y="{top - 4}">{escape(label)}</text>'
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most:,.0f}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>'
        f'<polygon points="{" ".join(points)}" fill="{FILL}" stroke="{LINE}"/>'
        f'<line x1="{LEFT}" y1="{bottom}" x2="{LEFT + width}" y2="{bottom}" stroke="{FAINT}"/>{texts}'
    )
