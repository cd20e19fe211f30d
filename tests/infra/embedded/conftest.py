"""A state folder of its own for each test, and a node agent over it."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for embedded_support, which importlib mode would not find

from embedded_support import QUICK, RunningAgent

from infra.embedded.graph import Graph
from infra.embedded.recorder import record
from infra.embedded.state import State


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
