"""The guardrails on our own program: nothing to find, and every kind of mistake noticed."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra import config
from infra.cli import app
from infra.embedded.graph import Graph
from infra.errors import ConfigError
from infra.guardrails.graphs import estate_of, judge_graphs, load_waivers
from infra.guardrails.handbook import handbook
from policies.guardrails.rule import Finding, Severity, Waiver, judge
from policies.guardrails.rules import RULES
from tests.infra.guardrails.mutations import MUTATIONS, Mutation

TODAY = date(2026, 11, 24)
CATALOG = config.load_catalog()
ROOT = Path(__file__).parents[3]
NEED_NO_MISTAKE = {
    "experiments-meant": "tests/infra/program/test_drill_templates.py: no stack has one unless `drills` says so",
    "experiments-stop": "tests/infra/program/test_drill_templates.py: no stack has one unless `drills` says so",
    "no-lasting-keys": "any user or access key is one",
    "regions-apart": "test_a_region_that_takes_from_another_is_noticed",
}
"""Rules that no change of our own resources can break, and why."""


def found_in(graph: Graph) -> set[tuple[str, str, str]]:
    verdict = judge(estate_of(graph, CATALOG), RULES, (), TODAY)
    return {(finding.rule, finding.urn, finding.message) for finding in verdict.findings}


@pytest.fixture(scope="session")
def prod(graphs: dict[str, Graph]) -> dict[str, Graph]:
    return {stack: graph for stack, graph in graphs.items() if stack.startswith("prod.")}


@pytest.fixture(scope="session")
def clean(prod: dict[str, Graph]) -> dict[str, set[tuple[str, str, str]]]:
    return {stack: found_in(graph) for stack, graph in prod.items()}


@pytest.fixture(scope="session")
def noticed(prod: dict[str, Graph], clean: dict[str, set[tuple[str, str, str]]]) -> dict[str, set[str]]:
    """Rules that notice each kind of mistake, made once in prod."""
    return {mutation.name: _noticing(mutation, prod, clean) for mutation in MUTATIONS}


def _noticing(mutation: Mutation, prod: dict[str, Graph], clean: dict[str, set[tuple[str, str, str]]]) -> set[str]:
    for stack, graph in prod.items():
        for victim in mutation.victims(graph):
            return {rule for rule, *_ in found_in(mutation.made(graph, victim)) - clean[stack]}
    return set()


def test_our_own_stacks_keep_every_rule(graphs: dict[str, Graph]) -> None:
    judgement = judge_graphs(graphs, CATALOG, load_waivers(), TODAY)
    assert [finding for verdict in judgement.verdicts for finding in verdict.findings] == []
    assert judgement.unused == (), "a waiver that covers nothing hides the next finding"
    assert len(load_waivers()) <= 5
    assert all(verdict.num_checks > 20 for verdict in judgement.verdicts)


@pytest.mark.parametrize("mistake", [mutation.name for mutation in MUTATIONS])
def test_a_mistake_is_noticed(mistake: str, noticed: dict[str, set[str]]) -> None:
    assert noticed[mistake], "no rule says a word, or prod has nothing to make it on"


def test_every_rule_notices_some_mistake(noticed: dict[str, set[str]]) -> None:
    """A rule that nothing breaks checks nothing."""
    assert {rule.name for rule in RULES} - set().union(*noticed.values()) == set(NEED_NO_MISTAKE)


def test_a_user_with_a_key_is_noticed(prod: dict[str, Graph]) -> None:
    graph = prod["prod.foundation"]
    user = replace(graph.resources[-1], type="aws:iam/user:User", urn="urn:pulumi:s::p::t::eve", name="eve", inputs={})
    changed = replace(graph, resources=(*graph.resources, user))
    assert "no-lasting-keys" in {rule for rule, *_ in found_in(changed) - found_in(graph)}


def test_a_region_that_takes_from_another_is_noticed(prod: dict[str, Graph]) -> None:
    """The home region may be named: conditional writes have one place. Any other region may not."""
    graph = prod["prod.cluster.us-east-2"]
    cluster = next(graph.of_type("aws:eks/cluster:Cluster"))
    foreign = replace(cluster, inputs={**cluster.inputs, "roleArn": "arn:aws:iam::222222222222:role/us-west-2-control-plane"})
    changed = replace(graph, resources=tuple(foreign if found is cluster else found for found in graph.resources))
    assert [rule for rule, *_ in found_in(changed) - found_in(graph)] == ["regions-apart"]


def finding(**changed: str) -> Finding:
    known = {"rule": "probed", "stack": "prod.serving.us-east-2", "urn": "u", "type": "t", "name": "gateway", "message": "m"}
    return Finding(**{**known, **changed}, severity=Severity.MANDATORY, remedy="r")


@pytest.mark.parametrize(
    ("changed", "today", "covers"),
    [
        ({}, date(2026, 12, 31), True),
        ({}, date(2027, 1, 1), False),
        ({"rule": "budgeted"}, TODAY, False),
        ({"name": "engine-small"}, TODAY, False),
        ({"stack": "prod.serving.us-west-2"}, TODAY, False),
    ],
)
def test_a_waiver_covers_its_own_finding_until_its_last_day(changed: dict[str, str], today: date, covers: bool) -> None:
    waiver = Waiver("probed", "gateway", "ann", "a side car of a vendor", date(2026, 12, 31), stack="prod.serving.us-east-2")
    assert waiver.covers(finding(**changed), today) is covers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "waivers: [{rule: nonsense, resource: a, owner: ann, reason: because it is so long, expires: 2026-12-31}]",
            "`waivers[0].rule`",
        ),
        ("waivers: [{rule: probed, resource: a, owner: ann, reason: short, expires: 2026-12-31}]", "`waivers.0.reason`"),
        ("waivers: [{rule: probed, resource: a, owner: ann, reason: because it is so long}]", "`waivers.0.expires` is missing"),
    ],
)
def test_a_waiver_says_which_rule_who_why_and_until_when(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "waivers.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_waivers(tmp_path)
    assert expected in raised.value.message and "stacks/waivers.yaml" in raised.value.message


def test_the_page_about_the_rules_is_what_they_say() -> None:
    """Written anew by `flotilla guardrails --rules > docs/guardrails.md`."""
    assert (ROOT / "docs/guardrails.md").read_text(encoding="utf-8") == handbook()


def test_the_command_asks_one_stack_and_exits_0_where_nothing_is_wrong() -> None:
    result = CliRunner().invoke(app, ["guardrails", "local.edge"])
    assert result.exit_code == 0, result.output
    assert "0 findings, 0 waived" in result.output
