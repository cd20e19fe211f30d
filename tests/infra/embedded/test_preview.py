"""The preview: against the last `up`, in words and as JSON, and the same bytes each time with neither cloud nor network."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.embedded.graph import Graph, Options, Resource
from infra.embedded.graph_json import graph_path, load_graph, save_graph
from infra.embedded.preview import PreviewReport, preview, render
from infra.embedded.recorder import every_stack
from serving.errors import UserError

STACK = "local.serving.us-east-2"
TREASURE = "aws:s3/bucket:Bucket"


def shown(report: PreviewReport) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


def counts(report: PreviewReport) -> Mapping[str, int]:
    (stack,) = report.stacks
    return {verdict.value: number for verdict, number in stack.diff.counts().items() if number}


def test_preview_shows_a_new_stack_then_nothing_then_exactly_what_an_override_changes(
    tmp_path: Path, local_graphs: dict[str, Graph]
) -> None:
    known = local_graphs[STACK]
    size = len(known.resources)
    first = preview(STACK, tmp_path)
    assert [stack.stack for stack in first.stacks] == [STACK], "stacks that it refers to are recorded but not shown"
    assert first.stacks[0].presence.value == "new" and counts(first) == {"created": size}

    save_graph(tmp_path, known)
    second = preview(STACK, tmp_path)
    assert second.is_empty and counts(second) == {"unchanged": size}

    third = preview(STACK, tmp_path, overrides={STACK: {"gateway": {"replicas": 2, "max_replicas": 2}}})
    assert not third.has_replacements
    assert "spec.replicas: 1 → 2" in shown(third)
    (stack,) = third.as_json()["stacks"]
    assert {"path": "spec.replicas", "before": 1, "after": 2} in [
        item for change in stack["changes"] for item in change["properties"]
    ]
    assert stack["counts"]["unchanged"] == size - len(stack["changes"])


def test_what_would_not_go_through_is_called_out_last(tmp_path: Path, local_graphs: dict[str, Graph]) -> None:
    known = local_graphs[STACK]
    options = Options(protect=True)
    treasure = Resource("urn:pulumi:s::p::t::treasure", TREASURE, "treasure", "", True, {}, {}, options)
    save_graph(tmp_path, replace(known, resources=(*known.resources, treasure)))
    report = preview(STACK, tmp_path)
    assert report.has_replacements, "the deletion of something protected counts as one"
    assert shown(report).rstrip().splitlines()[-1] == (
        f"REFUSED {STACK} {TREASURE} treasure: protected: the engine refuses to delete it"
    )
    assert report.as_json()["stacks"][0]["num_refused"] == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "stack": "s"}'])
def test_a_kept_graph_that_is_damaged_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    path = graph_path(tmp_path, "s")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_graph(tmp_path, "s")
    assert str(path) in caught.value.message and "\n" not in caught.value.message and caught.value.hint
    assert load_graph(tmp_path, "absent") is None


OFFLINE = """
import sys
def refuse(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"the preview reached for the network: {event}")
sys.addaudithook(refuse)
sys.argv = ["flotilla", *sys.argv[1:]]
from infra.cli import main
main()
"""


def test_every_stack_is_previewed_without_network_or_credentials_and_twice_in_the_same_bytes(tmp_path: Path) -> None:
    """The hash seed differs, so an order that follows a set would differ too."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", OFFLINE, "preview", "--all", "--json", "--state", str(tmp_path / "none")],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]
    first, second = ((*run.communicate(), run.returncode) for run in runs)
    assert first[1:] == second[1:] == (b"", 0)
    assert first[0] == second[0]
    report: dict[str, Any] = json.loads(first[0])
    assert [stack["stack"] for stack in report["stacks"]] == every_stack()
    assert all(stack["counts"]["created"] > 3 for stack in report["stacks"])
