"""Usage to other billing systems, each token exactly once: what is exported is what a seal has sealed.

A row is under one seal and no other, so a seal is what is sent at once: its rows' tokens by hour, model and kind. A measure's id
says which seal it is of, so sending a seal again sends the same ids, which the other side refuses or overwrites. Seals that were
sent whole are marked in the archive (`exports/v1/<sink>/<tenant>/<day>/<n>.done`): that is the cursor, and it misses nothing that
comes late, since what is late is under a later seal. A row that is not what was sealed is not exported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from serving.errors import UserError
from serving.metering import seals
from serving.metering.books import Books
from serving.metering.ledger import read_day
from serving.metering.rows import LedgerRow
from serving.metering.seals import Seal, digest_of

PREFIX = "exports/v1/"
KINDS = ("input", "cached_input", "output")
HOUR_MS = 3_600_000


class TamperedRow(UserError):
    """A sealed row is not what was sealed."""


@dataclass(frozen=True, order=True)
class Measure:
    """Tokens of one kind that a tenant used of one model in one hour, under one seal."""

    id: str
    tenant: str
    hour_ms: int
    """Unix time at which the hour begins."""
    model: str
    kind: str
    """`input` (uncached), `cached_input` or `output`."""
    tokens: int


class Sink(Protocol):
    """Where usage goes."""

    name: str

    def send(self, measures: Sequence[Measure]) -> None:
        """Send all of them; those that were sent before count once.

        Raises:
            UserError: it was refused or there is no answer; sending all again is safe.
        """


@dataclass(frozen=True)
class Exported:
    """What was done."""

    num_seals: int
    num_measures: int
    num_tokens: int


def measures_of(seal: Seal, rows: Iterable[LedgerRow]) -> list[Measure]:
    """What `seal` has to export, sorted; `rows` are its day's. Revisions have no tokens, and so no measure.

    Raises:
        TamperedRow: a row is gone or changed.
    """
    digests = {leaf.sk: leaf.digest for leaf in seal.leaves}
    tokens: defaultdict[tuple[int, str, str], int] = defaultdict(int)
    for row in rows:
        digest = digests.pop(row.key.sk, None)
        if digest is None:
            continue
        if digest != digest_of(row):
            raise _tampered(seal, row.key.sk)
        hour_ms = row.opened_at_ms // HOUR_MS * HOUR_MS
        counts = (row.prompt_tokens - row.cached_tokens, row.cached_tokens, row.output_tokens)
        for kind, count in zip(KINDS, counts, strict=True):
            tokens[hour_ms, row.model, kind] += count
    if digests:
        raise _tampered(seal, min(digests))
    return [
        Measure(f"{seal.tenant}-{_hour(hour_ms)}-{seal.number}-{model}-{kind}", seal.tenant, hour_ms, model, kind, count)
        for (hour_ms, model, kind), count in sorted(tokens.items())
        if count
    ]


def export(books: Books, sink: Sink, tenants: Sequence[str], since_day: str) -> Exported:
    """Send every seal of days from `since_day` on that was not sent; calling again resumes.

    Raises:
        TamperedRow: a row is gone or changed; what was sealed before it has been sent.
        UserError: the sink refuses or does not answer.
        botocore.exceptions.BotoCoreError, ClientError: table or archive did not answer.
    """
    counts = []
    for seal in _unsent(books, sink.name, tenants, since_day):
        measures = measures_of(seal, read_day(books.dynamodb, books.table, seal.tenant, seal.day))
        sink.send(measures)
        books.put_once(_marker(sink.name, seal.key), b"")
        counts.append((len(measures), sum(measure.tokens for measure in measures)))
    return Exported(len(counts), sum(num for num, _ in counts), sum(tokens for _, tokens in counts))


def _unsent(books: Books, sink: str, tenants: Sequence[str], since_day: str) -> Iterator[Seal]:
    for tenant in tenants:
        sent = set(books.keys(f"{PREFIX}{sink}/{tenant}/"))
        for key in books.keys(f"{seals.PREFIX}{tenant}/"):
            day = key.split("/")[3]
            if day >= since_day and _marker(sink, key) not in sent:
                yield msgspec.msgpack.decode(books.get(key), type=Seal)


def _marker(sink: str, seal_key: str) -> str:
    return f"{PREFIX}{sink}/{seal_key.removeprefix(seals.PREFIX).removesuffix('.seal')}.done"


def _hour(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y%m%dT%H}"


def _tampered(seal: Seal, sk: str) -> TamperedRow:
    return TamperedRow(
        f"row {sk} of {seal.tenant}#{seal.day} is not what seal {seal.number} was put on", "`flotilla ledger verify` says more"
    )
