"""A drill as a picture: requests of each second, served and not, with what was done when. SVG, for any browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL, LEFT, RIGHT, TOP = 1080, 240, 56, 24, 96
SERVED, FAILED, INK, FAINT = "#4f8fc4", "#c8402f", "#222", "#bbb"
LABEL_ROWS, ROW = 4, 15


@dataclass(frozen=True)
class Mark:
    """Something that was done or seen, at `at_s` from the loss."""

    at_s: float
    what: str


def timeline(title: str, begun: Sequence[tuple[float, bool]], marks: Sequence[Mark], figures: Sequence[str]) -> str:
    """`begun` has, for each request, when it began (seconds from the loss) and whether it was served; `figures` stand below."""
    first = int(min((at_s for at_s, _ in begun), default=0.0) // 1)
    last = int(max((at_s for at_s, _ in begun), default=1.0) // 1) + 1
    counts = {second: [0, 0] for second in range(first, last)}
    for at_s, is_served in begun:
        counts[int(at_s // 1)][not is_served] += 1
    most = max((sum(its) for its in counts.values()), default=1) or 1
    bottom, each = TOP + PANEL, (WIDTH - LEFT - RIGHT) / max(1, last - first)
    height = bottom + 50 + 20 * len(figures)

    def x(at_s: float) -> float:
        return LEFT + (at_s - first) * each

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{LEFT - 6}" y="{TOP + 10}" text-anchor="end">{most}</text>',
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<rect x="{WIDTH - 250}" y="10" width="10" height="10" fill="{SERVED}"/><text x="{WIDTH - 236}" y="20">served</text>',
        f'<rect x="{WIDTH - 180}" y="10" width="10" height="10" fill="{FAILED}"/>'
        f'<text x="{WIDTH - 166}" y="20">not served, by second begun</text>',
    ]
    for second, (num_served, num_failed) in counts.items():
        base = float(bottom)
        for count, colour in ((num_served, SERVED), (num_failed, FAILED)):
            size = PANEL * count / most
            base -= size
            if count:
                parts.append(
                    f'<rect x="{x(second):.1f}" y="{base:.1f}" width="{max(1.0, each - 0.5):.1f}"'
                    f' height="{size:.1f}" fill="{colour}"/>'
                )
    for number, mark in enumerate(marks):
        y = 38 + number % LABEL_ROWS * ROW
        anchor, gap = ("end", -3) if x(mark.at_s) > WIDTH * 0.75 else ("start", 3)
        parts.append(f'<line x1="{x(mark.at_s):.1f}" y1="{y - 9}" x2="{x(mark.at_s):.1f}" y2="{bottom}" stroke="{FAINT}"/>')
        parts.append(
            f'<text x="{x(mark.at_s) + gap:.1f}" y="{y}" text-anchor="{anchor}">{escape(mark.what)} {mark.at_s:+.0f} s</text>'
        )
    step = next(size for size in (5, 10, 20, 30, 60, 120, 300, 10**6) if (last - first) / size <= 12)
    for second in range(first - first % step, last, step):
        if second >= first:
            parts.append(f'<text x="{x(second):.1f}" y="{bottom + 16}" text-anchor="middle">{second} s</text>')
    for number, figure in enumerate(figures):
        parts.append(f'<text x="{LEFT}" y="{bottom + 44 + 20 * number}">{escape(figure)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
