"""What a request costs in this gateway and in its peers, in one run over one lean mock engine.

    make bench-gateway [ARGS=--write | ARGS=--profile]

Gateways take turns on one core; the mock (`mock_engine.py`, 51 chunks, 10 ms apart) and the client share the other. CPU is the
user and system time of the gateway's process tree, less what it burns idle. Ours runs as in production: keys checked, every
request journaled durably before the engine is asked and before `[DONE]`, prompts counted by a tokenizer, against an emulated
AWS. The peers do none of that. Arrivals are open-loop (Poisson); an answer that is not a 200 with all its chunks fails the run.

`added TTFT` is against the mock asked directly at the same rate, which is 70 % of what one core of ours carries by the row before
it, and net of bare fdatasyncs (`bare_syncs.py`) at that rate beside it; where the mock and the client cannot make that on one
core, the direct row shows it. Idle streams are held open by a gateway
of two workers: each may have half as many connections as it may have descriptors. What a fleet needs follows at 70 % of its
cores. Prints a table and, last, one line of JSON; exits 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from bare_syncs import bare_syncs
from bench_report import machine, write_section
from stream_load import hold, request, run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving" / "gateway"))

from gateway_process import World, running_world, start, stop
from gateway_support import make_settings, train_tokenizer

from serving.gateway import admin_client

GATEWAY_CORE, OTHER_CORE = 0, 1
INTERVAL_MS = 10.0
NUM_REPEATS = 3
START_S = 120.0
"""A gateway that does not serve by then is left out, and what it was to be compared in does not hold."""
NUM_PROFILED = 60
LOAD = 0.7
"""Of a core: what first tokens are measured at, and what a fleet is sized for."""
NUM_WORKERS = 2
NUM_ADDRESSES = 4
"""Engines that the mock plays in front of idle streams: a gateway keeps at most 4,096 requests at one."""
BODY = json.dumps(
    {"model": "small", "stream": True, "messages": [{"role": "user", "content": "Tell me about the sea. " * 8}]},
    separators=(",", ":"),
).encode()
HELD = BODY[:-1] + b',"seed":999}'
ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """What was measured of one gateway."""

    name: str
    per_s: float
    cpu_ms: list[float] = field(default_factory=list)
    ttft_p50_ms: list[float] = field(default_factory=list)
    ttft_p99_ms: list[float] = field(default_factory=list)


class NotServingError(Exception):
    """A gateway did not come up."""


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """User and system time of a process tree, ended children included."""
    total = 0
    for one in tree(pid):
        with suppress(FileNotFoundError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICKS


def rss_bytes(pid: int) -> int:
    """Resident memory of a process tree."""
    return sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in tree(pid)) * resource.getpagesize()


def pin(pid: int, core: int) -> None:
    """Keep a process tree, threads included, on one core."""
    for one in tree(pid):
        for task in Path(f"/proc/{one}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})


@contextmanager
def process(command: list[str], folder: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process on the gateways' core, with its log in `folder`."""
    with (folder / f"{Path(command[0]).name}-{time.monotonic_ns()}.log").open("wb") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **env}, cwd=folder)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()


async def answers(host: str, port: int, wire: bytes, within_s: float, pid: int | None = None) -> None:
    """Wait until a request is served whole.

    Raises:
        NotServingError: it is not in time, or the process `pid` has ended.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        measured = await run(host, port, wire, num=1, per_s=1000, num_chunks=51, seed=0)
        if not measured.failures:
            return
        if time.monotonic() > deadline_s or (pid is not None and "State:\tZ" in Path(f"/proc/{pid}/status").read_text()):
            raise NotServingError(f"{host}:{port} does not serve: {measured.failures[0]}")
        await asyncio.sleep(0.5)


async def measure(row: Row, pid: int | None, host: str, port: int, wire: bytes, num: int) -> None:
    """Warm up, then measure `NUM_REPEATS` times; says on stderr how far it is.

    Raises:
        NotServingError: it does not answer within `START_S`.
    """
    began_measuring_s = time.monotonic()
    await answers(host, port, wire, START_S, pid)
    print(f"{row.name}: serves after {time.monotonic() - began_measuring_s:.0f} s", file=sys.stderr, flush=True)
    if pid is not None:
        pin(pid, GATEWAY_CORE)
    warm = await run(host, port, wire, num=max(20, num // 4), per_s=row.per_s, num_chunks=51, seed=1)
    for repeat in range(NUM_REPEATS):
        idle_s, idle_began_s = (cpu_s(pid) if pid else 0.0), time.monotonic()
        await asyncio.sleep(2)
        idle = ((cpu_s(pid) if pid else 0.0) - idle_s) / (time.monotonic() - idle_began_s)
        before_s, began_s = (cpu_s(pid) if pid else 0.0), time.monotonic()
        measured = await run(host, port, wire, num=num, per_s=row.per_s, num_chunks=51, seed=2 + repeat)
        used_s = (cpu_s(pid) if pid else 0.0) - before_s - idle * (time.monotonic() - began_s)
        failures = measured.failures + warm.failures
        if failures:
            raise SystemExit(f"{row.name}: {len(failures)} of {num} failed, the first by: {failures[0]}")
        row.cpu_ms.append(used_s * 1e3 / num)
        row.ttft_p50_ms.append(measured.ttft_ms(0.5))
        row.ttft_p99_ms.append(measured.ttft_ms(0.99))
    print(f"{row.name}: measured [{time.monotonic() - began_measuring_s:.0f} s]", file=sys.stderr, flush=True)


def settings() -> dict[str, Any]:
    """A gateway's, whatever is measured of it: so many slots that nothing waits, and time for what a busy machine makes slow."""
    served = make_settings().models[0].model_copy(update={"max_in_flight_per_engine": 4096, "context_window_tokens": 2048})
    limits = {"connect_s": 10, "first_token_s": 600, "gap_s": 600, "request_s": 3600}
    return {"models": [served.model_dump()], "timeouts": limits, "key_cache_s": 3}


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def bench(arguments: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    os.sched_setaffinity(0, {OTHER_CORE})
    rows: list[Row] = []
    figures: dict[str, Any] = {}
    engine_port, host, wire = free_port(), "127.0.0.1", request("x", "", BODY)
    mock = [sys.executable, str(Path(__file__).with_name("mock_engine.py")), str(engine_port), str(INTERVAL_MS)]
    with process(mock, folder):
        direct = Row("the mock, directly", arguments.per_s)
        rows.append(direct)
        await measure(direct, None, host, engine_port, wire, arguments.num)

        with running_world(folder, train_tokenizer()) as world:
            world.make_secrets()
            world.serve_by(engine_port)
            ours = start(world, **settings())
            try:
                ours.wait_ready()
                admin_client.ensure_tenant(ours.target(), "bench")
                key = admin_client.create_key(ours.target(), "bench", name="bench")
                row = Row("flotilla (keys, journal, tokens)", arguments.per_s)
                rows.append(row)
                keyed = request("x", key, BODY)
                await measure(row, ours.process.pid, ours.address, 8080, keyed, arguments.num)
                per_s = round(LOAD * 1e3 / statistics.median(row.cpu_ms))
                figures["load_requests_per_s"] = per_s
                loaded, bare = (Row(f"{name}, at {LOAD:.0%} of a core", per_s) for name in ("flotilla", "the mock, directly"))
                rows += [loaded, bare]
                num = max(arguments.num, 4 * per_s)
                await measure(loaded, ours.process.pid, ours.address, 8080, keyed, num)
                with bare_syncs(ours.journal.parent / "bare", per_s) as syncs_ms:
                    await measure(bare, None, host, engine_port, wire, num)
                figures |= {f"fdatasync_p{share}_ms": round(syncs_ms[len(syncs_ms) * share // 100], 3) for share in (50, 99)}
            finally:
                stop(ours)
            figures |= await idle_streams(world, engine_port, key, arguments.streams)

        if arguments.peers is not None:
            for name, command, env in peers(arguments.peers.resolve(), folder, engine_port):
                per_s = arguments.per_s if "LiteLLM" not in name else 5.0
                num = arguments.num if "LiteLLM" not in name else 60
                port = int(command[command.index("--port") + 1])
                with process(command, folder, **env) as peer:
                    row = Row(name, per_s)
                    try:
                        await measure(row, peer.pid, host, port, wire, num)
                        rows.append(row)
                    except NotServingError as error:  # its figure is missing, so `holds` says no; the others' stand
                        print(f"{name}: {error}", file=sys.stderr)
    return rows, figures


async def profile(arguments: argparse.Namespace, folder: Path) -> None:
    """Where our gateway's time goes, by its own functions; what a function of a library or the kernel takes is its caller's.
    cProfile makes calls dearer than they are and counts waiting for a core as work: compare functions, and believe no sum."""
    engine_port, result = free_port(), folder / "profile"
    mock = [sys.executable, str(Path(__file__).with_name("mock_engine.py")), str(engine_port), str(INTERVAL_MS)]
    with process(mock, folder), running_world(folder, train_tokenizer()) as world:
        world.make_secrets()
        world.serve_by(engine_port)
        ours = start(world, python=("-m", "cProfile", "-o", str(result)), **settings())
        ours.wait_ready()
        admin_client.ensure_tenant(ours.target(), "bench")
        wire = request("x", admin_client.create_key(ours.target(), "bench", name="bench"), BODY)
        measured = await run(ours.address, 8080, wire, num=arguments.num, per_s=arguments.per_s, num_chunks=51, seed=1)
        stop(ours)
    if measured.failures:
        raise SystemExit(f"{len(measured.failures)} of {arguments.num} failed, the first by: {measured.failures[0]}")
    stats: Any = pstats.Stats(str(result))
    per_request = sorted(
        (
            (all_s, own_s, calls, where)
            for where, (_, calls, own_s, all_s, _) in stats.stats.items()
            if _is_ours(where[0]) and 4 * calls > arguments.num
        ),
        reverse=True,
    )
    print(f"{'with callees, µs':>16} {'own, µs':>9} {'calls':>7}   of one request")
    for all_s, own_s, calls, (path, line, name) in per_request[:NUM_PROFILED]:
        all_us, own_us = all_s * 1e6 / arguments.num, own_s * 1e6 / arguments.num
        print(f"{all_us:16.1f} {own_us:9.1f} {calls / arguments.num:7.1f}   {Path(path).relative_to(ROOT)}:{line} {name}")


def _is_ours(path: str) -> bool:
    return any(Path(path).is_relative_to(ROOT / package) for package in ("serving", "policies"))


async def idle_streams(world: World, engine_port: int, key: str, num: int) -> dict[str, Any]:
    """What open streams that say nothing take, in a gateway of several workers."""
    addresses = [f"127.0.0.{number}" for number in range(1, NUM_ADDRESSES + 1)]
    world.serve_by(engine_port, addresses)
    gateway = start(world, workers=NUM_WORKERS, **settings())
    try:
        gateway.wait_ready()
        await answers(gateway.address, 8080, request("x", key, BODY), 60, gateway.process.pid)
        await asyncio.sleep(2)  # every worker has found the engines
        before = rss_bytes(gateway.process.pid)
        print(f"{num:,} idle streams", file=sys.stderr, flush=True)
        clients = await hold(gateway.address, 8080, request("x", key, HELD), num, 200)
        await asyncio.sleep(2)
        taken = rss_bytes(gateway.process.pid) - before
        alive = sum(not client.transport.is_closing() for client in clients)
        for client in clients:
            client.transport.abort()
    finally:
        stop(gateway)
    return {"open_streams": alive, "idle_stream_kb": round(taken / num / 1e3, 1), "idle_stream_workers": NUM_WORKERS}


def peers(folder: Path, scratch: Path, engine_port: int) -> list[tuple[str, list[str], dict[str, str]]]:
    """How each peer is started; those that are not installed are left out, and the table shows it."""
    url = f"http://127.0.0.1:{engine_port}"
    found = []
    for name, program, policy in (
        ("vllm-router 0.1.17 round_robin", "vllm-router", "round_robin"),
        ("smg 1.13.0 cache_aware", "smg", "cache_aware"),
    ):
        path = folder / "rust" / "bin" / program
        command = [str(path), *(["launch"] if program == "smg" else []), "--worker-urls", url, "--policy", policy]
        command += [
            "--host",
            "127.0.0.1",
            "--port",
            str(free_port()),
            "--prometheus-port",
            str(free_port()),
            "--log-level",
            "error",
        ]
        if path.exists():
            found.append((name, command, {}))
    path = folder / "litellm" / "bin" / "litellm"
    if path.exists():
        model = {"model_name": "small", "litellm_params": {"model": "openai/small", "api_base": f"{url}/v1", "api_key": "x"}}
        config = scratch / "litellm.json"
        config.write_text(json.dumps({"model_list": [model]}))
        command = [str(path), "--config", str(config), "--host", "127.0.0.1", "--port", str(free_port()), "--num_workers", "1"]
        env = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # or it does not start
        }
        found.append(("LiteLLM 1.106.2, one worker", command, env))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--peers", type=Path, help="folder with the environments `rust` and `litellm`")
    parser.add_argument("--num", type=int, default=400, help="requests of a repeat")
    parser.add_argument("--per-s", type=float, default=200.0, help="their rate")
    parser.add_argument("--streams", type=int, default=10_000, help="idle streams held open")
    parser.add_argument("--profile", action="store_true", help="show where the time of our gateway goes, and nothing else")
    arguments = parser.parse_args()
    where = machine()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the mock and the client hold every stream too
    with tempfile.TemporaryDirectory() as folder:
        if arguments.profile:
            uvloop.run(profile(arguments, Path(folder)))
            return 0
        rows, figures = uvloop.run(bench(arguments, Path(folder)))
    direct, ours, loaded, bare, *others = rows
    lines = ["| gateway | CPU-ms a request | spread | requests/s | TTFT p50, ms | TTFT p99, ms |", "|---|---|---|---|---|---|"]
    for row in rows:
        p50, p99 = statistics.median(row.ttft_p50_ms), statistics.median(row.ttft_p99_ms)
        cpu = "–" if row in (direct, bare) else f"{statistics.median(row.cpu_ms):.2f}"
        spread = "–" if row in (direct, bare) else f"{min(row.cpu_ms):.2f} to {max(row.cpu_ms):.2f}"
        lines.append(f"| {row.name} | {cpu} | {spread} | {row.per_s:.0f} | {p50:.2f} | {p99:.2f} |")
    cpu_ms = statistics.median(ours.cpu_ms)
    added = [
        statistics.median(getattr(loaded, name)) - statistics.median(getattr(bare, name)) - figures[f"fdatasync_{end}_ms"]
        for name, end in (("ttft_p50_ms", "p50"), ("ttft_p99_ms", "p99"))
    ]
    figures |= {
        "cpu_ms": round(cpu_ms, 3),
        "requests_per_s_per_core": round(1000 / cpu_ms),
        "cpu_ms_at_load": round(statistics.median(loaded.cpu_ms), 3),
        "vcpus_for_1667_per_s": round(1667 * statistics.median(loaded.cpu_ms) / 1e3 / LOAD, 2),
        "memory_gb_for_20000_streams": round(20_000 * figures["idle_stream_kb"] / 1e6, 2),
        "added_ttft_p50_ms_net_of_fdatasync": round(added[0], 2),
        "added_ttft_p99_ms_net_of_fdatasync": round(added[1], 2),
        "at_requests_per_s": arguments.per_s,
        **{f"cpu_ms_{row.name.split()[0]}": round(statistics.median(row.cpu_ms), 3) for row in others},
    }
    wanted = {
        "smg": "cpu_ms_smg" in figures and cpu_ms <= figures["cpu_ms_smg"],
        "litellm": "cpu_ms_LiteLLM" in figures and cpu_ms <= figures["cpu_ms_LiteLLM"] / 30,
        "added_ttft": added[0] <= 1 and added[1] <= 5,
        "per_core": 1000 / cpu_ms >= 600,
        "idle_stream": figures["idle_stream_kb"] <= 60 and figures["open_streams"] >= 10_000,
    }
    figures["holds"] = wanted
    lines.append("")
    lines.append(
        f"1,667 requests/s at {LOAD:.0%} of each core: {figures['vcpus_for_1667_per_s']} vCPUs. 20,000 concurrent streams at"
        f" {figures['idle_stream_kb']} KB: {figures['memory_gb_for_20000_streams']} GB above the workers' own."
        f" {figures['open_streams']:,} streams were open at once."
    )
    text = "\n".join(
        [
            *lines,
            "",
            f"{where}. {arguments.num} requests a repeat, {NUM_REPEATS} repeats, medians.",
            "",
            "```json",
            json.dumps(figures),
            "```",
        ]
    )
    print("\n".join(lines), "\n", where)
    if arguments.write:
        write_section("bench-gateway", text)
    print(json.dumps(figures))
    return 0 if all(wanted.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
