"""Several workers in one pod: they share a port, die alone, come back with their journals, and drain together."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.request import urlopen

import aiohttp
import pytest
from gateway_process import Process, World, running_world, start, stop
from gateway_support import Behaviour, FakeEngine, make_settings
from prometheus_client.parser import text_string_to_metric_families

from serving.gateway import admin_client
from serving.gateway.worker_metrics import merged
from serving.metering.events import Outcome

BODY = {"model": "small", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}


def test_metrics_of_workers_stand_side_by_side_under_one_head() -> None:
    own = '# HELP a_total A\n# TYPE a_total counter\na_total{model="small"} 1.0\n# TYPE b gauge\nb 5.0\n'
    other = '# HELP a_total A\n# TYPE a_total counter\na_total{model="small"} 2.0\n# TYPE c gauge\nc 0.5 17\n'
    assert merged({0: own, 3: other}) == (
        "# HELP a_total A\n# TYPE a_total counter\n"
        'a_total{worker="0",model="small"} 1.0\na_total{worker="3",model="small"} 2.0\n'
        '# TYPE b gauge\nb{worker="0"} 5.0\n# TYPE c gauge\nc{worker="3"} 0.5 17\n'
    )
    assert merged({}) == ""


PARENT = """
import os, signal, sys, time
from serving.gateway.workers import Workers

def work(number):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.write(1, f"\\n{number} {os.getpid()}\\n".encode())
    {body}
    time.sleep(60)
    return 1

sys.exit(Workers(2, work, on_stop=lambda: print("stopping", flush=True)).run())
"""


def parent(body: str) -> subprocess.Popen[str]:
    script = PARENT.replace("{body}", body)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def started(running: subprocess.Popen[str]) -> tuple[int, int]:
    """Number and pid of the next worker that starts; log lines stand in between."""
    assert running.stdout is not None
    while not re.fullmatch(r"\d+ \d+\n", line := running.stdout.readline()):
        assert line, "the parent has ended"
    number, pid = line.split()
    return int(number), int(pid)


def test_a_dead_worker_is_started_again_and_the_others_go_on() -> None:
    running = parent("pass")
    pids = dict(started(running) for _ in range(2))
    os.kill(pids[1], signal.SIGKILL)
    again, pid = started(running)
    assert again == 1
    assert pid != pids[1]
    os.kill(pids[0], 0)
    running.terminate()
    assert running.wait(10) == 0
    for gone in (pids[0], pid):
        with pytest.raises(ProcessLookupError):
            os.kill(gone, 0)


def test_workers_end_with_a_parent_that_is_killed() -> None:
    running = parent("pass")
    pids = dict(started(running) for _ in range(2))
    running.kill()
    running.wait()
    deadline_s = time.monotonic() + 5
    for pid in pids.values():
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1]:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)


@pytest.mark.parametrize(("body", "code"), [("if number == 1: return 2", 2)])
def test_a_refusal_in_the_first_life_ends_all(body: str, code: int) -> None:
    running = parent(body)
    assert running.wait(10) == code


def test_a_refusal_in_a_later_life_is_tried_again(tmp_path: Path) -> None:
    mark = tmp_path / "died"
    running = parent(
        f"if number == 1 and not os.path.exists({str(mark)!r}): open({str(mark)!r}, 'w'); os._exit(7)\n"
        f"    elif number == 1 and os.path.getsize({str(mark)!r}) == 0: open({str(mark)!r}, 'w').write('x'); return 2"
    )
    numbers = [started(running)[0] for _ in range(4)]
    assert sorted(numbers[:2]) == [0, 1]
    assert numbers[2:] == [1, 1]
    running.terminate()
    assert running.wait(10) == 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: bytes) -> Iterator[tuple[World, Process]]:
    """A gateway of two workers."""
    with running_world(tmp_path_factory.mktemp("world"), tokenizer_json) as world:
        world.make_secrets()
        roomy = make_settings().models[0].model_copy(update={"max_in_flight_per_engine": 100})
        gateway = start(world, workers=2, models=[roomy.model_dump()])
        try:
            gateway.wait_ready()
            yield world, gateway
        finally:
            stop(gateway)


@pytest.fixture
async def engine(pair: tuple[World, Process]) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    pair[0].serve_by(engine.port)
    yield engine
    await engine.stop()


def scraped(gateway: Process) -> dict[tuple[str, str], float]:
    """Samples by name and worker."""
    with urlopen(f"{gateway.ops_url}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert len({family.name for family in families}) == len(families)
    found: dict[tuple[str, str], float] = {}
    for family in families:
        for sample in family.samples:
            place = (sample.name, sample.labels["worker"])
            found[place] = found.get(place, 0.0) + sample.value
    return found


async def in_flight(gateway: Process) -> list[float]:
    """Requests in each worker."""
    served = await asyncio.to_thread(scraped, gateway)
    return [served.get(("flotilla_in_flight_requests", str(number)), 0.0) for number in (0, 1)]


async def stream(http: aiohttp.ClientSession, gateway: Process, key: str) -> bytes:
    async with http.post(
        f"{gateway.base_url}/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {key}"}
    ) as answer:
        return await answer.read() if answer.status == 200 else b""


DEAD_AFTER_S = 5.0


@pytest.mark.emulated_aws
async def test_a_revoked_key_is_dead_in_every_worker_within_five_seconds_under_load(
    pair: tuple[World, Process], engine: FakeEngine
) -> None:
    """Each worker remembers keys by itself, and one in use is renewed while requests go on with what is remembered."""
    _, gateway = pair
    target = gateway.target()
    await asyncio.to_thread(admin_client.ensure_tenant, target, "leaving")
    made = await asyncio.to_thread(admin_client.create_key_record, target, "leaving")
    kept = await asyncio.to_thread(admin_client.create_key, target, "leaving")
    answers: list[tuple[str, float, int]] = []
    is_over = asyncio.Event()
    async with asyncio.timeout(50), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:

        async def ask(key: str) -> None:
            while not is_over.is_set():
                began_s = time.monotonic()
                headers = {"authorization": f"Bearer {key}"}
                async with http.get(f"{gateway.base_url}/v1/models", headers=headers) as answer:
                    answers.append((key, began_s, answer.status))
                await asyncio.sleep(0.02)

        asking = [asyncio.create_task(ask(key)) for key in [made["key"]] * 6 + [kept] * 2]
        while {status for _, _, status in answers[-50:]} != {200} or len(answers) < 100:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(admin_client.revoke_key, target, made["key_id"])
        revoked_s = time.monotonic()
        while time.monotonic() < revoked_s + DEAD_AFTER_S + 1:
            await asyncio.sleep(0.1)
        is_over.set()
        await asyncio.gather(*asking)
        pids = worker_pids(gateway)
        after = [status for key, began_s, status in answers if key == made["key"] and began_s > revoked_s + DEAD_AFTER_S]
        assert set(after) == {401}
        assert {status for key, _, status in answers if key == kept} == {200}, "the tenant's other key works on"
        assert len(pids) == 2
        # 401 by each worker for itself: of so many connections each has had its share.
        for number in (0, 1):
            served: dict[tuple[str, str], float] = {}
            while not served.get(("flotilla_requests_total", str(number))):
                body = {"model": "small", "messages": BODY["messages"]}
                async with http.post(
                    f"{gateway.base_url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {made['key']}"}
                ) as answer:
                    assert answer.status == 401
                served = await asyncio.to_thread(answered, gateway, "401")


def answered(gateway: Process, status: str) -> dict[tuple[str, str], float]:
    """Requests that each worker has answered so; workers with none are left out."""
    with urlopen(f"{gateway.ops_url}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.name == "flotilla_requests_total"]
    return {(sample.name, sample.labels["worker"]): sample.value for sample in samples if sample.labels["code"] == status}


@pytest.mark.emulated_aws
async def test_two_workers_share_a_port_die_alone_and_drain_together(pair: tuple[World, Process], engine: FakeEngine) -> None:
    _, gateway = pair
    target = gateway.target()
    await asyncio.to_thread(admin_client.ensure_tenant, target, "acme")
    key = await asyncio.to_thread(admin_client.create_key, target, "acme", name="test")
    async with asyncio.timeout(50), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        served: dict[tuple[str, str], float] = {}
        while len(served) < 2:  # both have found this engine: that one is ready may be said of the last test's
            await asyncio.gather(*(stream(http, gateway, key) for _ in range(8)))
            served = await asyncio.to_thread(answered, gateway, "200")
        engine.behaviour = Behaviour(tokens=["x"] * 40, delay_s=0.05)
        streams = [asyncio.create_task(stream(http, gateway, key)) for _ in range(40)]
        while sum(counts := await in_flight(gateway)) < 40:
            await asyncio.sleep(0.05)
        victim = worker_pids(gateway)[1]
        os.kill(victim, signal.SIGKILL)
        outcomes = await asyncio.gather(*streams, return_exceptions=True)
        whole = [outcome for outcome in outcomes if isinstance(outcome, bytes) and outcome.endswith(b"data: [DONE]\n\n")]
        assert len(whole) == counts[0]
        while worker_pids(gateway).get(1, victim) == victim:
            await asyncio.sleep(0.05)
        crashed: list[object] = []
        while len(crashed) < counts[1]:  # its place was taken, and its journal recovered
            crashed = [closed for closed in gateway.closed() if closed.outcome is Outcome.GATEWAY_CRASH]
            await asyncio.sleep(0.05)
        assert len(crashed) == counts[1]
        engine.behaviour = Behaviour(tokens=["x"] * 30, delay_s=0.05)
        streams = [asyncio.create_task(stream(http, gateway, key)) for _ in range(10)]
        while sum(await in_flight(gateway)) < 10:
            await asyncio.sleep(0.05)
        gateway.process.terminate()
        assert all(body.endswith(b"data: [DONE]\n\n") for body in await asyncio.gather(*streams))
    assert await asyncio.to_thread(gateway.process.wait, 20) == 0
    assert {closed.open.gateway for closed in gateway.closed()} <= {"gateway-0-0", "gateway-0-1"}


def worker_pids(gateway: Process) -> dict[int, int]:
    """The pid of each worker's latest life, from the parent's log."""
    lines = [json.loads(line) for line in (gateway.journal.parent / "log").read_bytes().splitlines() if b"worker_started" in line]
    return {line["worker"]: line["pid"] for line in lines}
