"""The scenes of `make drill-engines`, each of which says what was measured, and by what limit.

Loads are open-loop, arrivals Poisson, prompts of the twins' own words and all different, answers greedy: so the right answer
of each request is known from a twin that nobody disturbs.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from serving.twin.words import ENGLISH
from tests.drills.engine_fleet import (
    Process,
    Site,
    TwinProcess,
    log_of,
    metric,
    num_descriptors,
    num_sockets,
    suspects,
    unix_s,
)
from tests.drills.stream_client import Reply, ask, connect, wire

ABORT_P99_LIMIT_MS = 250.0
COMPLETE_LIMIT_PERCENT = 99.9
SILENT_LIMIT_S = 3.0 + 1.0 + 0.25 + 0.25
"""A probe without an answer for 3 s, probes once a second, a look each 0.25 s; and as much for a busy machine."""
STALLED_LIMIT_S = 3.0 + 0.25 + 0.25
"""3 s without a token, since twice a predicted prefill of these prompts is less; a look each 0.25 s; and as much."""
TAKEOVER_LIMIT_S = 15.0
COLD_PREFILL_TOKENS, COLD_SPEED = 20_000, 0.04
"""20,000 x 58 us / 0.04 = 29 s, and three steps of 0.29 s."""
ANSWER_TOKENS = 200
SETTLE_S = 8.0


@dataclass
class Row:
    """A line of the table."""

    scene: str
    what: str
    measured: str
    limit: str
    holds: bool


@dataclass
class Report:
    """Lines and figures."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, scene: str, what: str, measured: str, limit: str, holds: bool, **figures: Any) -> None:
        self.rows.append(Row(scene, what, measured, limit, holds))
        self.figures |= figures
        print(f"{'ok ' if holds else 'NOT'} {scene}: {what}: {measured} (limit {limit})", flush=True)


@dataclass
class Stage:
    """Where a scene plays."""

    site: Site
    gateway: Process
    oracle: TwinProcess
    report: Report
    seed: int
    per_s: float
    """Rate of the loads."""


@dataclass
class Asked:
    """A request of a load."""

    prompt: str
    reply: Reply | None = None


def words(rng: random.Random, num: int) -> str:
    """A prompt of `num` tokens."""
    return " " + " ".join(rng.choices(ENGLISH, k=num))


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


async def load(stage: Stage, rng: random.Random, num: int) -> list[Asked]:
    """`num` streamed requests that opt into resuming, at Poisson arrivals, each with its reply."""
    made = [Asked(words(rng, 300)) for _ in range(num)]

    async def one(asked: Asked) -> None:
        request = wire(stage.site.key, resume=True, stream=True, max_tokens=ANSWER_TOKENS, messages=chat(asked.prompt))
        asked.reply = await ask(stage.gateway.address, request)

    tasks, at_s = [], time.monotonic()
    for asked in made:
        at_s += rng.expovariate(stage.per_s)
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        tasks.append(asyncio.create_task(one(asked)))
    await asyncio.gather(*tasks)
    return made


async def num_wrong(oracle: TwinProcess, asked: list[Asked], max_tokens: int = ANSWER_TOKENS) -> tuple[int, int]:
    """Replies that are not complete, and complete ones that are not what an undisturbed engine answers."""
    incomplete = different = 0
    for one in asked:
        if one.reply is None or not one.reply.is_complete:
            incomplete += 1
            continue
        right = await ask(oracle.address, wire("", max_tokens=max_tokens, messages=chat(one.prompt)), port=8000)
        different += one.reply.text != right.text
    return incomplete, different


async def disconnects(stage: Stage, twins: list[TwinProcess], num: int) -> None:
    """Clients hang up at any time; each request is known again by the length of its prompt."""
    rng = random.Random(stage.seed)
    asked = await ask(stage.gateway.address, wire(stage.site.key, max_tokens=1, messages=chat(words(rng, 10))))
    extra = json.loads(asked.body)["usage"]["prompt_tokens"] - 10
    since = [twin.num_arrived for twin in twins]
    left: dict[int, tuple[float, bool]] = {}

    async def one(number: int) -> None:
        is_streamed = number % 2 == 0
        fields = {"stream": is_streamed, "max_tokens": 2000, "messages": chat(words(rng, 20 + number))}
        client = await connect(stage.gateway.address, wire(stage.site.key, resume=number % 4 == 0, **fields))
        await asyncio.sleep(rng.uniform(0.03, 1.5))
        left[20 + number + extra] = client.leave(), is_streamed

    tasks = []
    for number in range(num):
        tasks.append(asyncio.create_task(one(number)))
        await asyncio.sleep(rng.expovariate(25))
    await asyncio.gather(*tasks)
    await asyncio.sleep(1.0)
    took: dict[bool, list[float]] = {True: [], False: []}
    num_running = 0
    for number, twin in zip(since, twins, strict=True):
        for record in twin.records(number):
            num_running += record["outcome"] == "running"
            if record["outcome"] == "aborted" and record["prompt_tokens"] in left:
                at_s, is_streamed = left[record["prompt_tokens"]]
                took[is_streamed].append(1e3 * max(0.0, record["ended_s"] - at_s))
    for is_streamed, name in ((True, "streamed"), (False, "plain")):
        found = sorted(took[is_streamed])
        p99 = found[min(len(found) - 1, int(0.99 * len(found)))] if found else float("inf")
        holds = p99 <= ABORT_P99_LIMIT_MS and len(found) >= 0.9 * num / 2 and not num_running
        measured = f"p50 {statistics.median(found or [0]):.1f} ms, p99 {p99:.1f} ms, {len(found)} of {num // 2} aborted"
        stage.report.add(
            "disconnect",
            f"{name}: client gone to engine aborted",
            measured,
            f"p99 {ABORT_P99_LIMIT_MS:.0f} ms",
            holds,
            **{f"abort_{name}_p99_ms": round(p99, 1), f"num_aborted_{name}": len(found)},
        )


async def killed(stage: Stage, twins: list[TwinProcess], spare: TwinProcess, num: int) -> None:
    """The busiest replica is SIGKILLed under load; a spare takes its place in the list a second later."""
    rng, before = random.Random(stage.seed), len(log_of(stage.site, stage.gateway))
    running = asyncio.create_task(load(stage, rng, num))
    await asyncio.sleep(min(10.0, num / stage.per_s / 4))
    running_at = [int(twin.call("state")["num_running"]) for twin in twins]
    num_there = max(running_at)
    victim = twins[running_at.index(num_there)]
    killed_s = victim.signal(signal.SIGKILL)
    await asyncio.sleep(1.0)
    rest = [twin for twin in twins if twin is not victim]
    stage.site.serve_by([*rest, spare])
    asked = await running
    incomplete, different = await num_wrong(stage.oracle, asked)
    percent = 100 * (1 - (incomplete + different) / num)
    resumed = metric(stage.gateway, "flotilla_resumes_total")
    what = f"{num} opted in, {num_there} at the lost replica"
    measured = f"{percent:.2f} % complete and identical, {resumed:.0f} resumed"
    figures = {"num_opted_in": num, "num_at_lost_replica": num_there, "num_resumed": int(resumed)}
    figures |= {"complete_identical_percent": round(percent, 3), "num_incomplete": incomplete, "num_different": different}
    limit, holds = f"{COMPLETE_LIMIT_PERCENT} %", percent >= COMPLETE_LIMIT_PERCENT
    stage.report.add("SIGKILL", what, measured, limit, holds, **figures)
    _healthy(stage, before, {victim.name}, "SIGKILL")
    arrived = {twin.name: [record["arrived_s"] for record in twin.records()] for twin in (*rest, spare)}
    takeover_s = _takeover_s(arrived, spare.name, killed_s)
    what, limit = "kill to 80 % of a replica's share at the spare, 5 s windows", f"{TAKEOVER_LIMIT_S:.0f} s"
    holds = takeover_s <= TAKEOVER_LIMIT_S
    stage.report.add("spare", what, f"{takeover_s:.1f} s", limit, holds, spare_takeover_s=round(takeover_s, 1))


def _takeover_s(arrived: dict[str, list[float]], spare: str, killed_s: float) -> float:
    last_s = max((at for times in arrived.values() for at in times), default=killed_s)
    for tenths in range(0, 600):
        begin_s = killed_s + tenths / 10
        if begin_s + 5 > last_s:
            break
        counts = {name: sum(begin_s <= at < begin_s + 5 for at in times) for name, times in arrived.items()}
        if counts[spare] >= 0.8 * sum(counts.values()) / len(counts):
            return tenths / 10 + 5
    return float("inf")


async def stopped(stage: Stage, victim: TwinProcess, *, whole_group: bool) -> None:
    """A replica's whole process group is SIGSTOPped, or its engine's steps alone stop while its port and health check answer."""
    scene = "SIGSTOP" if whole_group else "core stopped"
    rng, before = random.Random(stage.seed), len(log_of(stage.site, stage.gateway))
    num = int(stage.per_s * 12)
    running = asyncio.create_task(load(stage, rng, num))
    await asyncio.sleep(4.0)
    at_s = time.time()
    if whole_group:
        victim.signal(signal.SIGSTOP)
    else:
        await asyncio.to_thread(victim.fault, frozen=True)
    await asyncio.sleep(6.0)
    found = [line for line in suspects(stage.site, stage.gateway, before) if line["engine"] == victim.name]
    out_s = unix_s(found[0]["timestamp"]) - at_s if found else float("inf")
    limit_s = SILENT_LIMIT_S if whole_group else STALLED_LIMIT_S
    what = "whole group" if whole_group else "engine core alone (the twin's `frozen`)"
    name = "sigstop" if whole_group else "core_stop"
    stage.report.add(
        scene,
        f"{what} to out of rotation",
        f"{out_s:.2f} s",
        f"{limit_s:.2f} s",
        out_s <= limit_s,
        **{f"{name}_out_s": round(out_s, 2)},
    )
    asked = await running
    if whole_group:
        victim.signal(signal.SIGCONT)
    else:
        await asyncio.to_thread(victim.fault)
    incomplete, different = await num_wrong(stage.oracle, asked)
    stage.report.add(
        scene,
        f"{num} opted in",
        f"{incomplete} incomplete, {different} different",
        "none",
        incomplete + different == 0,
        **{f"{name}_num_failed": incomplete + different},
    )
    _healthy(stage, before, {victim.name}, scene)


async def cold_prefill(stage: Stage) -> None:
    """Slow engines take half a minute over a first prompt, once their speed on short ones is known."""
    rng, before = random.Random(stage.seed), len(log_of(stage.site, stage.gateway))
    short = [wire(stage.site.key, max_tokens=2, messages=chat(words(rng, 300))) for _ in range(4)]
    warm = [await ask(stage.gateway.address, request) for request in short]
    long = [wire(stage.site.key, stream=True, max_tokens=2, messages=chat(words(rng, COLD_PREFILL_TOKENS))) for _ in range(2)]
    replies = await asyncio.gather(*(ask(stage.gateway.address, request) for request in long))
    took = [reply.ended_s - reply.asked_s for reply in replies]
    holds = all(reply.is_complete for reply in (*warm, *replies)) and min(took) >= 25
    what, measured = f"two prompts of {COLD_PREFILL_TOKENS} tokens", f"answered after {min(took):.0f} to {max(took):.0f} s"
    stage.report.add("cold prefill", what, measured, "answered", holds, cold_prefill_s=round(max(took), 1))
    _healthy(stage, before, set(), "cold prefill")


async def leaks(gateways: list[tuple[Process, int, int]], twins: list[TwinProcess], report: Report) -> None:
    """After it all: what twins and gateways still hold; of each gateway its sockets and descriptors before anything was asked."""
    deadline_s = time.monotonic() + 30
    while True:
        states = [twin.call("state") for twin in twins]
        slots = sum(state["num_running"] + state["num_waiting"] for state in states)
        blocks = sum(state["num_blocks"] - state["num_free_blocks"] for state in states)
        sockets = sum(max(0, num_sockets(gateway) - before) for gateway, before, _ in gateways)
        held = sum(max(0, num_descriptors(gateway) - before) for gateway, _, before in gateways)
        events = sum(
            metric(gateway, "flotilla_usage_open_events") + metric(gateway, "flotilla_in_flight_requests")
            for gateway, _, _ in gateways
        )
        if not (slots or sockets or held or events) or time.monotonic() > deadline_s:
            break
        await asyncio.sleep(0.5)
    measured = f"{slots} slots, {blocks} KV blocks, {sockets} sockets, {held} descriptors, {events:.0f} open events"
    figures = {"leaked_slots": slots, "leaked_kv_blocks": blocks, "leaked_sockets": sockets, "leaked_descriptors": held}
    holds = not (slots or blocks or sockets or held or events)
    report.add("leaks", f"{len(twins)} twins, {len(gateways)} gateways", measured, "0", holds, **figures)


def _healthy(stage: Stage, before: int, expected: set[str], scene: str) -> None:
    wrongly = sorted({line["engine"] for line in suspects(stage.site, stage.gateway, before)} - expected)
    name = scene.lower().replace(" ", "_")
    stage.report.add(
        scene,
        "healthy replicas ejected",
        ", ".join(wrongly) or "none",
        "none",
        not wrongly,
        **{f"{name}_num_ejected_healthy": len(wrongly)},
    )
