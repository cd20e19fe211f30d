"""What would change: verdicts, property paths, and the preview made of them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.embedded.diff import ABSENT, PropertyChange, Verdict, compare
from infra.embedded.graph import Graph, Options, Resource, Secret
from infra.embedded.graph_json import graph_path, load_graph, save_graph
from infra.embedded.preview import preview, render
from serving.errors import UserError

STACK = "local.serving.us-east-2"


def resource(name: str, options: Options | None = None, **inputs: Any) -> Resource:
    return Resource(f"urn:pulumi:s::p::t::{name}", "t", name, "", True, inputs, inputs, options or Options())


def graph(*resources: Resource) -> Graph:
    return Graph("s", resources, {})


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [("a", 1, 2)]),
        ({"a": 1}, {"a": True}, [("a", 1, True)]),
        ({"a": {"b": 1, "c": 1}}, {"a": {"b": 1, "d": 1}}, [("a.c", 1, ABSENT), ("a.d", ABSENT, 1)]),
        ({"a": [1, 2]}, {"a": [1, 3, 4]}, [("a[1]", 2, 3), ("a[2]", ABSENT, 4)]),
        (
            {"env": [{"name": "B", "value": "1"}]},
            {"env": [{"name": "A", "value": "0"}, {"name": "B", "value": "2"}]},
            [("env[B].value", "1", "2"), ("env[A]", ABSENT, {"name": "A", "value": "0"})],
        ),
        ({"c": [{"name": "A"}, {"name": "B"}]}, {"c": [{"name": "B"}, {"name": "A"}]}, [("c (order)", ["A", "B"], ["B", "A"])]),
        ({"data": {"x.json": '{"a": {"b": 1}}'}}, {"data": {"x.json": '{"a":{"b":2}}'}}, [("data.x.json/a.b", 1, 2)]),
        ({"data": '{"a": 1}'}, {"data": '{ "a": 1 }'}, []),
        ({"key": Secret("one")}, {"key": Secret("two")}, []),
        ({"key": Secret("one")}, {"key": "one"}, [("key", "[secret]", "one")]),
    ],
)
def test_properties_are_compared_one_by_one(
    before: dict[str, Any], after: dict[str, Any], changes: list[tuple[str, Any, Any]]
) -> None:
    (change,) = compare(graph(resource("r", **before)), graph(resource("r", **after))).changes
    assert change.properties == tuple(PropertyChange(*item) for item in changes)
    assert change.verdict is (Verdict.CHANGED if changes else Verdict.UNCHANGED)


def test_every_resource_gets_one_verdict_and_options_count_as_properties() -> None:
    before = graph(resource("kept"), resource("gone"), resource("loosened", Options(protect=True)))
    after = graph(resource("new"), resource("kept", Options(depends_on=("x",))), resource("loosened"))
    diff = compare(before, after)
    assert [(change.resource.name, change.verdict.value) for change in diff.changes] == [
        ("new", "created"),
        ("kept", "unchanged"),
        ("loosened", "changed"),
        ("gone", "deleted"),
    ]
    assert diff.changes[2].properties == (PropertyChange("options.protect", True, ABSENT),)
    assert diff.counts() == dict.fromkeys(Verdict, 1)
    assert not diff.is_empty and compare(before, before).is_empty


def test_without_an_earlier_graph_everything_is_new() -> None:
    assert compare(None, graph(resource("a"), resource("b"))).counts()[Verdict.CREATED] == 2


def shown(report: Any) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


def test_preview_shows_new_stacks_then_nothing_then_exactly_what_an_override_changes(
    tmp_path: Path, local_graphs: dict[str, Graph]
) -> None:
    first = preview([STACK], tmp_path)
    assert [stack.stack for stack in first.stacks] == [STACK], "stacks that it refers to are recorded but not shown"
    assert first.stacks[0].is_new and "34 created" in shown(first)

    save_graph(tmp_path, local_graphs[STACK])
    second = preview([STACK], tmp_path)
    assert second.is_empty and "34 unchanged" in shown(second)

    third = preview([STACK], tmp_path, overrides={STACK: {"gateway": {"replicas": 2}}})
    text = shown(third)
    assert "1 changed, 33 unchanged" in text and "spec.replicas: 1 → 2" in text
    (change,) = third.as_json()["stacks"][0]["changes"]
    assert change["properties"] == [{"path": "spec.replicas", "before": 1, "after": 2}]
    json.dumps(third.as_json())


def test_a_deleted_protected_resource_is_called_out(tmp_path: Path, local_graphs: dict[str, Graph]) -> None:
    known = local_graphs[STACK]
    treasure = resource("treasure", Options(protect=True))
    save_graph(tmp_path, replace(known, resources=(*known.resources, treasure)))
    assert "treasure  protected: the engine refuses to delete it" in shown(preview([STACK], tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "stack": "s"}'])
def test_a_kept_graph_that_is_damaged_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    path = graph_path(tmp_path, "s")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_graph(tmp_path, "s")
    assert str(path) in caught.value.message and "\n" not in caught.value.message and caught.value.hint
    assert load_graph(tmp_path, "absent") is None
