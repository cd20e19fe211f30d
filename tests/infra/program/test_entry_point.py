"""The program as the Pulumi CLI starts it: `main: infra/`, working directory there, `.` ahead of everything on the path."""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml

import infra
from infra import config
from infra.embedded.graph import Graph
from infra.embedded.recorder import record_program
from infra.naming import parse_stack

INFRA = Path(infra.__file__).parent


def test_running_the_folder_gives_the_recorded_graph(local_graphs: dict[str, Graph]) -> None:
    name = "local.foundation"
    values = config.read_stack_file(parse_stack(name))
    assert (
        record_program(lambda: runpy.run_path(str(INFRA), run_name="__main__") and None, name, values=values)
        == local_graphs[name]
    )


def test_the_project_file_names_this_folder_and_the_stack_files() -> None:
    project = yaml.safe_load((INFRA.parent / "Pulumi.yaml").read_text())
    assert (project["name"], project["main"], project["stackConfigDir"]) == ("flotilla", "infra/", "stacks")


def test_no_module_here_hides_another_of_its_name() -> None:
    """With `.` ahead on the path, an `infra/secrets.py` would replace the standard library's for every import in the process."""
    names = {path.stem for path in INFRA.iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__init__",
        "__main__",
        "__pycache__",
    }
    assert len(names) > 10
    assert names & (set(sys.stdlib_module_names) | packages_distributions().keys()) == set()
