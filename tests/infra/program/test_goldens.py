"""One text file a stack, `goldens/<stack>.txt`: type, name, parent and options of every resource, small enough to review.

After a change that is meant, write them anew and read the difference:

    FLOTILLA_WRITE_GOLDENS=1 .venv/bin/pytest tests/infra/program/test_goldens.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.embedded.graph import Graph, Resource
from infra.embedded.recorder import environment_stacks

GOLDENS = Path(__file__).parent / "goldens"


def name_of(urn: str) -> str:
    return urn.rpartition("::")[2] or "-"


def line(resource: Resource) -> str:
    options = resource.options
    told = [f"provider={name_of(options.provider)}"] if options.provider else []
    told += ["protect"] if options.protect else []
    told += ["retain"] if options.retain_on_delete else []
    for name in ("ignore_changes", "replace_on_changes", "aliases"):
        values = getattr(options, name)
        told += [f"{name}={','.join(values)}"] if values else []
    return "  ".join([resource.type, resource.name, f"in {name_of(resource.parent)}", *told])


def summary(graph: Graph) -> str:
    resources = [line(resource) for resource in sorted(graph.resources, key=lambda resource: (resource.type, resource.name))]
    return "\n".join(
        [*resources, f"exports  {', '.join(sorted(graph.outputs))}", f"reads  {', '.join(graph.references) or '-'}", ""]
    )


@pytest.mark.parametrize("stack", environment_stacks("local"))
def test_the_stack_is_what_was_reviewed(stack: str, local_graphs: dict[str, Graph]) -> None:
    golden = GOLDENS / f"{stack}.txt"
    found = summary(local_graphs[stack])
    if os.environ.get("FLOTILLA_WRITE_GOLDENS"):
        golden.write_text(found)
    assert found == golden.read_text(), "see this module's docstring for how to write goldens anew"


def test_there_is_a_golden_for_each_stack_and_none_besides() -> None:
    assert sorted(path.stem for path in GOLDENS.glob("*.txt")) == sorted(environment_stacks("local"))
