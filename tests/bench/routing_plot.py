"""A picture of hits against balance as an SVG: a point for each way of placing requests, a shape for each load."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 900, 460, 60, 20, 400
_RIGHT = 520
_COLOURS = ("#888888", "#d08a1d", "#1565c0", "#2e7d32", "#ad1457", "#5e35b1")
_MAX_BALANCE = 3.0
"""What is worse stands at the edge."""


def scatter(points: Sequence[tuple[str, str, float, float]]) -> str:
    """Of each point its load, its way, peak/mean of engine time, and cached tokens in percent of the oracle's."""
    loads, ways = (list(dict.fromkeys(point[place] for point in points)) for place in (0, 1))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for percent in range(0, 101, 20):
        lines.append(f'<path d="M{_LEFT} {_y(percent):.1f}H{_RIGHT}" stroke="#ddd"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{_y(percent) + 4:.1f}" text-anchor="end">{percent} %</text>')
    for balance in (1.0, 1.25, 1.5, 2.0, 2.5, _MAX_BALANCE):
        lines.append(f'<path d="M{_x(balance):.1f} {_TOP}V{_BOTTOM}" stroke="#ddd"/>')
        lines.append(f'<text x="{_x(balance):.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{balance:g}</text>')
    middle = (_LEFT + _RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{_BOTTOM + 38}" text-anchor="middle">engine time, peak/mean (1 is even)</text>')
    lines.append(f'<text x="{_LEFT}" y="{_TOP - 6}">cached tokens, of the oracle\'s</text>')
    for load, way, balance, percent in points:
        lines.append(_mark(loads.index(load), _COLOURS[ways.index(way) % len(_COLOURS)], _x(balance), _y(percent)))
    row = _TOP + 14
    for number, way in enumerate(ways):
        lines.append(_mark(0, _COLOURS[number % len(_COLOURS)], _RIGHT + 30, row - 4))
        lines.append(f'<text x="{_RIGHT + 42}" y="{row}">{escape(way)}</text>')
        row += 20
    for number, load in enumerate(loads):
        row += 20
        lines.append(_mark(number, "#444", _RIGHT + 30, row - 4))
        lines.append(f'<text x="{_RIGHT + 42}" y="{row}">{escape(load)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _x(balance: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * (min(balance, _MAX_BALANCE) - 0.9) / (_MAX_BALANCE - 0.9)


def _y(percent: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * min(percent, 105) / 105


def _mark(shape: int, colour: str, x: float, y: float) -> str:
    match shape % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
        case 1:
            return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{colour}"/>'
        case 2:
            return f'<path d="M{x:.1f} {y - 6:.1f}l6 11h-12z" fill="{colour}"/>'
        case _:
            return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="{colour}"/>'
