"""Dollars and SLO attainment as a picture: a panel for each load, a line for each contender, SVG by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Curve = Sequence[tuple[float, float]]
"""Dollars and the share attained for them, cheapest first."""
PANEL_W, PANEL_H, LEFT, TOP, GAP = 400, 240, 56, 60, 56
COLOURS = ("#1f5fa8", "#c0392b", "#d68910", "#7d3c98", "#7f8c8d", "#117864")


def frontier_picture(loads: Mapping[str, Mapping[str, Curve]]) -> str:
    """Two panels a row; more for fewer dollars is up and left."""
    rows = (len(loads) + 1) // 2
    width, height = 2 * (LEFT + PANEL_W) + GAP, TOP + rows * (PANEL_H + GAP)
    names = list(next(iter(loads.values())))
    colours = dict(zip(names, COLOURS, strict=False))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Requests within the SLO, for how many dollars</text>',
    ]
    for index, name in enumerate(names):
        parts.append(f'<text x="{LEFT + index * 120}" y="40" fill="{colours[name]}">\u25cf {escape(name)}</text>')
    for index, (load, curves) in enumerate(loads.items()):
        left, top = LEFT + (index % 2) * (PANEL_W + LEFT + GAP // 2), TOP + (index // 2) * (PANEL_H + GAP)
        parts += _panel(load, curves, colours, left, top)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(load: str, curves: Mapping[str, Curve], colours: Mapping[str, str], left: float, top: float) -> list[str]:
    usd = [dollars for curve in curves.values() for dollars, _ in curve]
    shares = [share for curve in curves.values() for _, share in curve]
    low_usd, high_usd, low, high = min(usd), max(usd), min(shares), max(shares)

    def place(dollars: float, share: float) -> str:
        x = left + PANEL_W * (dollars - low_usd) / ((high_usd - low_usd) or 1)
        y = top + PANEL_H * (high - share) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    bottom = top + PANEL_H
    parts = [
        f'<rect x="{left}" y="{top}" width="{PANEL_W}" height="{PANEL_H}" fill="none" stroke="#bbb"/>',
        f'<text x="{left + 6}" y="{bottom - 8}">{escape(load)}</text>',
        f'<text x="{left - 4}" y="{top + 10}" text-anchor="end">{high:.0%}</text>',
        f'<text x="{left - 4}" y="{bottom}" text-anchor="end">{low:.0%}</text>',
        f'<text x="{left}" y="{bottom + 16}">${low_usd:,.0f}</text>',
        f'<text x="{left + PANEL_W}" y="{bottom + 16}" text-anchor="end">${high_usd:,.0f}</text>',
    ]
    for name, curve in curves.items():
        points = [place(*point) for point in curve]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colours[name]}" stroke-width="1.5"/>')
        parts += ['<circle cx="{}" cy="{}" r="2.5" fill="{}"/>'.format(*point.split(","), colours[name]) for point in points]
    return parts
