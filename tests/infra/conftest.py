"""The graphs of every stack, recorded once: the first recording imports the providers' classes, which takes seconds; and an
emulated AWS for a whole module."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any
from urllib.request import urlopen

import pytest

from infra import config
from infra.embedded.aws_server import environment
from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record
from infra.embedded.state import State
from serving.target import aws_client

ENVIRONMENTS = tuple(config.load_catalog().environments)
STACKS = tuple(stack for environment in ENVIRONMENTS for stack in environment_stacks(environment))


@pytest.fixture(scope="session", autouse=True)
def _a_fixed_day() -> Iterator[None]:
    """Rules about the end of support must not fail these tests one day for no change of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "today", lambda: date(2026, 11, 23))
        yield


@pytest.fixture(scope="session")
def graphs() -> dict[str, Graph]:
    """Every stack of every environment, by name, as the repository configures it."""
    return record(STACKS)


@pytest.fixture(scope="session")
def local_graphs(graphs: dict[str, Graph]) -> dict[str, Graph]:
    """Every stack of `local`."""
    return {stack: graph for stack, graph in graphs.items() if stack.startswith("local.")}


@pytest.fixture(scope="module")
def emulated_aws_state(tmp_path_factory: pytest.TempPathFactory) -> State:
    """Where the module's emulated AWS has its state and looks for faults."""
    return State(tmp_path_factory.mktemp("aws") / "local")


@pytest.fixture(scope="module")
def emulated_aws_url(emulated_aws_state: State) -> Iterator[str]:
    """Where an emulated AWS of the module's own answers."""
    state = emulated_aws_state
    state.prepare()
    address, port = state.address(1), 4566
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.embedded.aws_server"],
        env={**os.environ, **environment(address, port, state.aws, state.faults)},
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
    yield url
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def emulated_aws(emulated_aws_url: str) -> Callable[[str, str], Any]:
    """Clients of an emulated AWS, by service and region."""
    return lambda service, region: aws_client(service, region, emulated_aws_url)
