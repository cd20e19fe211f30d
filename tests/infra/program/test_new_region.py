"""Adding a region is one catalog entry and its stack files."""

from __future__ import annotations

from pathlib import Path

from infra.embedded.diff import Verdict, compare
from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record

NEW = "eu-west-1"


def add_region(stacks_dir: Path) -> None:
    catalog = stacks_dir / "catalog.yaml"
    text = catalog.read_text()
    zones = ", ".join(f"{NEW}{letter}" for letter in "abc")
    entry = f"  {NEW}:\n    code: euw1\n    availability_zones: [{zones}]\n    vpc_cidr: 10.48.0.0/16\n"
    text = text.replace("\nregions:\n", f"\nregions:\n{entry}")
    catalog.write_text(text.replace("regions: [us-east-2, us-west-2]", f"regions: [us-east-2, us-west-2, {NEW}]"))
    for layer in ("cluster", "serving"):
        (stacks_dir / f"Pulumi.local.{layer}.{NEW}.yaml").write_text(
            (stacks_dir / f"Pulumi.local.{layer}.us-west-2.yaml").read_text()
        )


def test_a_new_region_changes_nothing_in_the_others_and_deletes_nothing_anywhere(
    stacks_dir: Path, local_graphs: dict[str, Graph]
) -> None:
    add_region(stacks_dir)
    after = record(environment_stacks("local", stacks_dir=stacks_dir), stacks_dir=stacks_dir)
    assert after.keys() - local_graphs.keys() == {f"local.cluster.{NEW}", f"local.serving.{NEW}"}
    diffs = {stack: compare(graph, after[stack]) for stack, graph in local_graphs.items()}
    assert [stack for stack, diff in diffs.items() if not diff.is_empty] == ["local.foundation", "local.edge"]
    assert all(diff.counts()[Verdict.DELETED] == 0 for diff in diffs.values())

    changed = {change.resource.name for change in diffs["local.foundation"].of(Verdict.CHANGED)}
    replication = {f"artifact-replication-{part}" for part in ("from-us-east-2", "from-us-west-2", "policy")}
    tables, secrets = {f"{name}-table" for name in ("registry", "tenants", "ledger")}, {"key-pepper", "cache-salt", "admin-key"}
    assert changed == replication | tables | {f"{name}-secret" for name in secrets}
    assert not list(diffs["local.edge"].of(Verdict.CHANGED))
    created = {change.resource.name for change in diffs["local.edge"].of(Verdict.CREATED)}
    assert created == {f"records-check-{NEW}", f"records-api-{NEW}"}
