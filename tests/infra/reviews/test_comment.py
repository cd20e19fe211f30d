"""The comment on a pull request: exactly what the change does, costs and breaks, and nothing can break out of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.costs.report import load_prices
from infra.embedded.diff import Verdict
from infra.embedded.graph import Graph, Resource
from infra.reviews.comment import MARKER, MAX_CHARS, comment
from infra.reviews.review import Review, review_of

CLUSTER, SERVING = "prod.cluster.us-east-2", "prod.serving.us-east-2"
README = Path(__file__).resolve().parents[3] / "README.md"
EXAMPLE_BEGINS, EXAMPLE_ENDS = "<!-- example: written by tests/infra/reviews/test_comment.py -->\n", "<!-- end of example -->"
Change = Callable[[dict[str, Any]], None]


def changed(graphs: Mapping[str, Graph], stack: str, kind: str, name: str, change: Change) -> dict[str, Graph]:
    """The graphs with one resource's inputs changed."""
    graph = graphs[stack]
    (victim,) = (found for found in graph.of_type(kind) if found.name == name)
    inputs = copy.deepcopy(dict(victim.inputs))
    change(inputs)
    new = replace(victim, inputs=inputs)
    resources = tuple(new if found is victim else found for found in graph.resources)
    return {**graphs, stack: replace(graph, resources=resources)}


def first(graph: Graph, kind: str, where: Callable[[Resource], bool] = lambda _: True) -> Resource:
    return next(found for found in graph.of_type(kind) if where(found))


@pytest.fixture
def prod(graphs: dict[str, Graph]) -> dict[str, Graph]:
    return {stack: graph for stack, graph in graphs.items() if stack.startswith("prod.")}


@pytest.fixture
def swapped_and_opened(prod: dict[str, Graph]) -> Review:
    """Both sides, reviewed."""
    return review_of(*swapped_and_opened_sides(prod), "main (0123456789ab)")


def swapped_and_opened_sides(prod: Mapping[str, Graph]) -> tuple[dict[str, Graph], dict[str, Graph]]:
    """Swaps the instance type of the system nodes, opens a port, raises what KEDA may scale to, adds a region."""
    nodes = first(prod[CLUSTER], "aws:eks/nodeGroup:NodeGroup", lambda found: "m7i.2xlarge" in found.inputs["instanceTypes"])
    rule = first(prod[SERVING], "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule", _is_closed)
    scaled = first(prod[SERVING], "kubernetes:keda.sh/v1alpha1:ScaledObject", lambda found: found.name == "engine-small")
    after = changed(prod, CLUSTER, nodes.type, nodes.name, lambda inputs: inputs.update(instanceTypes=["m7i.xlarge"]))
    after = changed(after, SERVING, rule.type, rule.name, _opened)
    after = changed(after, SERVING, scaled.type, scaled.name, lambda inputs: inputs["spec"].update(maxReplicaCount=99))
    west = {stack: after.pop(stack) for stack in ("prod.cluster.us-west-2", "prod.serving.us-west-2")}
    before = {stack: graph for stack, graph in prod.items() if stack not in west}
    return before, {**after, **west}


def _is_closed(rule: Resource) -> bool:
    return "referencedSecurityGroupId" in rule.inputs


def _opened(inputs: dict[str, Any]) -> None:
    inputs.pop("referencedSecurityGroupId")
    inputs["cidrIpv4"] = "0.0.0.0/0"


def test_it_names_the_replacement_the_dollars_the_rule_and_the_reach(swapped_and_opened: Review) -> None:
    review, text = swapped_and_opened, comment(swapped_and_opened)
    assert [(stack, change.resource.type) for stack, change in review.replaced] == [(CLUSTER, "aws:eks/nodeGroup:NodeGroup")]
    assert "**Replaced**: 1." in text and "for `instanceTypes`" in text
    assert [(finding.rule, finding.stack) for finding in review.broken] == [("ingress-named", SERVING)]
    assert "**Rules**: 1 broken by this change, 1 of them mandatory." in text
    assert [(item.workload, item.what, item.after) for item in review.scaling] == [("engine-small", "most", 99)]
    assert "`prod.cluster.us-west-2`" in text and review.reach == {"prod": ("us-east-2", "us-west-2")}


def test_dollars_are_those_of_the_change(swapped_and_opened: Review) -> None:
    """Three m7i.2xlarge become three m7i.xlarge; the new region costs all that it costs."""
    prices = load_prices().prices
    deltas = {item.stack: item.delta_usd_per_h for item in swapped_and_opened.cost.stacks}
    assert deltas[CLUSTER] == pytest.approx(3 * (prices["ec2:m7i.xlarge"].usd - prices["ec2:m7i.2xlarge"].usd))
    west = next(item for item in swapped_and_opened.cost.stacks if item.stack == "prod.cluster.us-west-2")
    assert west.after is not None and deltas[west.stack] == pytest.approx(west.after.floor_usd_per_h)


def test_equal_reviews_give_equal_comments_that_begin_with_the_marker(prod: dict[str, Graph], swapped_and_opened: Review) -> None:
    assert comment(swapped_and_opened) == comment(swapped_and_opened)
    assert comment(swapped_and_opened).startswith(MARKER)
    nothing = comment(review_of(prod, prod, "main"))
    assert "**Nothing would change.**" in nothing and len(nothing.splitlines()) < 10


def test_a_stack_that_does_not_change_is_a_number_and_no_row(swapped_and_opened: Review) -> None:
    text = comment(swapped_and_opened)
    assert "2 stacks do not change." in text and "| `prod.foundation` |" not in text


@pytest.mark.parametrize("nasty", ["</details><script>", "`|\n| injected |", "@everyone [x](http://evil.example)"])
def test_names_from_a_fork_cannot_break_out_of_the_comment(prod: dict[str, Graph], nasty: str) -> None:
    """The text is posted with our token's name on it."""
    scaled = first(prod[SERVING], "kubernetes:keda.sh/v1alpha1:ScaledObject")
    after = changed(prod, SERVING, scaled.type, scaled.name, lambda inputs: inputs["spec"].update(cooldownPeriod=nasty))
    text = comment(review_of(prod, after, "main"))
    row = next(line for line in text.splitlines() if "cooldownPeriod" in line)
    assert row.count("|") == 6, row
    assert row.count("`") % 2 == 0 and "\n" not in row


def test_a_comment_that_github_would_refuse_is_cut_and_says_so(prod: dict[str, Graph]) -> None:
    everything = review_of({}, prod, "the beginning")
    assert sum(stack.diff.counts()[Verdict.CREATED] for stack in everything.preview.stacks) > 300
    text = comment(everything)
    assert len(text) < MAX_CHARS + 1000
    assert "would not fit" in text or text.count("<details>") == len(prod)


def test_a_change_that_does_all_of_it_at_once_is_told_as_it_is_and_the_readme_shows_it(
    prod: dict[str, Graph],
) -> None:
    """A rename, a new region, another instance type and an open port: the README's example is this comment's head."""
    gateway = first(prod[CLUSTER], "aws:ec2/natGateway:NatGateway")
    new = replace(gateway, name="way-out", urn=gateway.urn.replace(f"::{gateway.name}", "::way-out"))
    sides = swapped_and_opened_sides(prod)
    after = sides[1]
    resources = tuple(new if found.urn == gateway.urn else found for found in after[CLUSTER].resources)
    review = review_of(sides[0], {**after, CLUSTER: replace(after[CLUSTER], resources=resources)}, "main (0123456789ab)")
    text = comment(review)
    assert [change.resource.name for stack, change in review.deleted if stack == CLUSTER] == [gateway.name]
    assert f"`aws:ec2/natGateway:NatGateway` `{gateway.name}`" in text and "`way-out`" in text
    assert [finding.rule for finding in review.broken] == ["ingress-named"]
    assert text.count("for `instanceTypes`") == 1 and "**Scaling**" in text and "us-east-2, us-west-2" in text
    delta = sum(item.delta_usd_per_h for item in review.cost.stacks)
    assert f"{delta:+,.2f} by this change" in text and delta > 400, "a region is not to be had for less"
    head = text.partition("<details>")[0].removeprefix(f"{MARKER}\n").strip()
    readme = README.read_text(encoding="utf-8")
    before, _, rest = readme.partition(EXAMPLE_BEGINS)
    shown, _, left = rest.partition(EXAMPLE_ENDS)
    quoted = "".join(f"> {line}".rstrip() + "\n" for line in head.splitlines())
    if os.environ.get("FLOTILLA_WRITE_GOLDENS"):
        README.write_text(f"{before}{EXAMPLE_BEGINS}{quoted}{EXAMPLE_ENDS}{left}", encoding="utf-8")
        return
    assert shown == quoted, "README.md: run it again with FLOTILLA_WRITE_GOLDENS=1, and read the difference"
