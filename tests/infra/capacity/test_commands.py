"""The capacity of our own environments: floors that carry what is committed, and a command that shows its work."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from infra import config
from infra.capacity.commands import class_demands
from infra.cli import app
from infra.naming import StackName
from infra.stack_config import ServingConfig
from policies.capacity.operating_point import Mix, operating_point
from policies.capacity.plan import carries

CATALOG = config.load_catalog()


@pytest.mark.parametrize("model_class", ["small", "medium", "large"])
def test_the_floors_of_prod_carry_the_committed_load_with_any_region_lost(model_class: str) -> None:
    floors: dict[str, int] = {}
    for region in CATALOG.environments["prod"].regions:
        stack = StackName("prod", "serving", region)
        program = config.load(stack, ServingConfig, config.read_stack_file(stack))
        floors[region] = next(item for name, item in program.config.engines.items() if name == model_class).floor.replicas
    (demand,) = class_demands(CATALOG, "prod", {model_class: 1.0})
    point = operating_point(demand.profile, Mix(), 0.7, demand.max_batch)
    committed = next(fleet for name, fleet in CATALOG.classes.items() if name == model_class).committed_req_per_min
    assert len(floors) == 2
    assert all(carries(floors, point.req_per_s, committed).values()), (floors, point.req_per_s, committed)


def test_the_command_shows_its_arithmetic_and_the_promise_by_bucket() -> None:
    result = CliRunner().invoke(app, ["capacity"])
    assert result.exit_code == 0, result.output
    for part in ("1,667 a second at the peak", "14.4 for each", "engines a region", "P50 of the first token", "not measured"):
        assert part in result.output


def test_the_command_speaks_json() -> None:
    document = json.loads(CliRunner().invoke(app, ["capacity", "--json", "--req-per-min", "6000"]).output)
    assert [item["name"] for item in document["classes"]] == ["small", "medium", "large"]
    assert document["gpus"] > 0 and document["usd_per_h"] > 0
