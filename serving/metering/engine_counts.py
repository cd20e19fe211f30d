"""Engines' own token counters, kept in the archive, and their reconciliation with what was billed.

    counts/v1/<region>/<YYYY-MM-DD>/<HH>/<MM>.json     every ready engine's counters in that minute
    reconciled/v1/<region>/<YYYY-MM-DD>/<HH>.json      what the hour's reconciliation found

A gateway looks (`serving/gateway/engine_counter.py`), a shipper reconciles. Rows are taken from the archived segments, which
`flotilla ledger verify` holds the ledger against: an hour of them is read once, and no table is scanned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from policies.billing.reconciliation import Billed, Life, Look, reconcile
from serving import series
from serving.metering.books import Books
from serving.metering.events import Outcome, UsageClose

COUNTS = "counts/v1/"
RECONCILED = "reconciled/v1/"
HOUR_MS = 3_600_000
SETTLED_AFTER_MS = 15 * 60_000
"""An hour is reconciled so long after its end: a request takes ten minutes at most, and then ships within seconds."""


@dataclass(frozen=True)
class Reconciled:
    """What was found of an hour."""

    region: str
    hour: str
    """`2026-11-24T09`"""
    lives: tuple[Life, ...]
    unexplained_prompt_tokens: int
    """Sum over lives of how far each is outside, whichever way."""
    unexplained_output_tokens: int

    @property
    def holds(self) -> bool:
        """Every difference is explained."""
        return not (self.unexplained_prompt_tokens or self.unexplained_output_tokens)


def parse_counters(text: str, engine: str, model: str, at_ms: int) -> Look | None:
    """The counters in an engine's `/metrics`, summed over its ranks; None where they are not there."""
    output, prompt = series.VLLM_TOKENS
    began = output.replace("_total", "_created")
    values: dict[str, list[float]] = {prompt: [], output: [], began: []}
    for line in text.splitlines():
        found = values.get(line.partition("{")[0])
        if found is not None:
            found.append(float(line.rpartition(" ")[2]))
    if not values[prompt] or not values[output]:
        return None
    epoch_ms = round(min(values[began], default=0.0) * 1000)
    return Look(engine, model, epoch_ms, at_ms, round(sum(values[prompt])), round(sum(values[output])))


def counts_key(region: str, at_ms: int) -> str:
    """Where a minute's looks lie."""
    return f"{COUNTS}{region}/{_utc(at_ms):%Y-%m-%d/%H/%M}.json"


def reconcile_hour(books: Books, region: str, hour: str) -> Reconciled:
    """Compare what the region's engines counted in an hour (`2026-11-24T09`) with what was billed of them.

    Raises:
        UnreadableSegment: the archive is damaged.
        botocore.exceptions.BotoCoreError, ClientError: the archive did not answer.
    """
    from_ms = int(datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()) * 1000
    to_ms = from_ms + HOUR_MS
    keys = [
        key for start_ms in (from_ms - HOUR_MS, from_ms) for key in books.keys(f"{COUNTS}{region}/{_utc(start_ms):%Y-%m-%d/%H}/")
    ]
    looks = [look for key in keys for look in msgspec.json.decode(books.get(key), type=list[Look])]
    lives = reconcile(looks, _rows(books, region, from_ms), from_ms, to_ms)
    return Reconciled(
        region,
        hour,
        tuple(lives),
        sum(abs(life.prompt.unexplained) for life in lives),
        sum(abs(life.output.unexplained) for life in lives),
    )


def reconcile_once(books: Books, region: str, now_ms: int) -> Reconciled | None:
    """Reconcile the newest hour that is settled, unless that was done; None where there is nothing to do."""
    hour = f"{_utc(now_ms - SETTLED_AFTER_MS - HOUR_MS):%Y-%m-%dT%H}"
    key = f"{RECONCILED}{region}/{hour.replace('T', '/')}.json"
    if books.keys(key):
        return None
    found = reconcile_hour(books, region, hour)
    return found if books.put_once(key, msgspec.json.encode(found)) else None


def _rows(books: Books, region: str, from_ms: int) -> Iterator[Billed]:
    """What was closed from an hour before to an hour after."""
    for start_ms in (from_ms - HOUR_MS, from_ms, from_ms + HOUR_MS):
        for _, segment in books.segments(region=region, hour=f"{_utc(start_ms):%Y-%m-%dT%H}"):
            yield from map(billed, segment.closes)


def billed(close: UsageClose) -> Billed:
    """What reconciliation needs of a CLOSE."""
    return Billed(
        engines=close.engines,
        opened_at_ms=close.open.opened_at_ms,
        closed_at_ms=close.closed_at_ms,
        counted_prompt_tokens=close.open.prompt_tokens,
        prompt_tokens=close.prompt_tokens,
        output_tokens=close.output_tokens,
        is_served=close.outcome is not Outcome.NOT_SERVED,
        is_whole=close.outcome is Outcome.FINISHED,
        num_choices=close.open.num_choices,
    )


def _utc(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms // 1000, UTC)
