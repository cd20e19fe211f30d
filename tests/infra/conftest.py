"""The graphs of every local stack, recorded once: the first recording imports the providers' classes, which takes seconds."""

from __future__ import annotations

import pytest

from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record


@pytest.fixture(scope="session")
def local_graphs() -> dict[str, Graph]:
    """Every stack of `local`, by name, as the repository configures it."""
    return record(environment_stacks("local"))
