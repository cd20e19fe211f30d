"""Part `cuts`: streams that their clients cut at a random token; what had arrived is billed, to the token, and nothing is held.

A twin hangs after a random number of tokens, and the client hangs up when it has become silent: so twin, gateway and client agree
on what arrived, and the bill can be held against one number instead of a span.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from infra.drills.streams import Clients, Seen, chat
from policies.admission import limits_lua
from serving import series

from .world import NUM_TWINS, DrillWorld

CONCURRENCY = 400
MAX_CUT = 32
SILENT_S = 1.0
LEAK_LIMIT_S = 60.0


def hang_anywhere() -> list[dict[str, Any]]:
    """A plan by which each request hangs after 1 to `MAX_CUT` tokens, each number as likely."""
    return [
        {"kind": "hang", "at_token": at_token, "probability": 1 / (MAX_CUT - at_token + 1)} for at_token in range(1, MAX_CUT + 1)
    ]


async def cut_streams(world: DrillWorld, num: int, seed: int, say: Callable[[str], None]) -> dict[str, Seen]:
    """What the clients saw of `num` streams."""
    rng, clients, seen = random.Random(seed), Clients(), dict[str, Seen]()
    world.set_faults([hang_anywhere()] * NUM_TWINS)
    numbers = iter(range(num))

    async def worker() -> None:
        for number in numbers:
            gateway = world.gateways[number % len(world.gateways)]
            content = [{"role": "user", "content": f"stream {number % 97}"}]
            wire = chat(gateway.address, rng.choice(world.keys), messages=content, max_tokens=2 * MAX_CUT, seed=number)
            answer = await clients.ask(gateway.address, wire, cut_when_silent_s=SILENT_S)
            seen[answer.request_id] = answer
            if len(seen) % 2000 == 0:
                say(f"{len(seen)} streams are cut")

    try:
        await asyncio.gather(*(worker() for _ in range(min(CONCURRENCY, num))))
    finally:
        clients.close()
        world.set_faults([[]] * NUM_TWINS)
    return seen


def leaked_reservations(world: DrillWorld, tenants: int) -> tuple[int, float]:
    """Leases that are still held, and after how many seconds: none, or those that are there after `LEAK_LIMIT_S`."""
    began_s = time.monotonic()
    keys = [limits_lua.keys(f"tenant-{number}")[1] for number in range(tenants)]
    with world.cache() as cache:
        while True:
            num_held = sum(int(cache.zcard(key)) for key in keys)
            num_open = sum(gateway.metric(series.OPEN_EVENTS.name) for gateway in world.gateways)
            waited_s = time.monotonic() - began_s
            if (not num_held and not num_open) or waited_s > LEAK_LIMIT_S:
                return num_held + int(num_open), waited_s
            time.sleep(0.1)
