"""Changes that people make every week, none of which may replace what holds data: a rename, another order, a model, a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from protected_types import PROTECTED_TYPES

from infra import migrations
from infra.components.component import Component
from infra.embedded.diff import ResourceChange, Verdict, compare_in_order
from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record
from infra.naming import StackName

PROD = environment_stacks("prod")
SERVING = "prod.serving.us-east-2"
CLUSTER = "prod.cluster.us-east-2"


def changes(before: Mapping[str, Graph], after: Mapping[str, Graph], *verdicts: Verdict) -> list[ResourceChange]:
    """Over the whole environment, in order, so that what one stack replaces shows in those that hold it."""
    diffs = compare_in_order((before[stack], after[stack]) for stack in PROD)
    return [change for diff in diffs for change in diff.of(*verdicts)]


def names(found: list[ResourceChange]) -> list[str]:
    return [f"{change.verdict.value} {change.resource.type} {change.resource.name}" for change in found]


def _rename_every_component(monkeypatch: pytest.MonkeyPatch) -> None:
    construct = Component.__init__

    def renamed(self: Component, kind: str, name: str, stack: StackName, opts: pulumi.ResourceOptions | None) -> None:
        # A component within another has its new name from that one already.
        construct(self, kind, name if name.startswith("new-") else f"new-{name}", stack, opts)

    monkeypatch.setattr(Component, "__init__", renamed)


def test_every_component_can_be_renamed_in_one_place_and_nothing_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, graphs: dict[str, Graph]
) -> None:
    _rename_every_component(monkeypatch)
    components = {item.name for stack in PROD for item in graphs[stack].resources if item.type.startswith("flotilla:")}
    monkeypatch.setattr(migrations, "RENAMED", {f"new-{name}": (name,) for name in components})
    renamed = changes(graphs, record(PROD), *Verdict)
    assert names([change for change in renamed if change.verdict not in (Verdict.UPDATED, Verdict.UNCHANGED)]) == []
    assert sum(bool(change.formerly) for change in renamed) > 200


def test_without_its_line_in_the_table_a_rename_deletes_what_is_protected(
    monkeypatch: pytest.MonkeyPatch, graphs: dict[str, Graph]
) -> None:
    """What the test above would not see if the aliases did nothing."""
    _rename_every_component(monkeypatch)
    refused = [change for change in changes(graphs, record(PROD), Verdict.DELETED) if change.refusal]
    assert {change.resource.type for change in refused} >= {"aws:s3/bucket:Bucket", "aws:dynamodb/table:Table"}


Edit = Callable[[Path], None]


def _edited(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = yaml.safe_load(path.read_text())
    edit(document)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def _reversed(value: Any) -> Any:
    """Every list and every mapping the other way round, at any depth."""
    if isinstance(value, dict):
        return {key: _reversed(item) for key, item in reversed(value.items())}
    return [_reversed(item) for item in reversed(value)] if isinstance(value, list) else value


def reverse_everything(stacks_dir: Path) -> None:
    for path in stacks_dir.glob("*.yaml"):
        _edited(path, lambda document: document.update(_reversed(document)))


def add_a_model(stacks_dir: Path) -> None:
    """Another model in the catalog and its tariff, which class small then serves."""

    def edit(catalog: dict[str, Any]) -> None:
        catalog["models"]["qwen2.5-7b-instruct-new"] = {
            **catalog["models"]["qwen2.5-7b-instruct"],
            "max_in_flight_per_engine": 128,
        }
        catalog["environments"]["prod"]["models"]["small"] = "qwen2.5-7b-instruct-new"

    def price(tariffs: dict[str, Any]) -> None:
        models = tariffs["tariffs"][-1]["models"]
        models["qwen2.5-7b-instruct-new"] = models["qwen2.5-7b-instruct"]

    _edited(stacks_dir / "catalog.yaml", edit)
    _edited(stacks_dir / "tariffs.yaml", price)


def add_a_pool(stacks_dir: Path) -> None:
    """A reserved pool ahead of the others, and one on demand."""
    reserved = {"instance_type": "p4d.24xlarge", "zone": "us-east-2a", "nodes": 1, "reservation": {"id": "cr-010d0000000000009"}}

    def edit_cluster(document: dict[str, Any]) -> None:
        pools = document["config"]["flotilla:reserved_pools"]
        document["config"]["flotilla:reserved_pools"] = {"a-first": reserved, **pools}

    def edit_serving(document: dict[str, Any]) -> None:
        pools = document["config"]["flotilla:pools"]["on_demand"]
        pools["a-first"] = {"instance_type": "p4d.24xlarge", "max_nodes": 2}

    _edited(stacks_dir / f"Pulumi.{CLUSTER}.yaml", edit_cluster)
    _edited(stacks_dir / f"Pulumi.{SERVING}.yaml", edit_serving)


def change_a_default_that_rolls(stacks_dir: Path) -> None:
    """Other images and another Kubernetes: what an upgrade changes."""

    def edit(document: dict[str, Any]) -> None:
        document["config"]["flotilla:images"] = dict.fromkeys(("gateway", "engine"), f"sha256:{64 * '1'}")

    _edited(stacks_dir / f"Pulumi.{SERVING}.yaml", edit)
    _edited(
        stacks_dir / f"Pulumi.{CLUSTER}.yaml", lambda document: document["config"].update({"flotilla:kubernetes_version": "1.35"})
    )


@pytest.mark.parametrize("edit", [reverse_everything, add_a_model, add_a_pool, change_a_default_that_rolls])
def test_nothing_that_holds_data_is_replaced_or_deleted(edit: Edit, stacks_dir: Path, graphs: dict[str, Graph]) -> None:
    edit(stacks_dir)
    after = record(PROD, stacks_dir=stacks_dir)
    found = changes(graphs, after, Verdict.REPLACED, Verdict.DELETED)
    assert names([change for change in found if change.resource.type in PROTECTED_TYPES]) == []
    assert not [change for change in found if change.refusal]
    if edit is reverse_everything:
        assert names(found) == []
    else:
        assert changes(graphs, after, Verdict.CREATED, Verdict.UPDATED), "the edit reached no stack"
