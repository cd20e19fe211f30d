"""The price book on our own program: everything is priced or said to be billed by use, and changes have a price."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.config import STACKS_DIR
from infra.costs.budgets import load_budgets
from infra.costs.report import cost_of, load_prices
from infra.embedded.graph import Graph
from infra.errors import ConfigError
from policies.costs.budgets import Budget, judge_budgets
from serving.errors import UserError


def prod(graphs: dict[str, Graph]) -> dict[str, Graph]:
    return {stack: graph for stack, graph in graphs.items() if stack.startswith("prod.")}


def test_nothing_in_our_stacks_is_unpriced(graphs: dict[str, Graph]) -> None:
    report = cost_of(graphs, load_prices())
    assert {bill.stack: bill.unpriced for bill in report.bills if bill.unpriced} == {}
    assert {"prod.cluster.us-east-2", "prod.serving.us-east-2"} <= {bill.stack for bill in report.bills if bill.floor}


def test_every_price_has_a_source_and_a_day() -> None:
    for key, price in load_prices().prices.items():
        assert price.source and price.read.year >= 2026, key


def test_most_of_what_prod_costs_rests_on_confirmed_prices(graphs: dict[str, Graph]) -> None:
    assert cost_of(prod(graphs), load_prices()).unconfirmed_ratio < 0.05


def test_a_change_costs_the_difference(graphs: dict[str, Graph]) -> None:
    after = prod(graphs)
    before = dict(after)
    graph = before["prod.cluster.us-east-2"]
    gateway = next(graph.of_type("aws:ec2/natGateway:NatGateway"))
    before["prod.cluster.us-east-2"] = replace(graph, resources=tuple(found for found in graph.resources if found is not gateway))
    del before["prod.edge"]
    report = cost_of(after, load_prices(), before, "main")
    deltas = {item.stack: item.delta_usd_per_h for item in report.stacks if abs(item.delta_usd_per_h) > 1e-9}
    edge = next(item.after for item in report.stacks if item.stack == "prod.edge")
    assert edge is not None
    assert deltas == {
        "prod.cluster.us-east-2": pytest.approx(load_prices().prices["vpc:nat-gateway"].usd),
        "prod.edge": pytest.approx(edge.floor_usd_per_h),
    }


@pytest.mark.parametrize(("limit_usd_per_h", "code"), [(100.0, 0), (0.01, 1)])
def test_a_budget_is_a_gate(limit_usd_per_h: float, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pull request's workflow runs this command."""
    budget = Budget(always_usd_per_h=limit_usd_per_h, owner="platform-team", reason="what a test is allowed to spend")
    monkeypatch.setattr("infra.costs.budgets.load_budgets", lambda: {"staging": budget})
    result = CliRunner().invoke(app, ["cost", "--env", "staging", "--json", "--gate"])
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout.splitlines()[0])
    assert document["floor_usd_per_h"] > 0 and document["stacks"][0]["stack"] == "staging.foundation"
    (verdict,) = document["budgets"]
    assert verdict["is_exceeded"] is bool(code) and verdict["usd_per_h"] == document["floor_usd_per_h"]
    assert ("over budget: staging, always" in result.output) is bool(code)


def test_every_environment_has_a_budget_and_keeps_it(graphs: dict[str, Graph]) -> None:
    verdicts = judge_budgets(cost_of(graphs, load_prices()).bills, load_budgets())
    assert {"prod", "staging"} <= {verdict.scope for verdict in verdicts}
    assert [verdict.message for verdict in verdicts if verdict.is_exceeded] == []


def test_a_budget_of_something_that_there_is_not_is_named(tmp_path: Path) -> None:
    shutil.copytree(STACKS_DIR, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "budgets.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("  staging:", "  stagin:"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stacks/budgets\.yaml: `budgets\.stagin` is no environment and no stack"):
        load_budgets(tmp_path)


def test_the_spot_saving_is_within_what_the_design_claims() -> None:
    """60 to 70 %: the book takes the lower end, and says that it is assumed."""
    spot = load_prices().spot
    assert 0.6 <= spot.discount_ratio <= 0.7 and "assumed" in spot.source


def test_a_million_tokens_of_every_class_of_prod_has_a_price() -> None:
    result = CliRunner().invoke(app, ["cost", "--env", "prod", "--json", "--per-token"])
    assert result.exit_code == 0, result.output
    units = json.loads(result.stdout)["per_token"]
    assert [unit["model_class"] for unit in units[::2]] == ["small", "medium", "large"]
    assert all(spot["usd_per_mtok"] < bought["usd_per_mtok"] for bought, spot in zip(units[::2], units[1::2], strict=True))


@pytest.mark.parametrize(
    "arguments", [[], ["--env", "prod", "--all"], ["--all", "--per-token"], ["--env", "staging", "--per-token"]]
)
def test_what_cannot_be_answered_is_one_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["cost", *arguments])
    assert isinstance(result.exception, UserError), result.output
