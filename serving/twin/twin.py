"""One twin: its engine, its address, and what it answers there.

vLLM's own paths are answered as vLLM answers them. `/twin/…` is the twin's own side, on the same port, and is answered whatever
fault is on: `requests` (ground truth), `state`, `faults`, `reset`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving.twin import asked as asking
from serving.twin import control, vllm_api
from serving.twin.answers import Answer
from serving.twin.asked import Asked
from serving.twin.blocks import BlockPool, BlockTable, CacheKey
from serving.twin.connection import KEEPALIVE_S, Connection, Request
from serving.twin.engine import Engine, Limits
from serving.twin.faults import Fault, FaultKind, FaultPlan, Faults
from serving.twin.generation import Generation
from serving.twin.kv_events import EventsConfig, Publisher
from serving.twin.refusal import Refusal
from serving.twin.stats import Gauges, Stats
from serving.twin.text import TextSource
from serving.twin.truth import Record, Truth
from serving.twin.vocabulary import Vocabulary

_INLINE_BYTES = 16_000
"""Bodies up to this size are tokenised on the event loop; a longer one would keep others' tokens waiting."""
_GENERATES = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class TwinConfig:
    """What one twin is."""

    host: str
    port: int
    served_name: str
    model_root: str
    """What /v1/models tells as the model's folder."""
    limits: Limits
    num_blocks: int
    block_tokens: int
    is_caching: bool
    events: EventsConfig
    seed: int
    """Of texts: replicas of one model have the same."""
    fault_seed: int
    mean_answer_tokens: int
    has_tool_parser: bool = False
    """Tools can be called, as with vLLM's `--tool-call-parser`."""


class _AdapterConfig(msgspec.Struct):
    r: int


class Twin:
    """A twin that can be started, and asked by HTTP or from code."""

    def __init__(self, config: TwinConfig, vocabulary: Vocabulary, die: Callable[[Twin], None]) -> None:
        """`die` is what happens when a fault kills it."""
        self.config, self.vocabulary = config, vocabulary
        self.truth, self.faults = Truth(), Faults(config.fault_seed)
        self.adapters: dict[str, tuple[str, int]] = {}
        """Loaded adapters: path and number, by name."""
        self.started_s = int(time.time())
        self.connections: set[Connection] = set()
        self.stats = Stats(config.limits.max_model_len)
        self._die = die
        self._words = {token_id: msgspec.json.encode(word) for token_id, word in vocabulary.words.text.items()}
        self._text = TextSource(vocabulary, config.seed, config.mean_answer_tokens)
        self._server: asyncio.Server | None = None
        self._publisher: Publisher | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._reading: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._last_metrics = b""
        self._next_adapter = 1

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address is taken.
        """
        config, events = self.config, self.config.events
        has_events = events.enable_kv_cache_events and events.publisher == "zmq"
        self._publisher = Publisher(events, config.host) if has_events else None
        self.pool = BlockPool(config.num_blocks, config.block_tokens, is_caching=config.is_caching, has_events=has_events)
        publish = self._publisher.publish if self._publisher else None
        self.engine = Engine(config.limits, self.pool, self._text, self.stats, lambda: self.faults.switches, publish)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), config.host, config.port, backlog=2048)
        self._sweeping = loop.create_task(self._close_idle())

    @property
    def port(self) -> int:
        """Where it listens; of interest where the configuration says 0."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Let go of everything at once; whoever is being answered is cut off."""
        self.vanish()
        for task in (*self._reading, *([self._sweeping] if self._sweeping else [])):
            task.cancel()
        if self._publisher:
            await self._publisher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def vanish(self) -> None:
        """Be gone as a killed process is: nobody listens, connections are reset, nothing goes on."""
        if self._server:
            self._server.close()
        self.engine.close()
        now_s = asyncio.get_running_loop().time()
        for record in list(self.truth.running.values()):
            self.truth.end(record, "died", now_s)
        for connection in list(self.connections):
            connection.gone = None
            connection.reset()

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer a request."""
        if request.path.startswith("/twin/"):
            control.answer(self, request, connection)
        elif self.faults.switches.silent:
            return
        elif request.path in _GENERATES and request.method == "POST":
            self._generate(request, connection)
        else:
            vllm_api.answer(self, request, connection)

    def set_faults(self, plan: FaultPlan) -> None:
        """From now on `plan`."""
        self.faults.set(plan)
        self.engine.wake()

    def metrics(self) -> bytes:
        """Prometheus text."""
        if self.faults.switches.stale_metrics and self._last_metrics:
            return self._last_metrics
        self._last_metrics = self.stats.render(self.config.served_name, self._gauges())
        return self._last_metrics

    def load_adapter(self, name: str, path: str) -> None:
        """Take an adapter; of its files only the rank matters.

        Raises:
            Refusal: there is none at `path`, its rank is too large, or `name` is taken.
        """
        if name in self.adapters:
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True."
            )
            raise Refusal(400, message, kind="InvalidUserInput")
        try:
            rank = msgspec.json.decode((Path(path) / "adapter_config.json").read_bytes(), type=_AdapterConfig).r
        except (OSError, msgspec.MsgspecError) as error:
            raise Refusal(404, f"Loading lora {name} failed: No adapter found for {path}", kind="NotFoundError") from error
        if rank > self.config.limits.max_lora_rank:
            message = f"LoRA rank {rank} is greater than max_lora_rank {self.config.limits.max_lora_rank}."
            raise Refusal(400, message)
        self.adapters[name] = (path, self._next_adapter)
        self._next_adapter += 1

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            Refusal: there is no such.
        """
        if self.adapters.pop(name, None) is None:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.", kind="NotFoundError")

    def _generate(self, request: Request, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        kind = "chatcmpl-" if request.path == _GENERATES[0] else "cmpl-"
        request_id = kind + (request.request_id or secrets.token_hex(8))
        record = self.truth.arrive(request_id, request.path, loop.time())
        fault = self.faults.draw()
        record.fault = fault.kind if fault else ""
        connection.gone = lambda: self.truth.end(record, "aborted", loop.time())
        if self.faults.switches.dead or (fault and fault.kind is FaultKind.REFUSE):
            self._refuse(record, connection, asking.core_died(fault.status if fault else 500), "refused")
        elif len(request.body) <= _INLINE_BYTES:
            self._admit(request, connection, record, fault)
        else:
            task = loop.create_task(self._admit_long(request, connection, record, fault))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _admit_long(self, request: Request, connection: Connection, record: Record, fault: Fault | None) -> None:
        """Tokenise in a thread, which fills the tokenizer's memory, then go on as with a short one."""
        loop = asyncio.get_running_loop()
        try:
            asked = await loop.run_in_executor(self._threads, self._read, request)
        except Refusal as refusal:
            self._refuse(record, connection, refusal, "invalid")
        else:
            if record.outcome == "running":
                self._submit(asked, connection, record, fault)

    def _admit(self, request: Request, connection: Connection, record: Record, fault: Fault | None) -> None:
        try:
            self._submit(self._read(request), connection, record, fault)
        except Refusal as refusal:
            self._refuse(record, connection, refusal, "invalid")

    def _read(self, request: Request) -> Asked:
        if request.content_type != "application/json":
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise Refusal(400, message, kind="Bad Request")
        body = asking.decode(request.path, request.body)
        if body.model not in (None, self.config.served_name) and body.model not in self.adapters:
            message = f"The model `{body.model}` does not exist. Valid aliases: {self.config.served_name}."
            raise Refusal(404, message, "model", "NotFoundError")
        body.model = body.model or self.config.served_name
        return asking.read(body, self.vocabulary, self.config.limits.max_model_len, has_parser=self.config.has_tool_parser)

    def _refuse(self, record: Record, connection: Connection, refusal: Refusal, outcome: str) -> None:
        self.truth.end(record, outcome, asyncio.get_running_loop().time())
        connection.respond(refusal.status, refusal.document())

    def _submit(self, asked: Asked, connection: Connection, record: Record, fault: Fault | None) -> None:
        """Give the request to the engine, and its connection to the answer."""
        adapter = self.adapters.get(asked.model)
        key = CacheKey(asked.salt, (asked.model, *adapter) if adapter else None)
        record.model, record.salt = asked.model, asked.salt or ""
        record.prompt_tokens = sum(map(len, asked.prompts))
        generations: list[Generation] = []
        loop = asyncio.get_running_loop()

        def over(outcome: str) -> None:
            self.truth.end(record, outcome, loop.time())
            if outcome in ("cut", "truncated", "failed", "died"):
                stop_all()
            if outcome == "died":
                loop.call_soon(self._die, self)

        def stop_all() -> None:
            for generation in generations:
                self.engine.abort(generation)

        def gone() -> None:
            self.truth.end(record, "aborted", loop.time())
            stop_all()

        answer = Answer(asked, record, connection, self._words, self.vocabulary, fault, over)
        for number in range(answer.num_choices):
            generations.append(
                Generation(
                    record,
                    number,
                    asked.prompts[number // asked.num_choices],
                    table=BlockTable(key, self.pool.block_tokens),
                    num_choices=asked.num_choices,
                    max_tokens=asked.max_tokens,
                    min_tokens=asked.min_tokens,
                    may_end=asked.may_end,
                    choice_seed=self._choice_seed(asked, record, number),
                    text=self._text,
                    fault=fault,
                    form=asked.form,
                    deliver=answer.deliver,
                )
            )
        if asked.is_streamed:
            connection.begin_stream()
            if fault and fault.kind is FaultKind.SPLIT:
                connection.split()
        connection.gone = gone
        self.engine.submit(generations)

    def _choice_seed(self, asked: Asked, record: Record, number: int) -> int | None:
        """None for greedy answers; else by the request's seed, or by arrival where it has none."""
        if asked.is_greedy:
            return None
        first = asked.seed if asked.seed is not None else (self.config.seed << 32) + record.number
        return first * 1_000_003 + number % asked.num_choices

    def _gauges(self) -> Gauges:
        engine, limits, config = self.engine, self.config.limits, self.config
        running = {generation.adapter for generation in engine.running if generation.adapter}
        waiting = {generation.adapter for generation in engine.waiting if generation.adapter}
        is_full = len(running) >= limits.max_loras
        num_deferred = sum(
            1 for generation in engine.waiting if is_full and generation.adapter and generation.adapter not in running
        )
        return Gauges(
            num_running=len(engine.running),
            num_capacity_waiting=len(engine.waiting) - num_deferred,
            num_deferred_waiting=num_deferred,
            kv_usage_ratio=self.pool.usage_ratio,
            running_adapters=sorted(running),
            waiting_adapters=sorted(waiting),
            max_loras=limits.max_loras,
            now_s=time.time(),
            cache_config={
                "block_size": str(config.block_tokens),
                "enable_prefix_caching": str(config.is_caching),
                "num_gpu_blocks": str(config.num_blocks),
                "prefix_caching_hash_algo": "sha256",
            },
        )

    async def _close_idle(self) -> None:
        """Close kept connections that nobody uses, as uvicorn does."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            latest_s = loop.time() - KEEPALIVE_S
            for connection in list(self.connections):
                if connection.is_idle and connection.idle_since_s < latest_s:
                    connection.close()
