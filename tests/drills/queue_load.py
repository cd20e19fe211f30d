"""Many tenants before several gateways, open loop: what a drill of fairness or of overload sends, and what came of it."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from serving.gateway import admin_client
from tests.drills.engine_fleet import WINDOW, Process, Site, make_settings, start
from tests.drills.engine_scenes import chat, words
from tests.drills.stream_client import Reply, ask, wire

SLOTS = 8
"""Of an engine."""
PROMPT_TOKENS, ANSWER_TOKENS = 120, 24
_BEGIN_S, _SETTLE_S, _COUNT_S = 4.0, 3.0, 10.0
"""Of the closed loop."""


@dataclass(frozen=True)
class Planned:
    """One request to come."""

    at_s: float
    tenant: str


@dataclass
class Came:
    """What came of one."""

    planned: Planned
    reply: Reply
    gateway: str
    """Its address."""

    @property
    def ttft_s(self) -> float:
        """To the first byte, which comes with the first token."""
        return self.reply.first_s - self.reply.asked_s

    def header(self, name: str) -> float | None:
        """A number in the head of the answer."""
        head = b"".join(self.reply.pieces[:2]).partition(b"\r\n\r\n")[0]
        found = re.search(rb"(?mi)^" + name.encode() + rb": *([0-9.]+)", head)
        return None if found is None else float(found[1])


def poisson(rng: random.Random, tenant: str, per_s: float, lasts_s: float, begins_s: float = 0.0) -> list[Planned]:
    """Arrivals at random."""
    return renewals(rng, tenant, per_s, lasts_s, 1.0, begins_s)


def renewals(
    rng: random.Random, tenant: str, per_s: float, lasts_s: float, variation: float, begins_s: float = 0.0
) -> list[Planned]:
    """Gaps from a gamma distribution with this coefficient of variation: 1 is Poisson, 13 comes in bursts."""
    shape, made, at_s = 1 / variation**2, list[Planned](), begins_s
    while (at_s := at_s + rng.gammavariate(shape, 1 / (per_s * shape))) < begins_s + lasts_s:
        made.append(Planned(at_s, tenant))
    return made


def open_gateways(site: Site, num: int, service: str, **queue: float) -> list[Process]:
    """So many, before the engines of one service, with `SLOTS` at each."""
    served = {"context_window_tokens": WINDOW, "engine_service": f"{service}.serving", "max_in_flight_per_engine": SLOTS}
    model = {**make_settings().models[0].model_dump(mode="json"), **served}
    settings = {"cache_url": site.valkey.connection_url, "models": [model], "key_cache_s": 600, "queue": queue}
    made = [start(site.world, **settings) for _ in range(num)]
    for gateway in made:
        gateway.wait_ready()
    return made


def make_tenants(gateway: Process, bands: dict[str, str]) -> dict[str, str]:
    """Keys by tenant, each in its band."""
    keys = {}
    for tenant, band in bands.items():
        admin_client.create_tenant(gateway.target(), tenant, band=band)
        keys[tenant] = admin_client.create_key(gateway.target(), tenant)
    return keys


async def play(gateways: Sequence[Process], keys: dict[str, str], plan: Sequence[Planned], seed: int) -> list[Came]:
    """Send the plan, each request to the next gateway, and wait for all answers."""
    rng, came = random.Random(seed), list[Came]()

    async def one(planned: Planned, request: bytes, host: str) -> None:
        came.append(Came(planned, await ask(host, request, within_s=120.0), host))

    began_s, tasks = time.monotonic(), []
    for number, planned in enumerate(sorted(plan, key=lambda each: each.at_s)):
        fields = {"max_tokens": ANSWER_TOKENS, "messages": chat(words(rng, PROMPT_TOKENS)), "stream": True}
        request = wire(keys[planned.tenant], **fields)
        await asyncio.sleep(max(0.0, began_s + planned.at_s - time.monotonic()))
        tasks.append(asyncio.create_task(one(planned, request, gateways[number % len(gateways)].address)))
        if number % 2000 == 1999:
            print(f"{number + 1} of {len(plan)} asked, {len(came)} answered", flush=True)
    await asyncio.gather(*tasks)
    return came


def percentile(values: Sequence[float], ratio: float) -> float:
    """Of values of any order; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(ratio * len(ordered)))] if ordered else 0.0


async def capacity_per_s(gateway: Process, key: str, num_engines: int, seed: int) -> float:
    """Requests a second that all slots together serve: a closed loop that always has as many waiting again. Who begins together
    ends together, and would be counted as one wave more or less: so they begin one after the other."""
    rng, ended = random.Random(seed), list[float]()
    num_workers = 2 * num_engines * SLOTS
    until_s = time.monotonic() + _BEGIN_S + _SETTLE_S + _COUNT_S

    async def worker(number: int) -> None:
        await asyncio.sleep(_BEGIN_S * number / num_workers)
        while time.monotonic() < until_s:
            fields = {"max_tokens": ANSWER_TOKENS, "messages": chat(words(rng, PROMPT_TOKENS)), "stream": True}
            reply = await ask(gateway.address, wire(key, **fields))
            assert reply.is_complete, reply.body
            ended.append(reply.ended_s)

    await asyncio.gather(*map(worker, range(num_workers)))
    return sum(until_s - _COUNT_S <= at_s < until_s for at_s in ended) / _COUNT_S
