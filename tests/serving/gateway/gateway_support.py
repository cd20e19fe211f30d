"""A gateway in the test's own event loop, and the world around it: engines that misbehave on request, a journal in memory.

Both fakes keep ground truth: the engine knows what it was asked, what it sent and who hung up; the journal knows every record.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
import openai
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.gateway import keys
from serving.gateway.accept import Room
from serving.gateway.app import build_app
from serving.gateway.auth import Authenticator
from serving.gateway.budgets import Budgets, spent_by_ledger
from serving.gateway.claims import Claim, ClaimsUnavailable, ClaimTable
from serving.gateway.client_http import client_protocol
from serving.gateway.context import ContextCounter
from serving.gateway.controls import Controls
from serving.gateway.conversation_store import ConversationStore
from serving.gateway.conversations import Conversations
from serving.gateway.discovery import Endpoint
from serving.gateway.dispatch import Dispatcher
from serving.gateway.idempotency import Idempotency
from serving.gateway.limits import Limiter
from serving.gateway.metrics import Metrics
from serving.gateway.models import Models
from serving.gateway.pipeline import Pipeline
from serving.gateway.prompt_table import PromptTable
from serving.gateway.prompts import prompt_counter
from serving.gateway.queue import ClassQueue
from serving.gateway.registered import PromptBook
from serving.gateway.releases import LoadedRelease
from serving.gateway.route import Pool
from serving.gateway.tenants import Key, KeyRecord, Tenant
from serving.gateway.warm_up import WarmUp
from serving.metering.events import UsageClose, UsageOpen, UsageProgress
from serving.metering.journal import JournalUnavailable
from serving.metering.report import GroupBy, UsageReport, summarise
from serving.metering.rows import row_of
from serving.settings import GatewaySettings

PEPPER = b"pepper"
SALT = b"salt"
RELEASE_ID = "f" * 64
WINDOW = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER_CONFIG = json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}).encode()
CACHED_TOKENS = 3


def train_tokenizer() -> bytes:
    """`tokenizer.json` of a small byte-level BPE with ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["user assistant system Hello, what is the capital of France? Paris."] * 4, trainer)
    return tokenizer.to_str().encode()


@dataclass
class Behaviour:
    """What an engine does with its next requests."""

    tokens: Sequence[str] = (" Par", "is", ".")
    status: int = 200
    error: str = "no"
    cut_after: int | None = None
    """Break the connection after so many token events; 0: after the head."""
    error_after: int | None = None
    """Send vLLM's error event after so many token events."""
    hang_after: int | None = None
    """Go silent after so many token events; 0: after the head."""
    delay_s: float = 0.0
    """Between events."""
    piece_bytes: int | None = None
    """Send the body in pieces of this size."""
    finish_reason: str = "stop"
    omits_final_usage: bool = False
    omits_done: bool = False
    vectors: bool = False
    """Has embeddings, as a vLLM that pools has; without, the path is not there."""
    call: str = ""
    """The name of a tool, which is called with the tokens as its arguments."""
    burst: bool = False
    """All events in one write."""


@dataclass
class Asked:
    """One request as the engine saw it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    sent_tokens: int = 0
    is_aborted: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)


class FakeEngine:
    """vLLM's two endpoints, chunk for chunk, with ground truth."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.asked: list[Asked] = []
        self.num_connections = 0
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    @property
    def num_open(self) -> int:
        """Connections that clients hold open now."""
        return len(self._clients)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"engine-{self.port}", "127.0.0.1", self.port, is_ready=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        self.num_connections += 1
        try:
            while await self._serve_one(reader, writer):
                continue
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        if head[0].startswith("GET /health "):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return True
        body = await reader.readexactly(int(headers["content-length"]))
        asked = Asked(head[0].split()[1], headers, json.loads(body))
        self.asked.append(asked)
        watcher = asyncio.create_task(self._watch(reader, asked))
        try:
            return await self._answer(writer, asked, self.behaviour)
        except OSError:
            asked.is_aborted = True
            raise
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            asked.done.set()

    async def _watch(self, reader: asyncio.StreamReader, asked: Asked) -> None:
        while not reader.at_eof():
            await asyncio.sleep(0.005)
        asked.is_aborted = True
        asked.done.set()

    async def _answer(self, writer: asyncio.StreamWriter, asked: Asked, does: Behaviour) -> bool:
        if asked.path.endswith("/embeddings"):
            return await self._embed(writer, asked, does)
        if does.status != 200:
            content = json.dumps({"error": {"message": does.error, "type": "E", "param": None, "code": does.status}}).encode()
            writer.write(b"HTTP/1.1 %d X\r\nlocation: /\r\ncontent-length: %d\r\n\r\n" % (does.status, len(content)) + content)
            await writer.drain()
            return True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        burst: list[bytes] = []
        for number, event in self._events(asked, does):
            if does.cut_after is not None and number > does.cut_after:
                writer.transport.abort()
                return False
            if does.hang_after is not None and number > does.hang_after:
                await asyncio.sleep(60)
            if does.error_after is not None and number > does.error_after:
                failure = {
                    "message": "EngineCore encountered an issue.",
                    "type": "InternalServerError",
                    "param": None,
                    "code": 500,
                }
                await self._send(writer, b"data: " + json.dumps({"error": failure}).encode() + b"\n\ndata: [DONE]\n\n", does)
                break
            if does.delay_s:
                await asyncio.sleep(does.delay_s)
            if asked.is_aborted:
                return False
            if does.burst:
                burst.append(event)
            else:
                await self._send(writer, event, does)
            asked.sent_tokens = number * (asked.body.get("n") or 1)
        if burst:
            await self._send(writer, b"".join(burst), does)
        if does.omits_done:
            writer.transport.abort()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _embed(self, writer: asyncio.StreamWriter, asked: Asked, does: Behaviour) -> bool:
        inputs = asked.body["input"] if isinstance(asked.body["input"], list) else [asked.body["input"]]
        data = [{"index": number, "object": "embedding", "embedding": [0.5, -0.25]} for number in range(len(inputs))]
        usage = {**_usage(self.prompt_tokens({"prompt": inputs}), 0), "prompt_tokens_details": None}
        document = {"id": "embd-1", "object": "list", "created": 1795390202, "model": "small", "data": data, "usage": usage}
        content = json.dumps(document if does.vectors else {"detail": "Not Found"}, separators=(",", ":")).encode()
        head = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (200 if does.vectors else 404, len(content))
        writer.write(head + content[:20])
        await writer.drain()
        await asyncio.sleep(0.01)
        if does.cut_after is not None:
            writer.transport.abort()
            return False
        writer.write(content[20:])
        await writer.drain()
        return True

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, does: Behaviour) -> None:
        size = does.piece_bytes or len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
            if does.piece_bytes:
                await asyncio.sleep(0)

    def _events(self, asked: Asked, does: Behaviour) -> list[tuple[int, bytes]]:
        """Events with the number of tokens (of each choice) that they bring the answer to."""
        is_chat, prompt_tokens = asked.path.endswith("/chat/completions"), self.prompt_tokens(asked.body)
        choices = range(asked.body.get("n") or 1)
        head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{asked.headers['x-request-id']}",
            "created": 1795390202,
            "model": "small",
        }
        head = {"id": head["id"], "object": "chat.completion.chunk" if is_chat else "text_completion", **head}
        events: list[tuple[int, dict[str, Any]]] = []
        if is_chat:
            for index in choices:
                role = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
                late = {"prompt_token_ids": None, "prompt_text": None}
                events.append((1, {**head, "choices": [role], "usage": _usage(prompt_tokens, 0), **late}))
        for number, token in enumerate(does.tokens, 1):
            is_last = number == len(does.tokens)
            for index in choices:
                piece: dict[str, Any] = {"index": index}
                piece |= {"delta": _delta(does, number, token)} if is_chat else {"text": token}
                piece |= {
                    "logprobs": _logprobs(asked.body, token, is_chat),
                    "finish_reason": does.finish_reason if is_last else None,
                }
                if is_last or not is_chat:
                    piece["stop_reason"] = None
                events.append((number, {**head, "choices": [piece], "usage": _usage(prompt_tokens, number)}))
        last = len(does.tokens)
        if not does.omits_final_usage:
            usage = _usage(prompt_tokens, last * len(choices))
            usage["prompt_tokens_details"] = {"cached_tokens": CACHED_TOKENS, "created_cache_tokens": 0}
            events.append((last, {**head, "choices": [], "usage": usage, "system_fingerprint": "fake"}))
        encoded = [(number, b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n") for number, event in events]
        return encoded if does.omits_done else [*encoded, (last, b"data: [DONE]\n\n")]

    @staticmethod
    def prompt_tokens(body: dict[str, Any]) -> int:
        """The engine's own idea of the prompt's length; never equal to the gateway's, to tell whose count is billed."""
        return 1000 + len(json.dumps(body.get("messages") or body.get("prompt")))


def _delta(does: Behaviour, number: int, token: str) -> dict[str, Any]:
    """vLLM tells a call's id and name first, and then its arguments in pieces."""
    if not does.call:
        return {"content": token}
    call: dict[str, Any] = {"index": 0, "function": {"arguments": token}}
    if number == 1:
        call = {"id": "call_1", "type": "function", "index": 0, "function": {"name": does.call, "arguments": token}}
    return {"content": None, "tool_calls": [call]}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "completion_tokens_details": None,
    }


def _logprobs(body: dict[str, Any], token: str, is_chat: bool) -> dict[str, Any] | None:
    if not body.get("logprobs"):
        return None
    if is_chat:
        return {"content": [{"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}]}
    return {"text_offset": [0], "token_logprobs": [-0.5], "tokens": [token], "top_logprobs": [{token: -0.5}]}


class MemoryJournal:
    """The journal's interface over a list. `is_broken` makes it refuse."""

    def __init__(self) -> None:
        self.records: list[UsageOpen | UsageProgress | UsageClose] = []
        self.is_broken = False
        self.is_slow = asyncio.Event()
        self.is_slow.set()
        self.has_caught_up = asyncio.Event()
        """PROGRESS is on the disk as soon as it is noted."""
        self.has_caught_up.set()

    async def open_event(self, record: UsageOpen) -> None:
        self._append(record)

    def progress(self, record: UsageProgress) -> int:
        self.records.append(record)
        return len(self.records)

    def is_durable(self, ticket: int) -> bool:
        return self.has_caught_up.is_set()

    async def progress_event(self, record: UsageProgress) -> None:
        await self.has_caught_up.wait()
        self._append(record)

    async def close_event(self, record: UsageClose) -> None:
        await self.is_slow.wait()
        self._append(record)

    def _append(self, record: UsageOpen | UsageProgress | UsageClose) -> None:
        if self.is_broken:
            raise JournalUnavailable("the disk is full")
        self.records.append(record)

    @property
    def opened(self) -> list[UsageOpen]:
        return [record for record in self.records if isinstance(record, UsageOpen)]

    @property
    def closed(self) -> list[UsageClose]:
        return [record for record in self.records if isinstance(record, UsageClose)]

    @property
    def progressed(self) -> list[UsageProgress]:
        return [record for record in self.records if isinstance(record, UsageProgress)]


class LedgerOf:
    """A ledger that has the row of every CLOSE at once."""

    def __init__(self, journal: MemoryJournal) -> None:
        self.journal = journal

    def usage(self, tenant: str, from_ms: int, to_ms: int, group_by: Sequence[GroupBy]) -> UsageReport:
        rows = (row_of(close) for close in self.journal.closed if close.open.tenant == tenant)
        return summarise((row for row in rows if from_ms <= row.opened_at_ms < to_ms), from_ms, to_ms, group_by)


class OneRelease:
    """A release book with one page."""

    def __init__(self, release: LoadedRelease | None) -> None:
        self.release = release

    def get(self, model_class: str) -> LoadedRelease | None:
        return self.release


class KeyBook:
    """The tenants table's `find_key`, over a dict."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[KeyRecord, Tenant]] = {}
        self.error: Exception | None = None
        self.num_reads = 0

    def add(self, tenant: Tenant, **scopes: Any) -> str:
        key = keys.mint()
        self.found[key.key_id] = (KeyRecord(Key(key.key_id, tenant.id, **scopes), keys.digest(PEPPER, key)), tenant)
        return key.secret

    def find_tenant(self, tenant_id: str) -> Tenant | None:
        return next((tenant for _, tenant in self.found.values() if tenant.id == tenant_id), None)

    def find_key(self, key_id: str) -> tuple[KeyRecord, Tenant] | None:
        self.num_reads += 1
        if self.error is not None:
            raise self.error
        return self.found.get(key_id)


def make_settings(**changes: Any) -> GatewaySettings:
    price = {"version": "2026-11", "effective_from_ms": 0}
    price |= {"input_micro_usd_per_mtok": 100, "cached_input_micro_usd_per_mtok": 10, "output_micro_usd_per_mtok": 300}
    served = {
        "model_class": "small",
        "aliases": ["SmolLM2"],
        "context_window_tokens": WINDOW,
        "engine_service": "engine-small.serving",
        "max_in_flight_per_engine": 4,
        "prices": [price],
    }
    document = {
        "environment": "test",
        "region": "us-east-2",
        "home_region": "us-east-2",
        "tables": {
            "registry": "registry",
            "tenants": "tenants",
            "ledger": "ledger",
            "idempotency": "idempotency",
            "prompts": "prompts",
            "failover": "failover",
            "conversations": "conversations",
        },
        "secrets": {"key_pepper": "pepper", "cache_salt": "salt", "admin_key": "admin"},
        "artifact_bucket": "artifacts",
        "archive_bucket": "archive",
        "body_bucket": "bodies",
        "cache_url": "redis://127.0.0.1:1",
        "models": [served, {**served, "model_class": "large", "aliases": [], "engine_service": "engine-large.serving"}],
        "timeouts": {"connect_s": 0.5, "first_token_s": 5, "gap_s": 5, "request_s": 30},
        "max_body_bytes": 64 * 1024,
    }
    return GatewaySettings.model_validate({**document, **changes})


@dataclass
class Gateway:
    """A gateway and its world."""

    settings: GatewaySettings
    base_url: str
    engines: list[FakeEngine]
    pools: dict[str, Pool]
    journal: MemoryJournal
    keys: KeyBook
    releases: OneRelease
    metrics: Metrics
    limiter: Limiter
    key: str
    http: aiohttp.ClientSession
    prompts: PromptBook
    warm_up: WarmUp
    """Looks when a test says so."""
    unready: list[str]
    """Reasons for the gateway to want no traffic."""
    pipeline: Pipeline
    clients: list[openai.AsyncOpenAI] = field(default_factory=list)

    @property
    def engine(self) -> FakeEngine:
        return self.engines[0]

    @property
    def num_asked(self) -> int:
        return sum(len(engine.asked) for engine in self.engines)

    def openai(self, key: str | None = None) -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(base_url=f"{self.base_url}/v1", api_key=key or self.key, max_retries=0, timeout=10)
        self.clients.append(client)
        return client

    def post(self, path: str = "/v1/chat/completions", body: Any = None, key: str | None = None, **headers: str) -> Any:
        """A request context; a body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else chat_body()).encode()
        given = {"authorization": f"Bearer {key or self.key}", "content-type": "application/json", **headers}
        return self.http.post(self.base_url + path, data=data, headers=given)

    async def is_quiet(self) -> None:
        """Wait until every opened event is closed."""
        async with asyncio.timeout(5):
            while len(self.journal.closed) < len(self.journal.opened):
                await asyncio.sleep(0.005)

    def metric(self, line: str) -> float:
        """The value of one sample, by its name and labels as scraped."""
        for found in self.metrics.render().decode().splitlines():
            if found.rpartition(" ")[0] == line:
                return float(found.rpartition(" ")[2])
        return 0.0


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": "Hello"}], **fields}


def make_tenants_table(client: Any, name: str = "tenants") -> None:
    """The table of tenants, plans and keys, on a DynamoDB that is emulated."""
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
    )


class NoClaims:
    """A table of claims that does not answer."""

    def claim(self, claim: Claim) -> None:
        raise ClaimsUnavailable("nobody is there")


@asynccontextmanager
async def running_gateway(
    tokenizer_json: bytes,
    settings: GatewaySettings,
    *,
    num_engines: int = 1,
    has_fast_path: bool = True,
    claims: ClaimTable | None = None,
    prompts: PromptTable | None = None,
    conversations: ConversationStore | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway that serves."""
    metrics = Metrics([model.model_class for model in settings.models])
    journal, key_book = MemoryJournal(), KeyBook()
    counter = prompt_counter(tokenizer_json, TOKENIZER_CONFIG, CHAT_TEMPLATE.encode())
    releases = OneRelease(LoadedRelease(RELEASE_ID, WINDOW, counter))
    authenticator = Authenticator(key_book.find_key, pepper=PEPPER, salt_secret=SALT, key_cache_s=settings.key_cache_s)
    ledger = LedgerOf(journal)
    models_, context = Models(settings.models), ContextCounter(releases)
    limiter = Limiter(settings.cache_url, metrics, Budgets(spent_by_ledger(ledger.usage)))
    pools = {model.model_class: Pool(model, metrics, is_hedging=settings.hedging) for model in settings.models}
    await limiter.warm_up()
    dispatcher = Dispatcher(settings.timeouts.connect_s)
    prompt_book = PromptBook(prompts or cast(Any, None))
    queues = {
        model.model_class: ClassQueue(model, settings.queue, pools[model.model_class], metrics) for model in settings.models
    }
    stored = Conversations(conversations or cast(Any, None))
    pipeline = Pipeline(
        settings,
        gateway="gateway-0",
        authenticator=authenticator,
        models=models_,
        context=context,
        limiter=limiter,
        pools=pools,
        queues=queues,
        dispatcher=dispatcher,
        journal=journal,
        claims=Idempotency(claims or NoClaims(), Path()),
        prompts=prompt_book,
        conversations=stored,
        metrics=metrics,
    )
    warm_up = WarmUp(
        settings,
        "gateway-0",
        prompts=prompt_book,
        tenant_of=key_book.find_tenant,
        authenticator=authenticator,
        models=models_,
        context=context,
        pools=pools,
        queues=queues,
        dispatcher=dispatcher,
        journal=journal,
    )
    unready: list[str] = []
    controls = Controls(cast(Any, None), settings.region)
    app = build_app(
        pipeline,
        authenticator,
        models_,
        context,
        releases,
        prompt_book,
        stored,
        lambda: unready,
        controls,
        lambda: unready,
        ledger.usage,
        settings.max_json_depth,
    )
    engines = [FakeEngine() for _ in range(num_engines)]
    for engine in engines:
        await engine.start()
    pools["small"].update([engine.endpoint for engine in engines])
    bound = socket.create_server(("127.0.0.1", 0))
    protocol = client_protocol(pipeline.run, Room(1000)) if has_fast_path else HttpToolsProtocol
    config = uvicorn.Config(app, http=protocol, ws="none", log_config=None, access_log=False, proxy_headers=False)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), sock=bound
    )
    http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15))
    gateway = Gateway(
        settings,
        f"http://127.0.0.1:{bound.getsockname()[1]}",
        engines,
        pools,
        journal,
        key_book,
        releases,
        metrics,
        limiter,
        key_book.add(Tenant("acme")),
        http,
        prompt_book,
        warm_up,
        unready,
        pipeline,
    )
    try:
        yield gateway
    finally:
        for client in gateway.clients:
            await client.close()
        await http.close()
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        async with asyncio.timeout(5):
            await pipeline.idle.wait()
        for engine in engines:
            await engine.stop()
        await dispatcher.aclose()
        await limiter.aclose()
        await warm_up.aclose()
        context.close()
        prompt_book.close()
        authenticator.close()
