"""The supervisor around a fake engine that hangs, lies, dies and refuses to go."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from serving.engine.source import Obtained
from serving.engine.state import Phase
from serving.models.documents import FetchError
from serving.models.files import Progress
from serving.models.registry import AliasNotFoundError
from tests.serving.engine.conftest import RELEASE, Pod, ReadySource, Start, is_alive


async def test_an_engine_is_ready_once_it_gave_the_known_answer(start: Start) -> None:
    pod = start()
    assert not pod.supervisor.is_ready
    await pod.until_ready()
    assert (pod.supervisor.status.phase, pod.supervisor.status.release_id) == (Phase.SERVING, RELEASE)
    assert (await pod.control())["completions"] == 1
    assert pod.metric('flotilla_engine_ready{model="small"}') == 1
    assert pod.metric('flotilla_engine_canary_tokens_total{kind="input",model="small"}') == 3
    assert pod.metric('flotilla_engine_canary_tokens_total{kind="output",model="small"}') == 1


async def test_the_engine_gets_its_arguments_and_no_credentials(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    pod = start(engine_args=("--max-num-seqs", "8"))
    await pod.until_ready()
    seen = await pod.control()
    assert seen["args"][seen["args"].index("--host") + 1] == pod.supervisor.host
    assert seen["args"][-4:] == ["--dtype", "bfloat16", "--max-num-seqs", "8"]
    assert [name for name in seen["env"] if name.startswith("AWS_")] == []
    assert seen["env"]["HF_HUB_OFFLINE"] == "1"


async def test_the_cold_start_is_one_line_of_the_log_and_in_the_metrics(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOAD_S", "0.3")
    with capture_logs() as logs:
        pod = start()
        await pod.until_ready()
    (ledger,) = [line for line in logs if line["event"] == "cold_start"]
    assert (ledger["fetch_s"], ledger["fetch_gb_per_s"], ledger["verify_s"], ledger["verify_gb_per_s"]) == (0.5, 2.0, 0.25, 4.0)
    assert ledger["load_s"] >= 0.3
    assert pod.metric('flotilla_engine_start_phase_seconds{model="small",phase="load"}') == pytest.approx(
        ledger["load_s"], abs=0.001
    )
    assert pod.metric('flotilla_engine_fetch_bytes{model="small"}') == 1e9


async def test_a_wrong_answer_is_never_ready_and_in_the_end_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WRONG", "1")
    pod = start()
    readiness: list[bool] = []
    while not pod.running.done():
        readiness.append(pod.supervisor.is_ready)
        await asyncio.sleep(0.01)
    assert (pod.running.result(), any(readiness)) == (1, False)
    assert pod.restarts("canary") == 3
    assert "was answered ' noise', must begin with ' three'" in pod.supervisor.status.detail


async def test_an_engine_that_ends_while_loading_is_given_up_with_its_status(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EXIT", "3")
    pod = start()
    assert await asyncio.wait_for(pod.running, 20) == 1
    assert pod.supervisor.status.phase is Phase.FAILED
    assert pod.supervisor.status.detail == "4 quick failures in a row, the last: the engine ended with status 3 while loading"


async def test_an_engine_that_never_gets_healthy_is_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOAD_S", "1000")
    pod = start(start_timeout_s=0.3)
    await pod.until(lambda: pod.restarts("silent") == 1)


async def kill_9(pod: Pod, which: str) -> dict[str, Any]:
    seen = await pod.control()
    os.kill(seen[which], signal.SIGKILL)
    return seen


async def test_kill_9_of_the_engine_costs_readiness_at_once_and_it_comes_back(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    await asyncio.sleep(0.3)
    before = await kill_9(pod, "pid")
    assert await pod.until(lambda: not pod.supervisor.is_ready) < 0.5
    await pod.until_ready()
    after = await pod.control()
    assert after["pid"] != before["pid"]
    assert not is_alive(before["child"]), "what the engine left behind is gone too"
    assert pod.restarts("exited") == 1


async def test_the_ledger_of_a_restart_has_nothing_fetched(start: Start) -> None:
    with capture_logs() as logs:
        pod = start()
        await pod.until_ready()
        await asyncio.sleep(0.3)
        await kill_9(pod, "pid")
        await pod.until(lambda: pod.restarts("exited") == 1)
        await pod.until_ready()
    ledgers = [(line["fetch_s"], line["fetch_gb_per_s"], line["verify_s"]) for line in logs if line["event"] == "cold_start"]
    assert ledgers == [(0.5, 2.0, 0.25), (0.0, 0.0, 0.0)]
    assert pod.metric('flotilla_engine_start_phase_seconds{model="small",phase="fetch"}') == 0


async def test_canary_tokens_count_from_the_engines_start_as_its_own_counters_do(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    await asyncio.sleep(0.3)
    await kill_9(pod, "pid")
    await pod.until(lambda: pod.restarts("exited") == 1)
    await pod.until_ready()
    assert pod.metric('flotilla_engine_canary_tokens_total{kind="output",model="small"}') == 1


async def test_work_without_progress_is_a_stall_and_ends_in_a_restart(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    await pod.control(running=2, frozen=True)
    took_s = await pod.until(lambda: pod.restarts("stalled") == 1)
    assert took_s >= 0.5
    await pod.until_ready()


async def test_work_with_progress_is_left_alone(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    await pod.control(running=2)
    await asyncio.sleep(1.2)  # twice the stall limit
    assert pod.supervisor.is_ready
    await pod.control(running=0)
    assert pod.restarts("stalled") == 0


async def test_an_idle_engine_that_hangs_is_found_by_the_first_request(start: Start) -> None:
    """The request never reaches the engine's numbers: the open connection gives it away, and a canary proves it."""
    pod = start()
    await pod.until_ready()
    await pod.control(frozen=True)
    with socket.create_connection((pod.supervisor.host, 8000)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: 15\r\n\r\n" + b'{"prompt": "a"}')
        await pod.until(lambda: pod.restarts("stalled") == 1)
    await pod.until_ready()


async def test_a_connection_that_is_held_for_nothing_costs_a_canary_and_no_restart(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    with socket.create_connection((pod.supervisor.host, 8000)):
        await pod.until(lambda: pod.metric('flotilla_engine_canary_tokens_total{kind="output",model="small"}') >= 2)
        await asyncio.sleep(0.7)
    assert pod.supervisor.is_ready
    assert [pod.restarts(reason) for reason in ("exited", "stalled", "silent", "canary")] == [0] * 4


async def test_an_idle_engine_is_asked_nothing(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    await asyncio.sleep(1.2)
    assert (await pod.control())["completions"] == 1


async def test_silence_costs_readiness_first_and_then_the_engine(start: Start) -> None:
    pod = start(probe_timeout_s=0.2)
    await pod.until_ready()
    await pod.control(silent=True)
    await pod.until(lambda: not pod.supervisor.is_ready)
    assert pod.restarts("silent") == 0
    await pod.until(lambda: pod.restarts("silent") == 1)
    await pod.until_ready()


async def test_an_engine_that_says_it_is_dead_is_restarted(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    await pod.control(dead=True)
    await pod.until(lambda: pod.restarts("exited") == 1)
    await pod.until_ready()


async def test_leaving_is_not_ready_at_once_waits_for_requests_and_ends_with_0(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    await pod.control(running=1)
    seen = await pod.control()
    pod.supervisor.leave()
    assert not pod.supervisor.is_ready
    await asyncio.sleep(0.5)
    assert is_alive(seen["pid"]), "a request runs"
    assert pod.supervisor.status.phase is Phase.DRAINING
    await pod.control(running=0)
    assert await asyncio.wait_for(pod.running, 5) == 0
    assert not is_alive(seen["pid"])
    assert not is_alive(seen["child"])


async def test_requests_that_do_not_end_are_cut_off_when_the_drain_is_over(start: Start) -> None:
    pod = start(drain_s=0.5)
    await pod.until_ready()
    await pod.control(running=3, frozen=True)
    with capture_logs() as logs:
        pod.supervisor.leave()
        assert await asyncio.wait_for(pod.running, 5) == 0
    assert [line["requests_left"] for line in logs if line["event"] == "drained"] == [3]


async def test_an_engine_that_does_not_want_to_go_is_killed(start: Start) -> None:
    pod = start(stop_grace_s=0.3)
    await pod.until_ready()
    await pod.control(refuse_term=True)
    seen = await pod.control()
    pod.supervisor.leave()
    assert await asyncio.wait_for(pod.running, 5) == 0
    assert not is_alive(seen["pid"])


async def test_a_drain_that_is_asked_for_leaves_the_engine_until_the_pod_is_told_to_end(start: Start) -> None:
    pod = start()
    await pod.until_ready()
    await asyncio.wait_for(pod.supervisor.drain(), 5)
    assert not pod.supervisor.is_ready
    assert is_alive((await pod.control())["pid"])
    assert not pod.running.done()


async def test_leaving_while_the_engine_loads_ends_it_without_waiting(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOAD_S", "1000")
    pod = start()
    await pod.until(lambda: pod.supervisor.status.phase is Phase.LOAD)
    await asyncio.sleep(0.2)
    pod.supervisor.leave()
    assert await asyncio.wait_for(pod.running, 3) == 0


class EmptyRegistry(ReadySource):
    """Names no release before `published` is set."""

    published = threading.Event()

    def current(self) -> str:
        if not self.published.is_set():
            raise AliasNotFoundError("the registry names no release for small")
        return super().current()


async def test_an_empty_registry_is_waited_for_and_told(start: Start) -> None:
    EmptyRegistry.published.clear()
    pod = start(EmptyRegistry)
    await pod.until(lambda: pod.supervisor.status.detail == "waiting: the registry names no release for small")
    EmptyRegistry.published.set()
    await pod.until_ready()


class BrokenBucket(ReadySource):
    """Has a corrupt object."""

    def obtain(self, release_id: str, on_progress: Callable[[Progress], None], stop: threading.Event) -> Obtained:
        raise FetchError("s3://artifacts: corrupt: releases/small/aaa/model.safetensors")


async def test_a_release_that_cannot_be_had_is_given_up_naming_the_object(start: Start) -> None:
    pod = start(BrokenBucket)
    assert await asyncio.wait_for(pod.running, 5) == 1
    assert pod.supervisor.status.detail.endswith("corrupt: releases/small/aaa/model.safetensors")


class SlowBucket(ReadySource):
    """Fetches until it is told to stop."""

    def obtain(self, release_id: str, on_progress: Callable[[Progress], None], stop: threading.Event) -> Obtained:
        on_progress(Progress("fetch", 3_000_000, 9_000_000))
        stop.wait(10)
        raise FetchError("stopped")


async def test_leaving_in_the_middle_of_a_fetch_does_not_wait_for_it(start: Start) -> None:
    pod = start(SlowBucket)
    await pod.until(lambda: pod.supervisor.status.detail == "3 of 9 MB")
    pod.supervisor.leave()
    assert await asyncio.wait_for(pod.running, 1) == 0


async def test_arguments_that_do_not_fit_are_given_up_at_once(start: Start) -> None:
    pod = start(engine_args=("--dtype", "float16"))
    assert await asyncio.wait_for(pod.running, 5) == 1
    assert pod.supervisor.status.detail.startswith("--dtype is set by the release and by the pod")
