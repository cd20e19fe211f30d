"""The engine pod's process, on the emulated AWS, around a fake engine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from serving import series
from serving.models.convert import CANARIES_NAME, CONVERSION_NAME, Conversion
from serving.models.publish import publish
from serving.target import Target
from tests.serving.engine.conftest import CANARIES, FAKE, PodProcess, end_session, free_address, session_members, start_pod
from tests.serving.models.conftest import HOME, make_resources, make_target

pytestmark = pytest.mark.emulated_aws


@pytest.fixture(scope="module")
def published(ministack_url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, str]:
    """A region with a release that the fake engine can serve; and the release's id."""
    folder = tmp_path_factory.mktemp("conversion")
    (folder / "files").mkdir()
    (folder / "files" / "model.safetensors").write_bytes(bytes(range(256)) * 10_000)
    (folder / CANARIES_NAME).write_bytes(msgspec.json.encode(CANARIES["reference"]))
    (folder / CONVERSION_NAME).write_bytes(msgspec.json.encode(Conversion("Tiny", "a test", 2048, {"dtype": "bfloat16"})))
    target = make_target(HOME, endpoint_url=ministack_url)
    make_resources(target)
    return target, publish(target, HOME, "small", folder).release_id


@pytest.fixture
def pod(published: tuple[Target, str], tmp_path: Path) -> Iterator[PodProcess]:
    target, _ = published
    pod = start_pod(sys.executable, target, HOME, tmp_path / "pod", "--max-num-seqs", "8", PYTHONPATH=str(FAKE))
    yield pod
    end_session(pod.process)


def test_a_pod_serves_what_was_published_and_ends_with_0_when_told_to(pod: PodProcess, published: tuple[Target, str]) -> None:
    pod.wait_ready(30)
    assert pod.status() == {"ready": True, "phase": "serving", "detail": "", "release_id": published[1], "model": "small"}
    assert pod.get("/livez")[0] == 200
    assert pod.end() == 0
    assert session_members(pod.process) == []
    assert pod.get("/health", 8000)[0] == 0


def test_it_exposes_the_engines_series_and_no_others(pod: PodProcess) -> None:
    pod.wait_ready(30)
    names = {name.split("{")[0] for name in pod.samples()} - {
        "flotilla_engine_restarts_created",
        "flotilla_engine_canary_tokens_created",
    }
    assert names == {
        one.name
        for one in (
            series.ENGINE_READY,
            series.ENGINE_RESTARTS,
            series.ENGINE_PHASE_SECONDS,
            series.ENGINE_FETCH_BYTES,
            series.CANARY_TOKENS,
        )
    }
    assert pod.samples()['flotilla_engine_fetch_bytes{model="small"}'] == 2_560_000


def test_a_drain_answers_once_requests_have_finished_and_the_pod_stays_unready(pod: PodProcess) -> None:
    pod.wait_ready(30)
    answers: list[tuple[int, bytes]] = []
    asking = threading.Thread(target=lambda: answers.append(pod.get("/drain")))
    asking.start()
    pod.wait_for(lambda: pod.get("/readyz")[0] == 503, 5)
    assert pod.status()["phase"] == "draining"
    asking.join(10)
    assert [status for status, _ in answers] == [200]
    assert pod.get("/health", 8000)[0] == 200, "the engine stays until the pod is told to end"
    assert pod.end() == 0


def test_an_engine_does_not_outlive_a_supervisor_that_is_killed(pod: PodProcess) -> None:
    pod.wait_ready(30)
    os.kill(pod.process.pid, signal.SIGKILL)
    pod.process.wait()
    pod.wait_for(lambda: pod.get("/health", 8000)[0] == 0, 5)


def test_probes_are_answered_while_the_registry_is_empty(ministack_url: str, tmp_path: Path) -> None:
    target = make_target(HOME, endpoint_url=ministack_url)
    tables = {**target.regions[HOME].tables, "registry": "not-made-yet"}
    target = msgspec.structs.replace(target, regions={HOME: msgspec.structs.replace(target.regions[HOME], tables=tables)})
    pod = start_pod(sys.executable, target, HOME, tmp_path / "pod", PYTHONPATH=str(FAKE))
    try:
        pod.wait_for(lambda: pod.status().get("detail", "").startswith("waiting"), 20)
        assert (pod.get("/livez")[0], pod.get("/readyz")[0], pod.status()["phase"]) == (200, 503, "fetch")
        assert pod.end() == 0
    finally:
        end_session(pod.process)


def run_main(**env: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("FLOTILLA_")}
    return subprocess.run(
        [sys.executable, "-m", "serving.engine"], env={**base, **env}, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_missing_environment_is_one_line() -> None:
    done = run_main()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "FLOTILLA_SETTINGS_FILE, FLOTILLA_MODEL_CACHE_DIR, FLOTILLA_POD_IP must be set" in done.stderr


def test_a_bad_settings_document_names_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"region": 7}')
    settings = str(tmp_path / "engine.json")
    done = run_main(FLOTILLA_SETTINGS_FILE=settings, FLOTILLA_MODEL_CACHE_DIR=str(tmp_path), FLOTILLA_POD_IP="127.0.0.1")
    assert done.returncode == 2
    assert "engine.json: region: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_ops_port_is_one_line_naming_the_address(published: tuple[Target, str], tmp_path: Path) -> None:
    host = free_address()
    with socket.create_server((host, 8001)):
        pod = start_pod(sys.executable, published[0], HOME, tmp_path / "pod", FLOTILLA_POD_IP=host)
        assert pod.process.wait(30) == 2
    (line,) = pod.log.read_text().splitlines()
    assert line.startswith(f"serving.engine: {host}: Address already in use")
