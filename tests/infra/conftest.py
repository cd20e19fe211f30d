"""The graphs of every stack, recorded once: the first recording imports the providers' classes, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import pytest

from infra import config
from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record

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
