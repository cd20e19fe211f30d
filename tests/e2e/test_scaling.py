"""Two to four twins under `flotilla up`: they come with load, they go without it, and nobody's stream is cut.

Times of the policy are seconds here (the stack file of local has them), so a minute shows what takes half an hour.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from e2e_support import LocalRegion, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PORT_OFFSET = 22_000
WORKLOAD = "us-east-2.serving.engine-medium"
OUT_S, IN_S = 60, 120
NUM_CLIENTS = 40
"""At eight in flight each, more than four engines should hold."""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegion]:
    state = tmp_path_factory.mktemp("scaling") / "local"
    region = LocalRegion(state, {**os.environ, "FLOTILLA_STATE": str(state)})
    try:
        region.run("up", "--engine", "twin", "--port-offset", str(PORT_OFFSET))
        yield region
    finally:
        region.run("down", "--purge", check=False)
        shutil.rmtree(state, ignore_errors=True)


class Load:
    """Clients that stream one answer after the other until told to stop; what came of each stream."""

    def __init__(self, region: LocalRegion, num_clients: int) -> None:
        self.finished: list[str | None] = []
        """Finish reasons, the streams' own last words."""
        self.broken: list[str] = []
        self._stop = threading.Event()
        self._api = openai.OpenAI(base_url=region.home.base_url, api_key=region.target.api_key, max_retries=0, timeout=60)
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            question: Any = [{"role": "user", "content": f"Client {number}, question {turn}: tell me of fleets."}]
            try:
                stream = self._api.chat.completions.create(model="medium", messages=question, max_tokens=100, stream=True)
                reason = None
                for event in stream:
                    reason = event.choices[0].finish_reason or reason if event.choices else reason
                self.finished.append(reason)
            except openai.OpenAIError as error:
                self.broken.append(repr(error))


def workload(region: LocalRegion) -> dict[str, Any]:
    """The medium fleet, as `flotilla status --json` has it."""
    status = json.loads(region.run("status", "--json").stdout)
    (found,) = [each for each in status["workloads"] if each["key"] == WORKLOAD]
    return dict(found)


def test_twins_come_with_load_and_go_without_it_and_no_stream_is_cut(twins: LocalRegion) -> None:
    assert workload(twins)["replicas"] == 1
    load = Load(twins, NUM_CLIENTS)
    try:
        wait_until(lambda: workload(twins)["ready"] >= 3, OUT_S, "three engines proved their answer and are ready")
        grown = workload(twins)
        assert grown["desired"] >= 3 and grown["reason"]
        shown = twins.run("status").stdout
        assert "SCALED" in shown and WORKLOAD in shown
        wait_until(lambda: _num_working(twins) >= 2, OUT_S, "the new engines take requests")
    finally:
        load.end()
    wait_until(lambda: workload(twins)["pods"] == 1, IN_S, "one engine is left")
    assert workload(twins)["desired"] == 1
    assert load.finished and not load.broken and set(load.finished) <= {"length", "stop"}


def test_without_a_leader_the_size_stays(twins: LocalRegion) -> None:
    """The lease is in the cache: without it nobody leads, and `status` says so."""
    (cache,) = [pod for pod in twins.pods() if pod["workload"].startswith("cache")]
    before = workload(twins)["replicas"]
    pid = cache["containers"][0]["pid"]
    os.kill(pid, 19)  # SIGSTOP: it holds its port and answers nothing
    try:
        wait_until(lambda: workload(twins)["desired"] is None, 30, "nobody says a size")
        found = workload(twins)
        assert (found["replicas"], found["reason"]) == (before, "no gateway says a size: it stays")
    finally:
        os.kill(pid, 18)
    wait_until(lambda: workload(twins)["desired"] is not None, 30, "somebody leads again")


def _num_working(region: LocalRegion) -> int:
    """Engines of the class that have had a request of a client."""
    addresses = [pod["address"] for pod in region.pods() if pod["workload"] == "engine-medium" and pod["ready"]]
    records = [json.loads(urlopen(f"http://{address}:8000/twin/requests", timeout=10).read()) for address in addresses]
    return sum(any(it["endpoint"] == "/v1/chat/completions" for it in found) for found in records)
