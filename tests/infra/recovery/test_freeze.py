"""While a region is failed over nobody deploys."""

from __future__ import annotations

import dataclasses

import pytest
from recovery_world import EAST, WEST, World

from infra.errors import UserError
from infra.recovery import freeze


def test_deploys_are_refused_from_the_failover_to_the_failback(world: World) -> None:
    freeze.refuse_frozen(world.estate)
    world.down.add(EAST)
    world.sleep(60)
    world.recovery().failover(EAST, "power is out")
    with pytest.raises(UserError, match="deploys of prod are frozen: us-east-2 is left: power is out"):
        freeze.refuse_frozen(world.estate)
    world.down.clear()
    world.sleep(10)
    world.recovery().failback(EAST, "it is back")
    world.sleep(1)
    freeze.refuse_frozen(world.estate)


def test_one_region_that_answers_is_enough_and_none_is_refused(world: World) -> None:
    nobody = "http://127.0.0.1:9"
    regions = dict(world.estate.regions)
    regions[EAST] = dataclasses.replace(regions[EAST], aws_url=nobody)
    freeze.refuse_frozen(dataclasses.replace(world.estate, regions=regions))
    regions[WEST] = dataclasses.replace(regions[WEST], aws_url=nobody)
    with pytest.raises(UserError, match="failover in us-east-2: get_item"):
        freeze.refuse_frozen(dataclasses.replace(world.estate, regions=regions))


def test_what_was_never_deployed_is_not_frozen(world: World) -> None:
    freeze.refuse_frozen(dataclasses.replace(world.estate, failover_table="nowhere"))


def test_the_script_of_the_workflows_says_why(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert freeze.main(["mars"]) == 2
    assert "environments.mars" in capsys.readouterr().err
    assert freeze.main([]) == 2
