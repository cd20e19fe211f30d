"""What a bill must be, judged from outside: twins say what was generated, clients what they saw, the ledger what is billed.

Nothing here asks a gateway or its journal for the truth. Of each request that reached an engine:

    billed once         one event in the ledger, whatever was killed and however often its segment was shipped
    gateway lived       exactly what arrived: all that the twin generated where the answer ended, and between what the client
                        saw and what the twin sent where the client left
    gateway was killed  never more than the twin had sent, and at most one PROGRESS interval less than the client saw
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.drills.streams import Seen
from serving.metering.events import Outcome
from serving.metering.rows import LedgerRow

PROGRESS_TOKENS = 32
"""`JournalSettings.progress_tokens`: no client gets more than that beyond what is on the disk."""


@dataclass
class Verdict:
    """Counts of what was found; the lists name the first few of each wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    max_under_tokens: int = 0
    billed_tokens: int = 0
    received_tokens: int = 0
    """What the twins generated of answers that ended while their gateway lived."""
    exact_tokens: int = 0
    """What is billed for the same."""

    def fault(self, kind: str, request_id: str, why: str) -> None:
        self.counts[kind] += 1
        named = self.wrong.setdefault(kind, [])
        if len(named) < 5:
            named.append(f"{request_id}: {why}")

    @property
    def holds(self) -> bool:
        return not self.wrong and self.received_tokens == self.exact_tokens


Truths = Mapping[str, Sequence[Mapping[str, Any]]]


def truths_of(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Twins' records by request; a request that was tried on two engines has two."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        _, mark, rest = record["request_id"].partition("req_")  # vLLM and twins put the endpoint's name before it
        if mark:
            found.setdefault(mark + rest, []).append(record)
    return found


def judge(
    truths: Truths,
    seen: Mapping[str, Seen],
    rows: Iterable[LedgerRow],
    requests: Mapping[str, str],
    *,
    some_twins_died: bool = False,
) -> Verdict:
    """`requests` maps event ids to the ids that clients and twins know. `some_twins_died`: and their records with them, so
    what no twin tells of is held against what its client saw, and counted as `told_by_client`."""
    verdict = Verdict()
    by_request: dict[str, list[LedgerRow]] = {}
    for row in rows:
        by_request.setdefault(requests.get(row.event_id, row.event_id), []).append(row)
        verdict.billed_tokens += row.output_tokens
    for request_id in truths.keys() | seen.keys():
        answer, tried = seen.get(request_id), truths.get(request_id, ())
        has_begun = answer is not None and (answer.is_done or (some_twins_died and answer.num_tokens > 0))
        if not tried and not has_begun:
            continue  # refused before an engine was asked
        verdict.counts["requests"] += 1
        match by_request.get(request_id, []):
            case []:
                verdict.fault("lost", request_id, f"{len(tried)} engines were asked and nothing is billed")
            case [row]:
                if tried or not some_twins_died:
                    _judge_row(verdict, request_id, row, tried, answer)
                else:
                    _judge_by_client(verdict, request_id, row, seen[request_id])
            case several:
                verdict.fault("doubled", request_id, f"{len(several)} events")
    return verdict


def _judge_row(
    verdict: Verdict, request_id: str, row: LedgerRow, tried: Sequence[Mapping[str, Any]], answer: Seen | None
) -> None:
    verdict.counts[row.outcome] += 1
    sent = max((record["sent_tokens"] for record in tried), default=0)
    num_seen = 0 if answer is None else answer.num_tokens
    if row.outcome == Outcome.FINISHED:
        generated = tried[-1]["generated_tokens"] if tried else -1
        verdict.received_tokens += generated
        verdict.exact_tokens += row.output_tokens
        if row.output_tokens != generated:
            verdict.fault("inexact", request_id, f"billed {row.output_tokens}, generated {generated}")
        if answer is not None and answer.usage_tokens not in (None, row.output_tokens):
            verdict.fault("inexact", request_id, f"billed {row.output_tokens}, the client was told {answer.usage_tokens}")
    elif row.outcome == Outcome.GATEWAY_CRASH:
        if answer is not None and answer.is_done:
            verdict.fault("lost", request_id, "the client had [DONE], and its CLOSE is not in the ledger")
        if row.output_tokens > sent:
            verdict.fault("over", request_id, f"billed {row.output_tokens}, at most {sent} had been received")
        verdict.max_under_tokens = max(verdict.max_under_tokens, num_seen - row.output_tokens)
        if num_seen - row.output_tokens > PROGRESS_TOKENS:
            verdict.fault("under", request_id, f"billed {row.output_tokens}, the client saw {num_seen}")
    elif not num_seen <= row.output_tokens <= sent:
        verdict.fault("inexact", request_id, f"{row.outcome}: billed {row.output_tokens}, seen {num_seen}, sent {sent}")


def _judge_by_client(verdict: Verdict, request_id: str, row: LedgerRow, answer: Seen) -> None:
    verdict.counts[row.outcome] += 1
    verdict.counts["told_by_client"] += 1
    if answer.is_done and answer.usage_tokens != row.output_tokens:
        verdict.fault("inexact", request_id, f"billed {row.output_tokens}, the client was told {answer.usage_tokens}")
    elif row.outcome == Outcome.GATEWAY_CRASH:
        verdict.max_under_tokens = max(verdict.max_under_tokens, answer.num_tokens - row.output_tokens)
        if answer.num_tokens - row.output_tokens > PROGRESS_TOKENS:
            verdict.fault("under", request_id, f"billed {row.output_tokens}, the client saw {answer.num_tokens}")
    elif answer.num_tokens > row.output_tokens:
        verdict.fault("under", request_id, f"{row.outcome}: billed {row.output_tokens}, the client saw {answer.num_tokens}")
