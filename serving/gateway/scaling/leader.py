"""The leader: sees its region's engines, decides by `policies.autoscaling`, and says what it decided.

Every gateway runs this and asks for the lease each `every_s`; the one that has it goes on. A new leader starts from the sizes
that the one before remembered in the cache; without them it learns what is there before it says anything. What it cannot know
(fleets' real sizes in Kubernetes, engines that are starting) it does not need: sizes are what leaders have said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from policies.autoscaling.autoscaler import Autoscaler
from policies.autoscaling.decide import Sample, ScaleDecision, Size
from policies.autoscaling.policy import Limits
from serving.gateway.route import Pool
from serving.gateway.scaling.engine_metrics import EngineMetrics
from serving.gateway.scaling.exported import Exported
from serving.gateway.scaling.first_tokens import FirstTokens
from serving.gateway.scaling.lease import Held, Lease
from serving.settings import Scaling, ServedModel

log = structlog.get_logger()

LEASE_LOOKS = 3
"""Looks that a lease outlasts: two may fail."""
MEMORY_LOOKS = 8
"""Looks after which what a leader remembered is of no use: scaling has fallen back meanwhile, and sizes are others."""

Floors = Callable[[], Mapping[str, int]]
"""Floors by class that somebody has raised, such as a failover to this region; at once, from memory."""

Queued = Callable[[str], int]
"""Requests of a class that wait in gateways: engines hold what they take at once, and load beyond it shows nowhere else."""


class _Class:
    """A class that is led."""

    def __init__(self, model: ServedModel, scaling: Scaling, pool: Pool) -> None:
        self.name, self.scaling, self.pool = model.model_class, scaling, pool
        self.engines = EngineMetrics()
        self.autoscaler: Autoscaler | None = None
        self.said: ScaleDecision | None = None


class Leader:
    """Runs beside a gateway's requests; `aclose` gives the lease back."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        pools: Mapping[str, Pool],
        lease: Lease,
        first_tokens: FirstTokens,
        exported: Exported,
        *,
        every_s: float,
        floors: Floors,
        queued: Queued,
    ) -> None:
        self._classes = [_Class(model, model.scaling, pools[model.model_class]) for model in models if model.scaling]
        self._lease, self._first_tokens, self._exported = lease, first_tokens, exported
        self._every_s, self._floors, self._queued = every_s, floors, queued
        self._term = ""

    async def run(self) -> None:
        """Look every `every_s` until cancelled."""
        while self._classes:
            try:
                await self.look()
            except Exception:  # what was said runs out by itself; the next look tries again
                log.exception("scaling_look_broke")
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """One look: the lease, then each class."""
        held = await self._lease.hold()
        if held is None:
            self._resign()
            return
        if held.term != self._term:
            self._take_over(held)
        floors = self._floors()
        for each in self._classes:
            await self._decide(each, floors.get(each.name, 0), held.until_s)
        memory = {each.name: each.autoscaler.sizes for each in self._classes if each.autoscaler}
        if not await self._lease.remember(msgspec.json.encode(memory)):
            self._resign()

    async def aclose(self) -> None:
        """Stop saying anything, and let another lead."""
        self._exported.clear()
        await self._lease.aclose()
        for each in self._classes:
            await each.engines.aclose()

    def _take_over(self, held: Held) -> None:
        self._term = held.term
        self._first_tokens.clear()
        remembered = msgspec.json.decode(held.memory, type=dict[str, list[Size]]) if held.memory else {}
        for each in self._classes:
            each.autoscaler = Autoscaler(each.scaling.policy, remembered.get(each.name, ()))
            each.said = None
        log.info("scaling_leads", term=held.term, remembered={name: sizes[-1].replicas for name, sizes in remembered.items()})

    def _resign(self) -> None:
        if self._term:
            log.info("scaling_follows", term=self._term)
        self._term = ""
        self._exported.clear()
        self._first_tokens.clear()

    async def _decide(self, each: _Class, floor: int, until_s: float) -> None:
        assert each.autoscaler is not None
        sample = await self._sample(each)
        if each.said is None:
            each.autoscaler.found(sample.ready, sample.at_s)
        each.autoscaler.see(sample)
        decision = each.autoscaler.decide(raised(each.scaling.limits, floor), time.time())
        self._exported.say(each.name, decision, until_s)
        if each.said is None or (decision.replicas, decision.reason) != (each.said.replicas, each.said.reason):
            needs = {signal: round(need, 2) for signal, need in decision.needs.items()}
            log.info("scaling", model=each.name, decision=decision.text(), data=decision.data, ready=sample.ready, needs=needs)
        each.said = decision

    async def _sample(self, each: _Class) -> Sample:
        ready = [engine.endpoint for engine in each.pool.engines if engine.endpoint.is_ready]
        now_s = time.time()
        numbers = await each.engines.read(ready, now_s)
        p99_s, slo_ratio = self._first_tokens.take(each.name, each.scaling.policy.ttft_promise_s)
        return Sample(
            at_s=now_s,
            ready=numbers.ready,
            heard=numbers.heard,
            running=numbers.running,
            waiting=numbers.waiting + self._queued(each.name),
            kv_ratio=numbers.kv_ratio,
            tokens_per_s=numbers.tokens_per_s,
            ttft_p99_s=p99_s,
            slo_ratio=slo_ratio,
        )


def raised(limits: Limits, floor: int) -> Limits:
    """`limits` with a floor of at least `floor`, and no higher than base may be."""
    return limits.model_copy(update={"floor": min(max(limits.floor, floor), limits.max_base)})
