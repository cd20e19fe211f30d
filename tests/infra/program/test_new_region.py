"""Adding a region is one catalog entry and two stack files. What else changes is listed in `goldens/changes/third-region.txt`."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_files import GOLDENS, check

from infra.embedded.diff import GraphDiff, Verdict, compare
from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record

NEW = "eu-west-1"
LIKE = "us-west-2"
PROD = "prod"


def add_region(stacks_dir: Path) -> None:
    """Adds `NEW` to production as a copy of `LIKE`: an entry of the catalog, its name among the environment's, and two files."""
    catalog = stacks_dir / "catalog.yaml"
    text = catalog.read_text()
    start = text.index(f"\n  {LIKE}:\n") + 1
    entry = text[start : text.index("\n\n", start) + 1].replace(LIKE, NEW).replace("usw2", "euw1").replace("10.32.", "10.48.")
    text = text.replace("\nregions:\n", f"\nregions:\n{entry}")
    environments, prod = text.split(f"\n  {PROD}:\n")
    catalog.write_text(f"{environments}\n  {PROD}:\n{prod.replace(f'us-east-2, {LIKE}]', f'us-east-2, {LIKE}, {NEW}]', 1)}")
    for layer in ("cluster", "serving"):
        copied = (stacks_dir / f"Pulumi.{PROD}.{layer}.{LIKE}.yaml").read_text().replace(LIKE, NEW)
        (stacks_dir / f"Pulumi.{PROD}.{layer}.{NEW}.yaml").write_text(copied)


@pytest.fixture(scope="module")
def with_new_region(copy_of_stacks: Path) -> dict[str, Graph]:
    """Production with the region in it."""
    add_region(copy_of_stacks)
    return record(environment_stacks(PROD, stacks_dir=copy_of_stacks), stacks_dir=copy_of_stacks)


def listed(diff: GraphDiff) -> list[str]:
    lines: list[str] = []
    for change in diff.of(Verdict.CREATED, Verdict.UPDATED, Verdict.REPLACED, Verdict.DELETED):
        paths = ", ".join(item.path for item in change.properties)
        lines.append(f"{change.verdict.value} {change.resource.type} {change.resource.name}{f': {paths}' if paths else ''}")
    return lines


def test_a_third_region_changes_no_other_region_and_only_adds_to_what_spans_them(
    with_new_region: dict[str, Graph], graphs: dict[str, Graph]
) -> None:
    assert with_new_region.keys() - graphs.keys() == {f"{PROD}.cluster.{NEW}", f"{PROD}.serving.{NEW}"}
    diffs = {stack: compare(graphs[stack], after) for stack, after in with_new_region.items() if stack in graphs}
    assert [stack for stack, diff in diffs.items() if not diff.is_empty] == [f"{PROD}.foundation", f"{PROD}.edge"]
    lines: list[str] = []
    for stack in (f"{PROD}.foundation", f"{PROD}.edge"):
        assert not list(diffs[stack].of(Verdict.REPLACED, Verdict.DELETED)), listed(diffs[stack])
        assert not diffs[stack].refused
        lines += [f"{stack}:", *(f"  {line}" for line in listed(diffs[stack]))]
    check(GOLDENS / "changes" / "third-region.txt", "\n".join([*lines, ""]))


def test_the_third_region_is_a_copy_of_the_second(with_new_region: dict[str, Graph], graphs: dict[str, Graph]) -> None:
    for layer in ("cluster", "serving"):
        copy, original = with_new_region[f"{PROD}.{layer}.{NEW}"], graphs[f"{PROD}.{layer}.{LIKE}"]
        assert [(item.type, item.name) for item in copy.resources] == [(item.type, item.name) for item in original.resources]
