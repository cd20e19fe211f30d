"""What a failover believes of an environment is what the program declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.embedded.recorder import record
from infra.errors import ConfigError
from infra.naming import LOCAL
from infra.recovery.estate import Estate, RegionEstate, load_estate, save_local


def test_names_and_addresses_are_those_that_the_program_gives() -> None:
    """Nobody may be asked on that night, so both follow the same rules; here they are compared."""
    estate = load_estate("prod")
    graphs = record(["prod.foundation", "prod.edge"])
    declared = graphs["prod.foundation"].outputs
    assert estate.failover_table == declared["tables"]["failover"]
    assert estate.registry_table == declared["tables"]["registry"]
    edge = graphs["prod.edge"].outputs
    assert estate.api_url == f"https://{edge['api_domain']}"
    for name, region in estate.regions.items():
        assert region.artifact_bucket == declared["regions"][name]["artifact_bucket"]
        assert region.archive_bucket == declared["regions"][name]["archive_bucket"]
        assert region.url == f"https://{edge['regional_domains'][name]}"
    assert estate.committed_req_per_min == {"small": 7000, "medium": 2000, "large": 1000}


def test_the_regions_of_this_machine_are_read_as_they_were_written(tmp_path: Path) -> None:
    regions = {"us-east-2": RegionEstate("us-east-2", "http://127.0.0.1:8080", "a", "b", "http://127.0.0.1:4566")}
    estate = Estate(LOCAL, regions, "failover", "registry", "http://127.0.0.1:8000", {"small": 1})
    save_local(estate, tmp_path)
    assert load_estate(LOCAL, state_dir=tmp_path) == estate


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ("mars", "catalog.yaml: `environments.mars` is missing"),
        (LOCAL, "no local region is up"),
    ],
)
def test_an_environment_that_is_not_there_is_one_line(tmp_path: Path, environment: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_estate(environment, state_dir=tmp_path)


def test_a_lone_region_has_nobody_to_fail_over_to() -> None:
    with pytest.raises(ConfigError, match="us-east-2 is the only region of staging"):
        load_estate("staging").survivors("us-east-2")
