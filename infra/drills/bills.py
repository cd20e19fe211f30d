"""Bills after a drill: waited for until all are there, held against clients and twins, and told as a part of the report."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from infra.drills.figures import Part
from infra.drills.judge import Verdict, judge, truths_of
from infra.drills.load import Asked
from infra.drills.two_regions import TwoRegions
from serving.metering.events import Outcome
from serving.metering.rows import LedgerRow

BILL_LIMIT_S = 90.0


async def held(regions: TwoRegions, region: str, asked: Sequence[Asked]) -> tuple[list[LedgerRow], Verdict]:
    """The ledger as `region` has it, and what is wrong with it: once every bill is there, or after `BILL_LIMIT_S`; what is wrong
    then is wrong."""
    await asyncio.to_thread(regions.poll_twins)
    truths = truths_of(record for record in regions.told() if record["endpoint"] == "/v1/chat/completions")
    seen = {one.seen.request_id: one.seen for one in asked if one.seen.request_id}
    ends_s = time.monotonic() + BILL_LIMIT_S
    while True:
        rows = await asyncio.to_thread(regions.rows, region)
        requests = {row.event_id: row.request_id for row in rows if row.request_id}
        verdict = judge(truths, seen, rows, requests, some_twins_died=True)
        if not verdict.counts["lost"] or time.monotonic() > ends_s:
            return rows, verdict
        await asyncio.sleep(2.0)


def bills(rows: Sequence[LedgerRow], verdict: Verdict) -> Part:
    """What was found, and whether it holds."""
    part = Part("bills")
    part.show("requests held against clients and twins", "num_judged", verdict.counts["requests"], verdict.counts["requests"] > 0)
    for kind in ("lost", "doubled", "inexact", "over", "under"):
        part.show(f"{kind} (0)", f"num_{kind}", verdict.counts[kind], verdict.counts[kind] == 0)
    twice = sum(count > 1 for count in Counter(row.request_id for row in rows if row.request_id).values())
    part.show("requests with two rows, of all in the ledger (0)", "num_double_bills", twice, twice == 0)
    part.show("tokens that twins generated of whole answers", "received_tokens", verdict.received_tokens)
    exact = verdict.received_tokens == verdict.exact_tokens
    part.show("billed of the same", "billed_tokens", verdict.exact_tokens, exact)
    part.show("known by clients alone, as their twin died", "num_told_by_client", verdict.counts["told_by_client"])
    part.show("ended by the kill of their gateway", "num_gateway_crash", verdict.counts[Outcome.GATEWAY_CRASH])
    part.show("named", "wrong", verdict.wrong)
    return part
