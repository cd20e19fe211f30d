"""The price book on our own program: everything is priced or said to be billed by use, and changes have a price."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.costs.report import cost_of, load_prices
from infra.embedded.graph import Graph


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


@pytest.mark.parametrize(("budget", "code"), [("100000", 0), ("0.01", 1)])
def test_a_budget_is_a_gate(budget: str, code: int) -> None:
    result = CliRunner().invoke(app, ["cost", "--env", "staging", "--json", "--budget-usd-per-h", budget])
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout.splitlines()[0])
    assert document["floor_usd_per_h"] > 0 and document["stacks"][0]["stack"] == "staging.foundation"
