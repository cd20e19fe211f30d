"""The engine: continuous batching as vLLM's scheduler does it, on a clock of its own.

One step computes one token of every running sequence, and prompts in chunks as far as `max_num_batched_tokens` reaches; waiting
sequences are let in, first come first served, while there is a slot, a LoRA slot and KV blocks for their whole prompt. When
blocks run out the youngest running sequence gives its own back and starts anew later. `policies.capacity.step_law` says how long
the step takes; at its end each sequence that is computed up to its last token gets its next one.

A twin that has nothing to do sets no timer. Everything here runs on one event loop and is called from it only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from policies.capacity.step_law import StepLaw
from serving.kv_events import Event
from serving.twin.blocks import Block, BlockPool
from serving.twin.faults import Fault, FaultKind, Switches
from serving.twin.generation import Generation
from serving.twin.stats import Ended, Stats
from serving.twin.text import TextSource

_MAX_LAG_S = 0.02
"""A loop that is busy for longer than this lets the engine's clock slip; less is caught up with."""


@dataclass(frozen=True)
class Limits:
    """What one engine takes."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_loras: int
    max_lora_rank: int
    law: StepLaw
    lora_load_s: float
    speed: float
    """How many times faster than the law; 0 takes no time at all."""


@dataclass
class _Step:
    prefills: list[tuple[Generation, int]] = field(default_factory=list)
    decodes: list[Generation] = field(default_factory=list)
    prefill_tokens: int = 0
    context_tokens: int = 0
    num_lora_loads: int = 0


def _to_nobody(generation: Generation, token_id: int, finish: str | None) -> bool:
    return True


class Engine:
    """One engine."""

    def __init__(
        self,
        limits: Limits,
        pool: BlockPool,
        text: TextSource,
        stats: Stats,
        switches: Callable[[], Switches],
        publish: Callable[[list[Event]], None] | None = None,
    ) -> None:
        self.limits, self.pool = limits, pool
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self.lora_slots: dict[str, None] = {}
        """Adapters on the GPU, the one used longest ago first."""
        self._text, self._stats, self._switches, self._publish = text, stats, switches, publish
        self._block_tokens = pool.block_tokens
        self._loop = asyncio.get_running_loop()
        self._step: _Step | None = None
        self._timer: asyncio.Handle | None = None
        self._is_asleep = False
        self._due_s = 0.0
        self._ended_s = 0.0

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queue them."""
        for generation in generations:
            if self.pool.is_caching:
                generation.table.extend_hashes(generation.ids)
            self.waiting.append(generation)
        self.wake()

    def abort(self, generation: Generation) -> None:
        """Stop it now; it gets no more tokens and holds nothing."""
        if not generation.is_over:
            self._release(generation, "abort", self._loop.time())

    def wake(self) -> None:
        """Go on, if nothing is going on: something was queued, or a switch was turned."""
        if self._timer and self._is_asleep:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._is_asleep = False
            self._timer = self._loop.call_soon(self._begin if self._step is None else self._end)

    def close(self) -> None:
        """Stop the clock."""
        if self._timer:
            self._timer.cancel()

    def _begin(self) -> None:
        self._timer, self._is_asleep = None, False
        if self._switches().frozen:
            return
        now_s = self._loop.time()
        step = self._schedule(now_s)
        if not step.prefills and not step.decodes:
            self._sleep(now_s)
            return
        self._step = step
        limits = self.limits
        if not limits.speed:
            self._timer = self._loop.call_soon(self._end)
            return
        lasts_s = limits.law.step_s(step.prefill_tokens, len(step.decodes), step.context_tokens)
        lasts_s += step.num_lora_loads * limits.lora_load_s
        began_s = self._due_s if self._due_s >= now_s - _MAX_LAG_S else now_s
        self._due_s = began_s + lasts_s / limits.speed
        self._timer = self._loop.call_at(self._due_s, self._end)

    def _sleep(self, now_s: float) -> None:
        """Nothing can be computed: wait for who is slowed down, or for a call of `wake`."""
        self._due_s = 0.0
        slowed = [generation.next_token_s for generation in self.running if generation.next_token_s > now_s]
        if slowed:
            self._is_asleep = True
            self._timer = self._loop.call_at(min(slowed), self._begin)

    def _end(self) -> None:
        self._timer = None
        if self._switches().frozen:
            return
        step, self._step = self._step, None
        assert step is not None
        now_s = self._loop.time()
        stats, previous_s, num_regular = self._stats, self._ended_s, 0
        self._ended_s = now_s
        for generation in step.decodes:
            if not generation.is_over:
                generation.num_computed += 1
                if generation.last_token_s == previous_s:
                    num_regular += 1
                else:
                    stats.inter_token.observe(now_s - generation.last_token_s)
                self._emit(generation, now_s)
        if num_regular:
            stats.inter_token.observe(now_s - previous_s, num_regular)
        for generation, num_tokens in step.prefills:
            if generation.is_over:
                continue
            generation.num_computed += num_tokens
            if generation.num_computed == len(generation.ids):
                if not generation.num_output:
                    stats.first_token(generation.num_prompt, generation.num_cached, now_s - generation.record.arrived_s)
                    if generation.record.first_token_s is None:
                        generation.record.first_token_s = now_s
                self._emit(generation, now_s)
        stats.step(step.prefill_tokens + len(step.decodes))
        if self.pool.events:
            if self._publish:
                self._publish(self.pool.events)
            self.pool.events = []
        if self._timer is None:
            self._begin()

    def _emit(self, generation: Generation, now_s: float) -> None:
        """Its next token; the last one frees what it holds."""
        fault = generation.fault
        if fault and fault.kind is FaultKind.HANG and generation.num_output >= fault.at_token:
            return
        if generation.script is not None:
            token_id = generation.script.ids[generation.num_output]
        else:
            may_end = generation.may_end and generation.num_output >= generation.min_tokens
            token_id, generation.state = self._text.next(generation.state, may_end)
        generation.ids.append(token_id)
        generation.num_output += 1
        generation.last_token_s = now_s
        generation.record.generated_tokens += 1
        self._stats.generation_tokens += 1
        finish = None
        if token_id == self._text.eos_id:
            finish = "stop"
        elif generation.num_output >= generation.max_tokens or len(generation.ids) >= self.limits.max_model_len:
            finish = "length"
        is_stopped = generation.deliver(generation, token_id, finish)
        if (finish or is_stopped) and not generation.is_over:
            self._release(generation, "stop" if is_stopped else finish or "stop", now_s)

    def _release(self, generation: Generation, reason: str, now_s: float) -> None:
        """It is over, for `reason`, and holds nothing more."""
        generation.is_over = True
        generation.deliver = _to_nobody  # its answer refers to it: no cycle is left for the collector to find
        if generation.scheduled_s and generation in self.running:
            self.running.remove(generation)
        else:
            self.waiting.remove(generation)
        self.pool.free(generation.table)
        record = generation.record
        self._stats.finished(
            Ended(
                reason=reason,
                prompt_tokens=generation.num_prompt,
                cached_tokens=generation.num_cached,
                output_tokens=generation.num_output,
                max_tokens=generation.max_tokens,
                num_choices=generation.num_choices,
                num_preemptions=generation.num_preemptions,
                arrived_s=record.arrived_s,
                scheduled_s=generation.scheduled_s or now_s,
                first_token_s=record.first_token_s,
                now_s=now_s,
            )
        )

    def _schedule(self, now_s: float) -> _Step:
        step = _Step()
        budget = self.limits.max_num_batched_tokens
        position = 0
        is_crowded = False
        while position < len(self.running) and budget > 0:
            generation = self.running[position]
            position += 1
            if generation.fault and not self._may_go_on(generation, generation.fault, now_s):
                continue
            missing = len(generation.ids) - generation.num_computed
            num_tokens = missing if missing <= budget else budget
            is_room, has_preempted = self._make_room(generation, generation.num_computed + num_tokens, step)
            is_crowded = is_crowded or has_preempted
            if not is_room:
                break
            budget -= num_tokens
            self._add(step, generation, num_tokens)
        if not is_crowded:
            self._admit(step, budget, now_s)
        return step

    def _may_go_on(self, generation: Generation, fault: Fault, now_s: float) -> bool:
        """Whether a generation with `fault` is computed in this step."""
        if generation.num_output < fault.at_token:
            return True
        if fault.kind is FaultKind.HANG:
            return False
        if fault.kind is FaultKind.DRIP and generation.num_output:
            generation.next_token_s = generation.last_token_s + fault.delay_s
            return generation.next_token_s <= now_s
        return True

    def _make_room(self, generation: Generation, num_tokens: int, step: _Step) -> tuple[bool, bool]:
        """Whether `generation` has blocks for `num_tokens`, and whether another had to give its own back for that."""
        num_blocks = -(-num_tokens // self._block_tokens)
        if num_blocks <= len(generation.table.blocks) or self.pool.grow(generation.table, num_blocks):
            return True, False
        while True:
            victim = self.running[-1]
            self._preempt(victim, step)
            if victim is generation:
                return False, True
            if self.pool.grow(generation.table, num_blocks):
                return True, True

    def _preempt(self, victim: Generation, step: _Step) -> None:
        self.running.pop()
        self.pool.free(victim.table)
        victim.num_computed = 0
        victim.num_preemptions += 1
        victim.record.num_preemptions += 1
        self._stats.num_preemptions += 1
        step.decodes = [generation for generation in step.decodes if generation is not victim]
        step.prefills = [prefill for prefill in step.prefills if prefill[0] is not victim]
        self.waiting.appendleft(victim)

    def _admit(self, step: _Step, budget: int, now_s: float) -> None:
        """Let waiting generations in."""
        adapters = {generation.adapter for generation in self.running if generation.adapter}
        passed_over: list[Generation] = []
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            generation = self.waiting[0]
            adapter = generation.adapter
            if adapter and adapter not in adapters and len(adapters) >= self.limits.max_loras:
                passed_over.append(self.waiting.popleft())
                continue
            hits = self.pool.find(generation.table, len(generation.ids))
            if self.pool.num_needed(hits, -(-len(generation.ids) // self._block_tokens)) > self.pool.num_free:
                break
            self.waiting.popleft()
            self.running.append(generation)
            num_tokens = self._take_in(generation, hits, budget, now_s)
            budget -= num_tokens
            if adapter:
                adapters.add(adapter)
                step.num_lora_loads += self._use_slot(adapter)
            self._add(step, generation, num_tokens)
        self.waiting.extendleft(reversed(passed_over))

    def _take_in(self, generation: Generation, hits: Sequence[Block], budget: int, now_s: float) -> int:
        """Give it its blocks; how many tokens of it are computed in this step."""
        self.pool.adopt(generation.table, hits)
        num_cached = len(hits) * self._block_tokens
        generation.num_computed = num_cached
        num_tokens = min(len(generation.ids) - num_cached, budget)
        self.pool.grow(generation.table, -(-(num_cached + num_tokens) // self._block_tokens))
        if not generation.scheduled_s:
            generation.scheduled_s = now_s
            generation.num_cached = num_cached
            generation.record.cached_tokens += num_cached
            self._stats.looked_up(len(generation.ids), num_cached)
        return num_tokens

    def _use_slot(self, adapter: str) -> int:
        """Put the adapter on the GPU; 1 where it was not there."""
        is_new = adapter not in self.lora_slots
        if is_new and len(self.lora_slots) >= self.limits.max_loras:
            in_use = {generation.adapter for generation in self.running}
            self.lora_slots.pop(next(name for name in self.lora_slots if name not in in_use))
        self.lora_slots.pop(adapter, None)
        self.lora_slots[adapter] = None
        self._stats.num_lora_loads += is_new
        return int(is_new)

    def _add(self, step: _Step, generation: Generation, num_tokens: int) -> None:
        """`num_tokens` of `generation` are computed in this step; what becomes full can be found from now on, as in vLLM."""
        num_ids = len(generation.ids)
        step.context_tokens += num_ids
        if num_tokens == 1 and generation.num_output:
            step.decodes.append(generation)
            if not num_ids % self._block_tokens:
                self.pool.cache_full(generation.table, generation.ids, num_ids)
            return
        step.prefills.append((generation, num_tokens))
        step.prefill_tokens += num_tokens
        self.pool.cache_full(generation.table, generation.ids, generation.num_computed + num_tokens)
