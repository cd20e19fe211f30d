"""Loads to simulate: requests a second, one number for each second. Seeded ones are the same each time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping

NIGHT_SHARE = 0.25
"""Of the day's peak, in the quietest hour."""


def diurnal(peak_per_s: float, duration_s: int, seed: int) -> list[float]:
    """A day: quiet at the start and the end, the peak in between, Poisson noise on top."""
    mean = ((1 - math.cos(2 * math.pi * second / duration_s)) / 2 for second in range(duration_s))
    return _noisy((peak_per_s * (NIGHT_SHARE + (1 - NIGHT_SHARE) * share) for share in mean), seed)


def spike(peak_per_s: float, duration_s: int, seed: int) -> list[float]:
    """A third of the peak, and the peak for a tenth of the time, all at once, in the middle."""
    begin, end = int(duration_s * 0.45), int(duration_s * 0.55)
    return _noisy((peak_per_s if begin <= second < end else peak_per_s / 3 for second in range(duration_s)), seed)


def bursts(peak_per_s: float, duration_s: int, seed: int) -> list[float]:
    """A third of the peak, and each five minutes a minute of the peak."""
    return _noisy((peak_per_s if second % 300 < 60 else peak_per_s / 3 for second in range(duration_s)), seed)


LOADS: Mapping[str, Callable[[float, int, int], list[float]]] = {"diurnal": diurnal, "spike": spike, "bursts": bursts}


def replayed(at_s: Iterable[float], peak_per_s: float, window_s: int = 60) -> list[float]:
    """Recorded arrivals, counted by second and scaled so that the busiest window of `window_s` has `peak_per_s` on average.

    Raises:
        ValueError: there are no arrivals, or they last less than a window.
    """
    seconds = [int(moment) for moment in at_s]
    if not seconds or max(seconds) - min(seconds) < window_s:
        raise ValueError(f"needs arrivals over at least {window_s} s")
    first = min(seconds)
    counts = [0.0] * (max(seconds) - first + 1)
    for second in seconds:
        counts[second - first] += 1
    running = busiest = sum(counts[:window_s])
    for index in range(window_s, len(counts)):
        running += counts[index] - counts[index - window_s]
        busiest = max(busiest, running)
    return [count * peak_per_s * window_s / busiest for count in counts]


def _noisy(means: Iterable[float], seed: int) -> list[float]:
    """Poisson counts; above 50 a second by its normal approximation, which no rule can tell apart."""
    rng = random.Random(seed)  # noqa: S311 (a load, no secret)
    return [_poisson(rng, mean) if mean < 50 else max(0.0, round(rng.gauss(mean, math.sqrt(mean)))) for mean in means]


def _poisson(rng: random.Random, mean: float) -> float:
    limit, count, product = math.exp(-mean), 0, rng.random()
    while product > limit:
        count += 1
        product *= rng.random()
    return float(count)
