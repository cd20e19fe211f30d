"""Part `retries`: requests sent again and again under their Idempotency-Key, while clients leave and gateways are killed.

Each key is asked many times, at any gateway, at once and later. Of all that, engines may hear once and bills may say once; and
every answer to a key must be the same, or say that it was lost with a gateway that was killed.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.drills.streams import Clients, Seen, chat
from serving.gateway.claims import claim_pk
from serving.metering.framing import decode_segment

from .world import DrillWorld

CONCURRENCY = 48
CUT_SHARE = 0.2
FINAL_LIMIT_S = 60.0
LOST = "idempotency_result_lost"
IN_FLIGHT = "idempotency_in_flight"
_EVENT = re.compile(rb"^data: .*$", re.MULTILINE)


@dataclass
class Asked:
    """What came of all attempts."""

    answers: Counter[str] = field(default_factory=Counter)
    """`generated`, `replayed`, `cut` by the client or a kill, `unheard`, or the code of a refusal."""
    bodies: defaultdict[str, set[tuple[bytes, ...]]] = field(default_factory=lambda: defaultdict(set))
    """The events of each whole answer, by key."""
    lost: set[str] = field(default_factory=set)
    num_kills: int = 0


class Retries:
    """`num_keys` keys, each asked `1 + num_retries / num_keys` times, and once more at the end."""

    def __init__(self, world: DrillWorld, seed: int, num_keys: int, num_retries: int) -> None:
        self.asked = Asked()
        self.pks = {
            f"key-{number}": claim_pk(f"tenant-{number % len(world.keys)}", f"key-{number}") for number in range(num_keys)
        }
        self._world = world
        self._rng = random.Random(seed)
        self._num = num_keys + num_retries
        self._clients = Clients()
        self._num_ended = 0
        self._down: set[str] = set()

    async def run(self, num_kills: int, say: Callable[[str], None]) -> None:
        """Every attempt has been made, and every key has its last word."""
        keys = list(self.pks)
        attempts = [keys[number % len(keys)] for number in range(self._num)]
        for start in range(0, len(attempts), 4 * CONCURRENCY):  # near in time, so that they meet each other
            window = attempts[start : start + 4 * CONCURRENCY]
            self._rng.shuffle(window)
            attempts[start : start + len(window)] = [
                self._rng.choice(window) if self._rng.random() < 0.5 else one for one in window
            ]
        kills = asyncio.create_task(self._kill(num_kills))
        await self._all(attempts)
        await kills
        say("retries: every key is asked for its last word")
        await asyncio.gather(*(self._last_word(key) for key in keys))
        self._clients.close()

    async def _all(self, attempts: Sequence[str]) -> None:
        waiting = iter(attempts)

        async def worker() -> None:
            for key in waiting:
                answer = await self._ask(key, may_cut=True)
                if answer is not None and answer.error == IN_FLIGHT:
                    await asyncio.sleep(0.02)
                self._num_ended += 1

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

    async def _ask(self, key: str, *, may_cut: bool) -> Seen | None:
        number = int(key.removeprefix("key-"))
        up = [gateway for gateway in self._world.gateways if gateway.name not in self._down]
        gateway = self._rng.choice(up or self._world.gateways)
        fields: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 8 + number % 32, "seed": number,
        }  # fmt: skip
        wire = chat(gateway.address, self._world.keys[number % len(self._world.keys)], idempotency_key=key, **fields)
        how = {"cut_after": self._rng.randint(1, 6)} if may_cut and self._rng.random() < CUT_SHARE else {}
        try:
            answer = await self._clients.ask(gateway.address, wire, **how)
        except OSError:
            self.asked.answers["unheard"] += 1
            await asyncio.sleep(0.02)
            return None
        if answer.error:
            self.asked.answers[answer.error] += 1
            if answer.error == LOST:
                self.asked.lost.add(key)
        elif not answer.is_done:
            self.asked.answers["cut"] += 1
        else:
            self.asked.answers["replayed" if answer.is_replayed else "generated"] += 1
            self.asked.bodies[key].add(tuple(_EVENT.findall(answer.body)))
        return answer

    async def _last_word(self, key: str) -> None:
        deadline_s = time.monotonic() + FINAL_LIMIT_S
        while True:
            answer = await self._ask(key, may_cut=False)
            if answer is not None and (answer.is_done or answer.error == LOST):
                return
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{key} has no last word: {answer}")
            await asyncio.sleep(0.1)

    async def _kill(self, times: int) -> None:
        for number in range(times):
            while self._num_ended < (number + 1) * self._num // (times + 1):
                await asyncio.sleep(0.005)
            gateway = self._rng.choice(self._world.gateways)
            self._down.add(gateway.name)
            await asyncio.to_thread(gateway.kill)
            gateway.start()
            await asyncio.to_thread(gateway.wait_ready)
            self._down.discard(gateway.name)
            self.asked.num_kills += 1


@dataclass(frozen=True)
class Tally:
    """Per key, over all keys."""

    num_generated_twice: int
    num_billed_twice: int
    num_unbilled: int
    """Keys that engines heard of and no bill names."""
    num_unlike: int
    """Keys with two different answers."""
    num_both: int
    """Keys that were answered whole and are called lost: answered before their gateway could keep it."""


def tally(retries: Retries, segments: Iterable[Path], truths: Mapping[str, Sequence[Mapping[str, Any]]]) -> Tally:
    """What engines and journals say of each key."""
    closes = {close.open.event_id: close.open for path in segments for close in decode_segment(path.read_bytes()).closes}
    pk_of = {opened.request_id: opened.claim for opened in closes.values()}
    generated = Counter(pk_of.get(request_id, request_id) for request_id, records in truths.items() for _ in records)
    billed = Counter(opened.claim for opened in closes.values())
    pks = retries.pks
    return Tally(
        num_generated_twice=sum(count > 1 for count in generated.values()),
        num_billed_twice=sum(billed[pk] > 1 for pk in pks.values()),
        num_unbilled=sum(billed[pk] == 0 for pk in generated),
        num_unlike=sum(len(bodies) > 1 for bodies in retries.asked.bodies.values()),
        num_both=len(retries.asked.lost & retries.asked.bodies.keys()),
    )
