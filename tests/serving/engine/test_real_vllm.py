"""The real converter, the real supervisor and the real vLLM, once.

One start, one proof, one return after kill -9 of the engine's core, and an end in the middle of the start after that. The
tests run in order on one pod: each start costs a minute.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from serving.models.conversions import converted, engine_python
from serving.models.files import Progress, describe_folder
from serving.models.publish import publish
from serving.target import Target
from tests.serving.engine.conftest import PodProcess, end_session, is_alive, session_members, start_pod
from tests.serving.models.conftest import HOME, make_resources, make_target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHAPE = ("--enforce-eager", "--max-num-seqs", "8", "--max-model-len", "8192")
START_TIMEOUT_S = 300


@pytest.fixture(scope="module")
def published(ministack_url: str) -> tuple[Target, str]:
    """The real model, published; and its release's id."""
    conversion = converted("smollm2", lambda _: None)
    target = make_target(HOME, endpoint_url=ministack_url)
    make_resources(target)
    return target, publish(target, HOME, "small", conversion).release_id


@pytest.fixture(scope="module")
def pod(published: tuple[Target, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodProcess]:
    folder = tmp_path_factory.mktemp("engine") / "pod"
    pod = start_pod(str(engine_python()), published[0], HOME, folder, *SHAPE, VLLM_CPU_KVCACHE_SPACE="1")
    yield pod
    end_session(pod.process)


def complete(pod: PodProcess, **fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "small", "temperature": 0, **fields}).encode()
    request = Request(f"http://{pod.host}:8000/v1/completions", data=body, headers={"content-type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def log_lines(pod: PodProcess, event: str) -> list[dict[str, Any]]:
    lines = [line for line in pod.log.read_text(errors="replace").splitlines() if line.startswith('{"') and f'"{event}"' in line]
    return [json.loads(line) for line in lines]


def group(pod: PodProcess, needle: str) -> int:
    """Process id of the one member of the pod's session whose command line has `needle`."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            session = int((path / "stat").read_text().rsplit(")", 1)[1].split()[3])
            if session == pod.process.pid and needle in (path / "cmdline").read_text().replace("\0", " "):
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"no {needle} in {session_members(pod.process)}")


def test_it_is_ready_with_the_release_that_was_published(pod: PodProcess, published: tuple[Target, str]) -> None:
    took_s = pod.wait_ready(START_TIMEOUT_S)
    status = pod.status()
    assert (status["ready"], status["phase"], status["release_id"]) == (True, "serving", published[1])
    (ledger,) = log_lines(pod, "cold_start")
    print(f"ready after {took_s:.0f} s: {ledger}")
    assert ledger["canaries"] == "reference"


def test_its_answers_are_the_models_and_its_counters_less_the_canaries_are_ours(pod: PodProcess) -> None:
    def counted() -> tuple[float, float]:
        vllm, own = pod.samples(8000), pod.samples()
        totals = [
            sum(value for name, value in vllm.items() if name.split("{")[0] == f"vllm:{kind}_tokens_total")
            for kind in ("prompt", "generation")
        ]
        spent = [own[f'flotilla_engine_canary_tokens_total{{kind="{kind}",model="small"}}'] for kind in ("input", "output")]
        return totals[0] - spent[0], totals[1] - spent[1]

    assert counted() == (0, 0)
    answer = complete(pod, prompt="The capital of France is", max_tokens=4)
    assert answer["choices"][0]["text"].startswith(" Paris")
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert counted() == (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])


def test_kill_9_of_the_engines_core_heals_without_a_hand(pod: PodProcess) -> None:
    core, worker, server = (
        group(pod, needle) for needle in ("VLLM::EngineCore", "VLLM::Worker", "vllm.entrypoints.openai.api_server")
    )
    os.kill(core, signal.SIGKILL)
    lost_s = pod.wait_for(lambda: pod.get("/readyz")[0] == 503, 10)
    back_s = pod.wait_ready(START_TIMEOUT_S)
    print(f"not ready after {lost_s:.1f} s, back after {back_s:.0f} s")
    assert not any(is_alive(pid) for pid in (core, worker, server))
    assert pod.samples()['flotilla_engine_restarts_total{model="small",reason="exited"}'] == 1
    assert complete(pod, prompt="The capital of France is", max_tokens=2)["choices"][0]["text"].startswith(" Paris")


def test_kill_9_of_the_api_server_takes_the_rest_with_it_and_the_pod_can_leave_meanwhile(pod: PodProcess) -> None:
    core, worker, server = (
        group(pod, needle) for needle in ("VLLM::EngineCore", "VLLM::Worker", "vllm.entrypoints.openai.api_server")
    )
    os.kill(server, signal.SIGKILL)
    lost_s = pod.wait_for(lambda: pod.get("/readyz")[0] == 503, 10)
    started_s = pod.wait_for(lambda: len(log_lines(pod, "engine_started")) == 3, 30)
    print(f"not ready after {lost_s:.1f} s, started again after {started_s:.1f} s")
    assert not any(is_alive(pid) for pid in (core, worker, server))
    assert pod.end() == 0
    assert session_members(pod.process) == []


def test_a_conversion_made_anew_has_the_same_bytes(
    published: tuple[Target, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = describe_folder(converted("smollm2", lambda _: None) / "files")
    monkeypatch.setenv("FLOTILLA_CACHE", str(tmp_path))
    steps: list[Progress] = []
    assert describe_folder(converted("smollm2", steps.append) / "files") == kept
    assert {step.detail for step in steps} >= {"dequantising", "asking the canary prompts"}
