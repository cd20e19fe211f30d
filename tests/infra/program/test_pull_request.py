"""A pull request as its workflow sees it: a clone, two commits, and the commands of preview.yml, each a process of its own.

`test_comment.py` holds the words of the comment against graphs that are changed by hand; here the program itself is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_new_region import NEW, add_region

from infra.costs.report import load_prices
from infra.embedded.against import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PREVIEW = REPOSITORY / ".github/workflows/preview.yml"
EDITS = {
    "infra/components/network/regional_network.py": ('self.part(f"nat-{letter}")', 'self.part(f"way-out-{letter}")'),
    "infra/components/cache/redis_cache.py": (
        "referenced_security_group_id=args.client_security_group_id",
        'cidr_ipv4="0.0.0.0/0"',
    ),
    "stacks/Pulumi.prod.cluster.us-east-2.yaml": ("m7i.2xlarge", "m7i.xlarge"),
}
"""Renames the NAT gateways, opens the cache's port, swaps the instance type of one cluster's system nodes."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose `base` is this tree, and whose head does all of `EDITS` and adds a region."""
    root = tmp_path_factory.mktemp("pull-request")
    for folder in ("infra", "serving", "policies", "stacks"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Pulumi.yaml", root)
    git(root, "init", "--quiet")
    commit(root, "base")
    for name, (before, after) in EDITS.items():
        file = root / name
        text = file.read_text(encoding="utf-8")
        assert text.count(before) == 1, name
        file.write_text(text.replace(before, after), encoding="utf-8")
    add_region(root / "stacks")
    commit(root, "head")
    return root


@pytest.fixture(scope="module")
def comment(clone: Path) -> str:
    """What the workflow's own command writes."""
    done = flotilla(clone, "preview --all --against base --format markdown")
    assert done.returncode == 0, done.stderr
    return done.stdout


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


def commit(root: Path, tag: str) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", tag)
    git(root, "tag", tag)


def flotilla(root: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    """The clone's own command line, without a cloud's credentials."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "FLOTILLA_"))}
    command = [sys.executable, "-P", "-c", "from infra.cli import app; app()", *arguments.split()]
    return subprocess.run(
        command, cwd=root, env={**environment, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=300
    )


def listed(comment: str, title: str) -> list[str]:
    """The bullets below a title."""
    section = comment.partition(f"**{title}**")[2].partition("\n\n")[2].partition("\n\n")[0]
    return section.splitlines()


def test_the_workflow_runs_the_commands_that_are_tested_here() -> None:
    ran = "\n".join(step.get("run", "") for step in yaml.safe_load(PREVIEW.read_text())["jobs"]["preview"]["steps"])
    assert 'flotilla preview --all --against "$BASE" --format markdown > comment/comment.md' in ran
    assert ran.rstrip().endswith("flotilla cost --all --gate"), "the comment is written before the budget fails the job"


def test_the_replacement_is_the_node_group_and_nothing_else(comment: str) -> None:
    """Instances of another type cannot be put into a node group that is there."""
    assert listed(comment, "Replaced") == [
        "- `prod.cluster.us-east-2` `aws:eks/nodeGroup:NodeGroup` `nodes-system-group` for `instanceTypes`."
    ]


def test_the_rename_is_a_deletion_of_every_nat_gateway_and_nothing_else_is_deleted(comment: str) -> None:
    deleted = listed(comment, "Deleted")
    pattern = re.compile(r"- `(\w+)\.cluster\.[\w-]+` `aws:ec2/natGateway:NatGateway` `network-nat-[abc]`\.")
    assert deleted and all(pattern.fullmatch(line) for line in deleted), deleted
    assert sum("`prod." in line for line in deleted) == 6, "three zones in each of the two regions that there were"


def test_the_rule_is_named_in_every_stack_whose_port_is_open(comment: str) -> None:
    broken = [line for line in listed(comment, "Rules") if line.startswith("- `")]
    assert {line.split("`")[1] for line in broken} == {"ingress-named"}, broken
    assert {f"prod.serving.{region}" for region in ("us-east-2", "us-west-2", NEW)} <= {line.split("`")[3] for line in broken}


def test_the_dollars_are_those_of_the_region_and_of_the_nodes(comment: str) -> None:
    prices = load_prices().prices
    rows = {cells[1].strip(" `"): cells for cells in (line.split("|") for line in comment.splitlines()) if len(cells) == 9}
    swapped = 3 * (prices["ec2:m7i.xlarge"].usd - prices["ec2:m7i.2xlarge"].usd)
    assert rows["prod.cluster.us-east-2"][6].strip() == f"{swapped:+,.2f}"
    assert rows["prod.cluster.us-west-2"][6].strip() == "+0.00"
    assert float(rows[f"prod.cluster.{NEW}"][6].replace(",", "")) > 400
    assert f"prod: {', '.join(sorted(('us-east-2', 'us-west-2', NEW, 'all regions')))}" in comment


def test_the_budget_that_a_third_region_exceeds_is_in_the_comment_and_fails_the_workflow(clone: Path, comment: str) -> None:
    over = [line for line in listed(comment, "Budgets") if line.startswith("- **")]
    assert [line.partition(":")[0] for line in over] == ["- **prod, always", "- **prod, at most"]
    gate = flotilla(clone, "cost --all --gate")
    assert gate.returncode == 1 and "over budget: prod, always" in gate.stderr, gate.stderr
