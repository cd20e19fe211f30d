"""Engines' counters are read, kept once a minute and region, and compared with the archived usage of their hour."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiohttp import web

from policies.billing.reconciliation import Look
from serving.gateway.discovery import Endpoint
from serving.gateway.engine_counter import EngineCounter
from serving.metering.archive import archive_key, put_segment
from serving.metering.books import Books
from serving.metering.engine_counts import counts_key, parse_counters, reconcile_hour, reconcile_once
from serving.metering.framing import SegmentHeader, decode_segment, encode_header, encode_record
from serving.metering.segments import SegmentName

REGION = "us-east-2"
NOON_MS = 1_763_812_800_000  # 2025-11-22T12:00:00Z
METRICS = """# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="small"} 1200.0
vllm:prompt_tokens_by_source_total{engine="0",source="x"} 77.0
vllm:generation_tokens_total{engine="0",model_name="small"} 211.0
vllm:generation_tokens_created{engine="0",model_name="small"} 1.763812700123e+09
"""


def test_an_engine_says_what_it_counted_and_since_when() -> None:
    assert parse_counters(METRICS, "e0", "small", 5) == Look("e0", "small", 1_763_812_700_123, 5, 1200, 211)
    assert parse_counters("process_start_time_seconds 1\n", "e0", "small", 5) is None
    assert parse_counters(METRICS.rpartition("vllm:")[0], "e0", "small", 5) == Look("e0", "small", 0, 5, 1200, 211)


@pytest.fixture
def books(aws: Any) -> Books:
    return Books(aws.s3, aws.dynamodb, aws.bucket, aws.table)


def keep(books: Books, at_ms: int, prompt: int, output: int) -> None:
    looks = [Look("e0", "small", 1, at_ms, prompt, output)]
    assert books.put_once(counts_key(REGION, at_ms), msgspec.json.encode(looks))


@pytest.mark.emulated_aws
@pytest.mark.parametrize(("counted", "holds"), [(330, True), (331, False)])
def test_an_hour_is_held_against_its_segments_once(books: Books, records: Any, counted: int, holds: bool) -> None:
    """Three requests of 100 and 10 tokens; 330 is 3 x 110. The fourth was asked of another engine."""
    closes = [records.close(records.open(), engines=("e0",)) for _ in range(3)]
    closes.append(records.close(records.open(), engines=("e9",)))
    name = SegmentName("gateway-0-0", NOON_MS, 0)
    data = encode_header(SegmentHeader(name.source, name.epoch, name.seq, NOON_MS)) + b"".join(map(encode_record, closes))
    segment = decode_segment(data)
    put_segment(books.s3, books.bucket, archive_key(REGION, name, segment), data, segment)
    keep(books, NOON_MS - 300_000, 0, 0)
    keep(books, NOON_MS + 300_000, 300, counted - 300)
    found = reconcile_hour(books, REGION, "2025-11-22T12")
    assert (found.holds, len(found.lives), found.unexplained_output_tokens) == (holds, 1, counted - 330)
    later_ms = NOON_MS + 3_600_000 + 15 * 60_000
    assert reconcile_once(books, REGION, later_ms - 1) is not None  # of the hour before, which had no looks in it
    assert reconcile_once(books, REGION, later_ms) == found
    assert reconcile_once(books, REGION, later_ms + 1) is None


@pytest.mark.emulated_aws
async def test_one_gateway_looks_for_all_and_an_engine_that_does_not_answer_is_left_out(books: Books) -> None:
    app = web.Application()

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    endpoints = [Endpoint("e0", "127.0.0.1", port, is_ready=True), Endpoint("e1", "127.0.0.1", 9, is_ready=True)]
    pools: Any = {"small": SimpleNamespace(engines=[SimpleNamespace(endpoint=endpoint) for endpoint in endpoints])}
    try:
        counters = [EngineCounter(books.s3, books.bucket, REGION, pools) for _ in range(2)]
        assert [await counter.look(NOON_MS) for counter in counters] == [1, 0]
    finally:
        await runner.cleanup()
    (look,) = msgspec.json.decode(books.get(counts_key(REGION, NOON_MS)), type=list[Look])
    assert (look.engine, look.prompt_tokens, look.output_tokens) == ("e0", 1200, 211)
