"""Recorded loads: a CSV file with the time of each request and, where it has them, its tokens in and out, as Azure's trace."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from policies.autoscaling.loads import replayed
from policies.autoscaling.scenario import Load
from policies.capacity.traffic import AZURE_2023_CONVERSATIONS, Length

MAX_LENGTHS = 5000
"""Requests that are kept as the sample of lengths."""


@dataclass(frozen=True)
class _Row:
    at_s: float
    length: Length | None


def recorded_load(path: Path, peak_req_per_s: float, cached_ratio: float) -> Load:
    """The file's arrivals, scaled to so many requests a second in the busiest minute, and its lengths.

    Without tokens in its second and third column, requests are as long as Azure's conversations.

    Raises:
        ValueError: the first column is no time, or there are too few.
    """
    rows = list(_rows(path))
    arrivals = replayed((row.at_s for row in rows), peak_req_per_s)
    lengths = [row.length for row in rows if row.length is not None]
    if len(lengths) < len(rows):
        return Load(arrivals, AZURE_2023_CONVERSATIONS, cached_ratio)
    if len(lengths) > MAX_LENGTHS:
        lengths = random.Random(1).sample(lengths, MAX_LENGTHS)  # noqa: S311 (a sample, no secret)
    return Load(arrivals, tuple(lengths), cached_ratio)


def _rows(path: Path) -> Iterator[_Row]:
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file)):
            if row and not (number == 0 and not row[0][:1].isdigit()):
                yield _Row(seconds(row[0]), _length(row[1:3]))


def _length(columns: list[str]) -> Length | None:
    """Tokens in and out; None where these are not two whole numbers, both above 0."""
    if len(columns) < 2 or not all(column.strip().isdigit() for column in columns):
        return None
    length = Length(int(columns[0]), int(columns[1]))
    return length if min(length) > 0 else None


def seconds(text: str) -> float:
    """A time as seconds: a number as it is, a date since 1970.

    Raises:
        ValueError: it is neither.
    """
    try:
        return float(text)
    except ValueError:
        # Azure's trace has seven digits of a second, one more than Python reads.
        head, dot, fraction = text.partition(".")
        return datetime.fromisoformat(f"{head}{dot}{fraction[:6]}").timestamp()
