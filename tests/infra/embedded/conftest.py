"""A state folder of its own for each test, a node agent over it, and an emulated AWS for a whole module."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for embedded_support, which importlib mode would not find

from embedded_support import QUICK, RunningAgent

from infra.embedded.aws_server import environment
from infra.embedded.graph import Graph
from infra.embedded.recorder import record
from infra.embedded.state import State
from serving.target import aws_client


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A prepared state folder."""
    state = State(tmp_path / "local")
    state.prepare()
    return state


@pytest.fixture
async def agent(state: State) -> AsyncIterator[RunningAgent]:
    """An agent with short back-off. Whatever a test does, no process is left after it."""
    running = RunningAgent(state, QUICK)
    yield running
    await running.end()
    assert running.processes() == 0


@pytest.fixture(scope="session")
def program() -> dict[str, Graph]:
    """The graphs of the program itself, both regions."""
    return record(["local.serving.us-east-2", "local.serving.us-west-2"])


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def emulated_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Any]]:
    """Clients of an emulated AWS, by service and region."""
    state = State(tmp_path_factory.mktemp("aws") / "local")
    state.prepare()
    address, port = state.address(1), 4566
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.embedded.aws_server"],
        env={**os.environ, **environment(address, port, state.aws)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://{address}:{port}"
    deadline = time.monotonic() + 20
    while True:
        try:
            urlopen(f"{url}/_ministack/ready", timeout=1)
            break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    yield lambda service, region: aws_client(service, region, url)
    process.terminate()
    process.wait(10)
