"""The scene of broken streams: faults of docs/streams.md on real sockets, with and without resume, and a reader that stops."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from dataclasses import dataclass
from typing import Any

from serving.metering.events import CountSource, Outcome, UsageClose
from tests.drills.engine_fleet import Process, TwinProcess
from tests.drills.engine_scenes import Asked, Stage, chat, num_wrong, words
from tests.drills.stream_client import Client, Reply, ask, wire

TOKENS, AT = 40, 7
NUM_EACH = 8
GAP_S = 2.0
"""`gap_s` of the gateway that this is about: a drip's own gaps are shorter, a hang's is not."""
SLOW_LIMIT_S = 15.0
ENDLESS_TOKENS = 30_000
"""More than all socket buffers of a slow reader hold."""


@dataclass(frozen=True)
class Expected:
    """What becomes of a stream without resume."""

    fault: dict[str, Any]
    code: str
    num_tokens: int
    source: CountSource


FINAL, RUNNING, COUNTED = CountSource.ENGINE_FINAL, CountSource.ENGINE_RUNNING, CountSource.COUNTED
FAULTS = {
    "drip": Expected({"kind": "drip", "at_token": 37, "delay_s": 0.3}, "", TOKENS, FINAL),
    "split UTF-8": Expected({"kind": "split"}, "", TOKENS, FINAL),
    "truncated SSE": Expected({"kind": "truncate", "at_token": AT}, "engine_lost", AT, RUNNING),
    "garbled event": Expected({"kind": "garble", "at_token": AT}, "engine_lost", AT, RUNNING),
    "connection cut": Expected({"kind": "cut", "at_token": AT}, "engine_lost", AT, RUNNING),
    "engine error": Expected({"kind": "error", "at_token": AT}, "engine_lost", AT, RUNNING),
    "hang": Expected({"kind": "hang", "at_token": AT}, "engine_lost", AT, RUNNING),
    "missing totals": Expected({"kind": "drop_final_usage"}, "", TOKENS, RUNNING),
    "missing usage": Expected({"kind": "drop_usage"}, "", TOKENS, COUNTED),
    "lying usage: 0": Expected({"kind": "lie_usage", "factor": 0}, "", TOKENS, COUNTED),
    "lying usage: x 100": Expected({"kind": "lie_usage", "factor": 100}, "", TOKENS, COUNTED),
}


async def faults(stage: Stage, odd: list[TwinProcess]) -> None:
    """Each fault at both engines without resume, then at one of them with it."""
    gateway, key, report = stage.gateway, stage.site.key, stage.report
    rng = random.Random(stage.seed)
    num_failed = 0
    for name, expected in FAULTS.items():
        for twin in odd:
            await asyncio.to_thread(twin.fault, expected.fault)
        bills = len(gateway.closed())
        asked = await _ask_all(gateway, key, rng, resume=False)
        replies = [one.reply for one in asked if one.reply is not None]
        closed = gateway.closed()[bills:]
        is_as_stated = len(replies) == len(closed) == NUM_EACH and all(_fits(reply, expected) for reply in replies)
        is_billed = all(_is_billed(bill, expected) for bill in closed)
        await asyncio.to_thread(odd[1].fault)
        resumed = await _ask_all(gateway, key, rng, resume=True)
        incomplete, different = await num_wrong(stage.oracle, resumed, TOKENS)
        holds = is_as_stated and is_billed and not (incomplete or different)
        num_failed += not holds
        ends = expected.code or "complete"
        billed = sorted({bill.output_tokens for bill in closed})
        num_whole = NUM_EACH - incomplete - different
        measured = f"{'' if is_as_stated else 'NOT '}{ends}, billed {billed}; with resume {num_whole} of {NUM_EACH} whole"
        report.add("fault", name, measured, f"{ends}, billed {expected.num_tokens} by {expected.source.value}; all whole", holds)
        await asyncio.to_thread(odd[0].fault)
    await _slow_reader(stage, odd)
    report.figures |= {"num_faults": len(FAULTS), "num_faults_not_as_stated": num_failed}


async def _ask_all(gateway: Process, key: str, rng: random.Random, *, resume: bool) -> list[Asked]:
    asked = [Asked(words(rng, 30)) for _ in range(NUM_EACH)]

    async def one(request: Asked) -> None:
        bytes_ = wire(key, resume=resume, stream=True, max_tokens=TOKENS, messages=chat(request.prompt))
        request.reply = await ask(gateway.address, bytes_)

    await asyncio.gather(*map(one, asked))
    return asked


def _fits(reply: Reply, expected: Expected) -> bool:
    return reply.status == 200 and (reply.code == expected.code if expected.code else reply.is_complete)


def _is_billed(bill: UsageClose, expected: Expected) -> bool:
    outcome = Outcome.ENGINE_LOST if expected.code else Outcome.FINISHED
    return (bill.outcome, bill.output_tokens, bill.source) == (outcome, expected.num_tokens, expected.source)


async def _slow_reader(stage: Stage, odd: list[TwinProcess]) -> None:
    """A client takes the first bytes and reads no more: it is cut, its engine told to stop, and it pays for what was read."""
    gateway = stage.gateway
    since, bills = [twin.num_arrived for twin in odd], len(gateway.closed())
    loop, sock = asyncio.get_running_loop(), socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await loop.sock_connect(sock, (gateway.address, 8080))
    request = wire(stage.site.key, stream=True, max_tokens=ENDLESS_TOKENS, messages=chat(" the people"))
    _, client = await loop.create_connection(lambda: Client(request), sock=sock)
    while not client.reply.first_s:
        await asyncio.sleep(0.01)
    client.transport.pause_reading()
    began_s = time.monotonic()
    while len(gateway.closed()) == bills and time.monotonic() - began_s < 10 * GAP_S:
        await asyncio.sleep(0.1)
    cut_s = time.monotonic() - began_s
    client.leave()
    closed = gateway.closed()[bills:]
    records = [record for number, twin in zip(since, odd, strict=True) for record in twin.records(number)]
    sent = sum(record["sent_tokens"] for record in records)
    billed = closed[0].output_tokens if closed else -1
    holds = len(closed) == 1 and closed[0].outcome is Outcome.CLIENT_GONE and 0 < billed <= sent
    holds = holds and [record["outcome"] for record in records] == ["aborted"]
    measured = f"cut after {cut_s:.1f} s, {billed} of {sent} sent tokens billed"
    what, limit = "cut, its engine aborted, what was read billed", f"{GAP_S:.0f} s after all buffers are full"
    stage.report.add("slow reader", what, measured, limit, holds and cut_s <= SLOW_LIMIT_S, slow_reader_cut_s=round(cut_s, 1))
