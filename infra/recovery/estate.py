"""Which regions an environment has and what lies where, from files of this repository alone.

Names follow rules (`infra/naming.py`), so nobody need be asked. The environment of one machine is the exception: its addresses
are those that `flotilla up` wrote into the state folder. The catalog is read here without its types, which would bring the
program with them; it was checked when it was deployed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.errors import ConfigError
from infra.naming import LOCAL, Names
from policies.failover.rotation import MOVES_WITHIN_S

STACKS_DIR = Path(__file__).resolve().parents[2] / "stacks"
LOCAL_FILE = "estate.json"


@dataclass(frozen=True)
class RegionEstate:
    """One region of an environment."""

    name: str
    url: str
    """Where its gateways answer whatever its health, without a slash at the end."""
    artifact_bucket: str
    archive_bucket: str
    aws_url: str = ""
    """The emulated AWS as this region sees it; empty for AWS."""


@dataclass(frozen=True)
class Estate:
    """An environment: what a failover needs to know of it."""

    environment: str
    regions: Mapping[str, RegionEstate]
    failover_table: str
    registry_table: str
    api_url: str
    """Where clients ask, without a slash at the end; empty where one local region stands alone, without an edge."""
    committed_req_per_min: Mapping[str, int]
    """By class, what floors are sized for."""
    moves_within_s: float = MOVES_WITHIN_S
    """After so long health checks have moved the clients of a region that fell silent."""

    def region(self, name: str) -> RegionEstate:
        """The region `name`.

        Raises:
            ConfigError: the environment has no such region.
        """
        if name not in self.regions:
            raise ConfigError(f"{self.environment} has no region {name!r}", f"it has {', '.join(self.regions)}")
        return self.regions[name]

    def survivors(self, lost: str) -> list[str]:
        """Every other region.

        Raises:
            ConfigError: there is none, or no region `lost`.
        """
        self.region(lost)
        left = [name for name in self.regions if name != lost]
        if not left:
            raise ConfigError(
                f"{lost} is the only region of {self.environment}",
                "nothing can take over; here, `flotilla up` with a --region for each starts two",
            )
        return left


def load_estate(environment: str, *, stacks_dir: Path = STACKS_DIR, state_dir: Path | None = None) -> Estate:
    """The estate of `environment`. `state_dir` is that of the local run: FLOTILLA_STATE, or `.flotilla/local`.

    Raises:
        ConfigError: there is no such environment, or a file lacks what is needed; the message names file and key.
    """
    if environment == LOCAL:
        return _local(state_dir or Path(os.environ.get("FLOTILLA_STATE") or Path(".flotilla") / LOCAL).absolute())
    path = stacks_dir / "catalog.yaml"
    catalog = _read_yaml(path)
    its = _at(catalog, path, "environments", environment)
    names = Names(str(_at(catalog, path, "name_prefix")), environment)
    edge_file = stacks_dir / f"Pulumi.{environment}.edge.yaml"
    domain = _at(_read_yaml(edge_file), edge_file, "config", "flotilla:domain")
    regions = {}
    for region in _at(its, path, "regions"):
        code = str(_at(catalog, path, "regions", region, "code"))
        regions[region] = RegionEstate(
            region, f"https://{code}.{domain}", names.regionally(code, "artifacts"), names.regionally(code, "archive")
        )
    return Estate(
        environment=environment,
        regions=regions,
        failover_table=names.globally("failover"),
        registry_table=names.globally("registry"),
        api_url=f"https://api.{domain}",
        committed_req_per_min={
            str(name): int(its["committed_req_per_min"]) for name, its in _at(catalog, path, "classes").items()
        },
    )


def save_local(estate: Estate, state_dir: Path) -> None:
    """Writes what `load_estate` reads for `local`."""
    document = {
        "failover_table": estate.failover_table,
        "registry_table": estate.registry_table,
        "api_url": estate.api_url,
        "committed_req_per_min": dict(estate.committed_req_per_min),
        "moves_within_s": estate.moves_within_s,
        "regions": {name: vars(region) for name, region in estate.regions.items()},
    }
    path = state_dir / LOCAL_FILE
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(document, indent=1))
    temporary.replace(path)


def _local(state_dir: Path) -> Estate:
    path = state_dir / LOCAL_FILE
    try:
        document = json.loads(path.read_text())
        regions = {name: RegionEstate(**its) for name, its in document.pop("regions").items()}
        return Estate(environment=LOCAL, regions=regions, **document)
    except FileNotFoundError as error:
        raise ConfigError(
            "no local region is up", "start two with `flotilla up --region us-east-2 --region us-west-2`"
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", "run `flotilla up` again: it writes the file anew") from error


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name}: cannot be read: {error}", "take it from the branch that was deployed") from error


def _at(document: Any, path: Path, *keys: str) -> Any:
    """What lies at `keys`.

    Raises:
        ConfigError: nothing does.
    """
    for number, key in enumerate(keys):
        if not isinstance(document, Mapping) or key not in document:
            raise ConfigError(f"{path.name}: `{'.'.join(keys[: number + 1])}` is missing", "name another environment, or add it")
        document = document[key]
    return document
