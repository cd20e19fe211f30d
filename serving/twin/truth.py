"""What really happened to each request: the twin's ground truth, for tests and drills to hold bills and caches against."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec


class Record(msgspec.Struct, gc=False):
    """One request."""

    number: int
    """Counts arrivals from 0."""
    request_id: str
    """As it came in `X-Request-Id`, or the twin's own."""
    endpoint: str
    model: str
    arrived_s: float
    """On the event loop's clock, as all times here."""
    salt: str = ""
    fault: str = ""
    """Kind of the fault that met it."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache, of all choices together, when each was first scheduled."""
    generated_tokens: int = 0
    sent_tokens: int = 0
    """Of these, tokens whose event was given to the connection."""
    num_preemptions: int = 0
    first_token_s: float | None = None
    ended_s: float | None = None
    outcome: str = "running"
    """`stop`, `length`, `refused`, `invalid`, `aborted` (the client left), `cut`, `truncated`,
    `failed` or `died`."""


KEPT = 20_000
"""A record takes some 400 bytes: 64 twins keep half a gigabyte at most."""


class Truth:
    """Records of one twin: the running ones, and the last `keep` that ended."""

    def __init__(self, keep: int = KEPT) -> None:
        self.num_arrived = 0
        self.running: dict[int, Record] = {}
        self._ended: deque[Record] = deque(maxlen=keep)

    def arrive(self, request_id: str, endpoint: str, now_s: float) -> Record:
        """A new record."""
        record = Record(self.num_arrived, request_id, endpoint, "", now_s)
        self.num_arrived += 1
        self.running[record.number] = record
        return record

    def end(self, record: Record, outcome: str, now_s: float) -> None:
        """Note how a request ended; the first word counts."""
        if self.running.pop(record.number, None) is not None:
            record.outcome, record.ended_s = outcome, now_s
            self._ended.append(record)

    def records(self, since: int = 0) -> Iterator[Record]:
        """Those with a number from `since` on: the ended ones in the order they ended, then the running ones."""
        for record in (*self._ended, *self.running.values()):
            if record.number >= since:
                yield record
