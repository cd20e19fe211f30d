"""What prefix caching, continuous batching and a fast tokenizer are worth, on the real vLLM behind this gateway.

    .venv/bin/python tests/bench/bench_engine.py [--rounds 5] [--tokens 32] [--write]

Two stock vLLMs on CPUs serve SmolLM2-135M-Instruct, alike but for `max_num_seqs`: 16 and 1. A gateway in this process (its
checks, counting, metering and relay; journal and tables in memory) has one class for each.

- *Prefix*: a prompt of 1,800 tokens that nobody asked before and 20 of its own, streamed; then its beginning again with another
  end. The time until the first token, as a client sees it.
- *Batching*: 16 requests at once, each a short prompt and a fixed number of tokens (a `logit_bias` keeps the end away);
  generated tokens over the time until all are done. The two engines take turns, round by round.
- *Tokens*: texts of several lengths that were not seen before, from this repository, by `fastokens` and by `tokenizers`.

It favours prefix caching in that the engine is idle but for the request, and batching in that two cores read the weights once for
16 rows. Seeded. About four minutes on two cores; prints tables and, last, one line of JSON. Exit 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import structlog
from bench_report import machine, write_section
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving" / "gateway"))
from gateway_support import RELEASE_ID, Gateway, make_settings, running_gateway

from serving.gateway.discovery import Endpoint
from serving.gateway.encode import Encode, encoder_of
from serving.gateway.prompts import prompt_counter
from serving.gateway.releases import LoadedRelease
from serving.models.conversions import converted, engine_python

HOST = "127.0.0.1"
PORTS = {"small": 18_621, "large": 18_622}
NUM_SEQS = {"small": 16, "large": 1}
"""By the class that stands for each engine here."""
WINDOW = 4096
SHARED_TOKENS, OWN_TOKENS = 1_800, 20
TEXT_CHARS = (200, 2_000, 16_000, 120_000)
MIN_PREFIX_RATIO, MIN_BATCHING_RATIO = 10.0, 2.0
START_S = 300.0
REPOSITORY = Path(__file__).resolve().parents[2]
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TORCHDYNAMO_DISABLE": "1"}


def said(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


@contextmanager
def engines(model: Path) -> Iterator[None]:
    """Both engines, serving."""
    env = {**os.environ, **QUIET, "VLLM_HOST_IP": HOST, "GLOO_SOCKET_IFNAME": "lo", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as folder:
        processes = []
        try:
            for name, port in PORTS.items():
                command = [str(engine_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
                command += [
                    "--served-model-name",
                    name,
                    "--host",
                    HOST,
                    "--port",
                    str(port),
                    "--dtype",
                    "bfloat16",
                    "--enforce-eager",
                ]
                command += [
                    "--max-model-len",
                    str(WINDOW),
                    "--max-num-seqs",
                    str(NUM_SEQS[name]),
                    "--enable-prompt-tokens-details",
                ]
                with (Path(folder) / name).open("wb") as log:
                    processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
            for (name, port), process in zip(PORTS.items(), processes, strict=True):
                wait_for(port, process, Path(folder) / name)
                said(f"vLLM with max_num_seqs {NUM_SEQS[name]} serves")
            yield
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    began_s = time.monotonic()
    while True:
        try:
            with urlopen(f"http://{HOST}:{port}/health", timeout=2):
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() - began_s > START_S:
            raise SystemExit(f"vLLM does not serve:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


@asynccontextmanager
async def gateway_of(files: Path) -> AsyncIterator[Gateway]:
    """A gateway over both engines."""
    tokenizer, config, template = (
        (files / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    )
    made = make_settings(timeouts={"first_token_s": 120, "gap_s": 120, "request_s": 300}, max_body_bytes=1024 * 1024)
    models = [model.model_copy(update={"context_window_tokens": WINDOW, "max_in_flight_per_engine": 32}) for model in made.models]
    async with running_gateway(tokenizer, made.model_copy(update={"models": tuple(models)})) as gateway:
        gateway.releases.release = LoadedRelease(RELEASE_ID, WINDOW, prompt_counter(tokenizer, config, template))
        for name, port in PORTS.items():
            gateway.pools[name].update([Endpoint(name, HOST, port, is_ready=True)])
        yield gateway


def prompt_of(num_tokens: int, chance: random.Random) -> list[int]:
    return [chance.randrange(300, 40_000) for _ in range(num_tokens)]


def asked(gateway: Gateway, path: str, body: dict[str, Any]) -> Any:
    headers = {"authorization": f"Bearer {gateway.key}"}
    return gateway.http.post(gateway.base_url + path, json=body, headers=headers, timeout=aiohttp.ClientTimeout(total=300))


async def first_token_ms(gateway: Gateway, prompt: list[int]) -> tuple[float, int]:
    """How long the first token took, and how many of the prompt's were found in the cache."""
    body = {"model": "small", "prompt": prompt, "max_tokens": 2, "temperature": 0, "stream": True}
    began_s = time.monotonic()
    async with asked(gateway, "/v1/completions", {**body, "stream_options": {"include_usage": True}}) as answer:
        assert answer.status == 200, await answer.text()
        await answer.content.readuntil(b"\n\n")
        took_ms = (time.monotonic() - began_s) * 1e3
        rest = (await answer.read()).decode()
    usage = json.loads(rest.split("data: ")[-2])["usage"]
    return took_ms, usage["prompt_tokens_details"]["cached_tokens"]


async def tokens_per_s(gateway: Gateway, model: str, num_requests: int, num_tokens: int, end_id: int) -> float:
    """Of requests that all come at once."""

    async def ask(number: int) -> int:
        messages = [{"role": "user", "content": f"Tell me of the number {number}."}]
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": num_tokens,
            "temperature": 0,
            "logit_bias": {str(end_id): -100},
        }
        async with gateway.post(body=body) as answer:
            document = await answer.json()
            assert answer.status == 200, document
            count: int = document["usage"]["completion_tokens"]
            return count

    began_s = time.monotonic()
    counts = await asyncio.gather(*map(ask, range(num_requests)))
    assert counts == [num_tokens] * num_requests, "no answer ends by itself"
    return sum(counts) / (time.monotonic() - began_s)


async def measure(files: Path, rounds: int, num_tokens: int, seed: int) -> dict[str, list[float]]:
    """Every measurement by its name, in turn."""
    chance = random.Random(seed)
    end_id = int(Tokenizer.from_file(str(files / "tokenizer.json")).token_to_id("<|im_end|>"))
    found: dict[str, list[float]] = {name: [] for name in ("cold_ms", "warm_ms", "cached_tokens", "tps_16", "tps_1")}
    async with gateway_of(files) as gateway:
        await first_token_ms(gateway, prompt_of(40, chance))  # the first request of all loads what the engine loads late
        for number in range(rounds):
            shared = prompt_of(SHARED_TOKENS, chance)
            cold_ms, _ = await first_token_ms(gateway, shared + prompt_of(OWN_TOKENS, chance))
            warm_ms, cached = await first_token_ms(gateway, shared + prompt_of(OWN_TOKENS, chance))
            found["cold_ms"].append(cold_ms)
            found["warm_ms"].append(warm_ms)
            found["cached_tokens"].append(cached)
            for name, model in (("tps_16", "small"), ("tps_1", "large")):
                found[name].append(await tokens_per_s(gateway, model, max(NUM_SEQS.values()), num_tokens, end_id))
            said(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {values[-1]:.4g}" for name, values in found.items()))
    return found


def encoding_ms(files: Path, seed: int) -> list[tuple[int, float, float]]:
    """Characters, and the median time of both tokenizers; the ids are compared each time."""
    chance = random.Random(seed)
    source = "\n".join(path.read_text() for path in sorted(REPOSITORY.glob("serving/**/*.py")))
    described = (files / "tokenizer.json").read_text()
    slow = Tokenizer.from_str(described)
    encoder = encoder_of(described, slow)
    assert not encoder.why_slow, encoder.why_slow
    encoders: list[Encode] = [encoder.encode, lambda text, _: slow.encode_batch_fast([text], add_special_tokens=False)[0].ids]
    rows = []
    for num_chars in TEXT_CHARS:
        took: list[list[float]] = [[], []]
        for _ in range(15):
            begin = chance.randrange(len(source) - num_chars)
            text = source[begin : begin + num_chars]
            ids = [timed(encode, text, into) for encode, into in zip(encoders, took, strict=True)]
            assert ids[0] == ids[1], f"other ids for {text[:80]!r}"
        rows.append((num_chars, *(statistics.median(times) for times in took)))
    return rows  # type: ignore[return-value]


def timed(encode: Callable[[str, bool], Any], text: str, into: list[float]) -> list[int]:
    began_s = time.perf_counter()
    ids = encode(text, False)
    into.append((time.perf_counter() - began_s) * 1e3)
    return list(ids)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer, for batching")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    files = converted("smollm2", lambda _: None) / "files"
    said("tokenizers")
    encoding = encoding_ms(files, arguments.seed)
    with engines(files):
        found = asyncio.run(measure(files, arguments.rounds, arguments.tokens, arguments.seed))
    median = {name: statistics.median(values) for name, values in found.items()}
    prefix = [cold / warm for cold, warm in zip(found["cold_ms"], found["warm_ms"], strict=True)]
    batching = [many / one for many, one in zip(found["tps_16"], found["tps_1"], strict=True)]
    figures = {
        "prefix_tokens": SHARED_TOKENS,
        "prefix_cached_tokens": int(median["cached_tokens"]),
        "ttft_cold_ms": round(median["cold_ms"]),
        "ttft_warm_ms": round(median["warm_ms"]),
        "prefix_ratio_median": round(statistics.median(prefix), 1),
        "prefix_ratio_worst": round(min(prefix), 1),
        "batching_16_tokens_per_s": round(median["tps_16"], 1),
        "batching_1_tokens_per_s": round(median["tps_1"], 1),
        "batching_ratio_median": round(statistics.median(batching), 1),
        "batching_ratio_worst": round(min(batching), 1),
        **{f"encode_{num_chars}_chars_ratio": round(slow / fast, 1) for num_chars, fast, slow in encoding},
        "rounds": arguments.rounds,
        "seed": arguments.seed,
        "machine": machine(),
    }
    figures["holds"] = min(prefix) >= MIN_PREFIX_RATIO and min(batching) >= MIN_BATCHING_RATIO
    text = "\n".join(
        [
            f"{machine()}; vLLM 0.32 on CPUs, SmolLM2-135M-Instruct in bfloat16; {arguments.rounds} rounds,"
            f" seed {arguments.seed}",
            "",
            "| what | without | with | ratio, median | ratio, worst |",
            "|---|---|---|---|---|",
            f"| first token of {SHARED_TOKENS + OWN_TOKENS} tokens, {median['cached_tokens']:.0f} of them found again, ms"
            f" | {median['cold_ms']:.0f} | {median['warm_ms']:.0f} | {statistics.median(prefix):.1f} | {min(prefix):.1f} |",
            f"| 16 requests at once, `max_num_seqs` 1 and 16, tokens/s | {median['tps_1']:.1f} | {median['tps_16']:.1f} "
            f"| {statistics.median(batching):.1f} | {min(batching):.1f} |",
            "",
            "| characters | `tokenizers`, ms | `fastokens`, ms | ratio |",
            "|---|---|---|---|",
            *(f"| {num_chars:,} | {slow:.3f} | {fast:.3f} | {slow / fast:.0f} |" for num_chars, fast, slow in encoding),
        ]
    )
    print(text)
    if arguments.write:
        write_section("bench-engine", text)
    print(json.dumps(figures))
    return 0 if figures["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
