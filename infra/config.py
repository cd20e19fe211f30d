"""What a stack is told: its own file, `stacks/Pulumi.<stack>.yaml`, and the catalog and the tariffs that all share.

All are checked whole before any resource exists, and every fault is reported at once. The engine hands a program its stack's
values as text (`3`, `{"replicas": 3}`); the embedded run hands over the file's own. Both fit the same models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Generic

from infra import rules
from infra.catalog import Catalog, Environment, Model, Region
from infra.documents import parse, raise_all, read_yaml
from infra.errors import ConfigError
from infra.naming import PROJECT, Names, StackName
from infra.rules import stack_file_name
from infra.stack_config import ClusterConfig, LayerT, ServingConfig
from policies.billing.tariffs import Tariffs
from serving.settings import ModelClass

STACKS_DIR = Path(__file__).resolve().parents[1] / "stacks"
CATALOG_NAME = "catalog.yaml"
TARIFFS_NAME = "tariffs.yaml"


@dataclass(frozen=True)
class Program(Generic[LayerT]):
    """All that a layer is built from."""

    stack: StackName
    catalog: Catalog
    tariffs: Tariffs
    config: LayerT

    @property
    def environment(self) -> Environment:
        """The stack's environment."""
        return self.catalog.environments[self.stack.environment]

    @property
    def region(self) -> Region:
        """The stack's region; only regional layers ask."""
        return self.catalog.regions[self.stack.region]

    @property
    def names(self) -> Names:
        """The maker of physical names."""
        return self.catalog.names(self.stack.environment)

    def model(self, model_class: ModelClass) -> Model:
        """The model that this environment serves as `model_class`."""
        return self.catalog.models[self.model_name(model_class)]

    def model_name(self, model_class: ModelClass) -> str:
        """That model's name in the catalog."""
        served = self.environment.models
        if isinstance(self.config, ServingConfig) and self.config.twins:
            served = {**served, **self.environment.twins}
        return served[model_class]


def load(stack: StackName, model: type[LayerT], values: Mapping[str, Any], stacks_dir: Path = STACKS_DIR) -> Program[LayerT]:
    """The stack's configuration from `values` (keys without their namespace) and the catalog.

    Raises:
        ConfigError: anything is wrong with either; every fault is a line.
    """
    catalog, faults = _parse_catalog(stacks_dir)
    tariffs, tariff_faults = _parse_tariffs(stacks_dir, catalog)
    faults += tariff_faults
    shown = stack_file_name(stack)
    config, stack_faults = parse(model, {key: _decoded(value) for key, value in values.items()}, shown, f"{PROJECT}:")
    faults += stack_faults
    if catalog is not None:
        elsewhere = _unknown_place(stack, catalog)
        faults += elsewhere
        if config is not None and not elsewhere:
            faults += rules.faults_of(stack, catalog, config, _cluster_below(stack, config, stacks_dir), today())
    raise_all(faults)
    assert catalog is not None and tariffs is not None and config is not None
    return Program(stack, catalog, tariffs, config)


def load_catalog(stacks_dir: Path = STACKS_DIR) -> Catalog:
    """The catalog alone.

    Raises:
        ConfigError: it cannot be read or does not fit; every fault is a line.
    """
    catalog, faults = _parse_catalog(stacks_dir)
    raise_all(faults)
    assert catalog is not None
    return catalog


def environment_of(catalog: Catalog, name: str) -> Environment:
    """The environment called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in catalog.environments:
        known = ", ".join(catalog.environments)
        raise ConfigError(
            f"stacks/{CATALOG_NAME}: no environment {name!r}; it has {known}", "add it to `environments`, or correct the name"
        )
    return catalog.environments[name]


def read_stack_file(stack: StackName, stacks_dir: Path = STACKS_DIR) -> dict[str, Any]:
    """This project's values in the stack's file, without their namespace, as `pulumi up` would hand them to the program.

    Raises:
        ConfigError: the file is missing, unreadable, or holds keys that are neither ours nor Pulumi's.
    """
    shown = stack_file_name(stack)
    config = read_yaml(stacks_dir / f"Pulumi.{stack}.yaml", shown).get("config") or {}
    values: dict[str, Any] = {}
    faults: list[str] = []
    for key, value in config.items():
        namespace, _, name = str(key).partition(":")
        if namespace == PROJECT and name:
            values[name] = value
        elif namespace != "pulumi":
            faults.append(f"{shown}: `{key}` is not a known key. Ours begin with `{PROJECT}:`.")
    raise_all(faults)
    return values


def today() -> date:
    """The day on which rules about the calendar are asked; tests give another."""
    return datetime.now(UTC).date()


def project_values() -> dict[str, Any]:
    """This project's values as the engine that runs us gave them, without their namespace."""
    from pulumi.runtime import config as runtime_config

    given: Mapping[str, Any] = runtime_config.CONFIG.get() or runtime_config.get_config_env()
    return {key.removeprefix(f"{PROJECT}:"): value for key, value in given.items() if key.startswith(f"{PROJECT}:")}


def _cluster_below(stack: StackName, config: LayerT, stacks_dir: Path) -> ClusterConfig | None:
    """The stack file of the cluster that a serving stack runs on; None where it has faults of its own, which are told there."""
    if not isinstance(config, ServingConfig):
        return None
    cluster = StackName(stack.environment, "cluster", stack.region)
    try:
        values = read_stack_file(cluster, stacks_dir)
    except ConfigError:
        return None
    return parse(ClusterConfig, values, stack_file_name(cluster))[0]


def _parse_catalog(stacks_dir: Path) -> tuple[Catalog | None, list[str]]:
    shown = f"stacks/{CATALOG_NAME}"
    catalog, faults = parse(Catalog, read_yaml(stacks_dir / CATALOG_NAME, shown), shown)
    return catalog, _lines(shown, faults)


def _parse_tariffs(stacks_dir: Path, catalog: Catalog | None) -> tuple[Tariffs | None, list[str]]:
    """The tariffs, and what is wrong with them; they price every model that an environment serves."""
    shown = f"stacks/{TARIFFS_NAME}"
    tariffs, faults = parse(Tariffs, read_yaml(stacks_dir / TARIFFS_NAME, shown), shown)
    if tariffs is not None and catalog is not None:
        environments = catalog.environments.values()
        served = {model for its in environments for model in (*its.models.values(), *its.twins.values())}
        faults += [f"{shown}: {fault}" for fault in tariffs.unpriced(sorted(served & catalog.models.keys()))]
    return tariffs, _lines(shown, faults)


def _lines(shown: str, faults: list[str]) -> list[str]:
    """A rule over a whole document reports several faults in one error; each is a line of its own here."""
    return [line if line.startswith(shown) else f"{shown}: {line}" for fault in faults for line in fault.splitlines()]


def _decoded(value: Any) -> Any:
    """A value that the engine handed over as text: objects and lists are JSON, the rest is for the model to read."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _unknown_place(stack: StackName, catalog: Catalog) -> list[str]:
    shown, name = f"{stack}: stacks/{CATALOG_NAME}", stack.environment
    if name not in catalog.environments:
        return [f"{shown} has no environment {name!r}; it has {', '.join(catalog.environments)}."]
    if stack.region and stack.region not in catalog.environments[name].regions:
        return [f"{shown}: `environments.{name}.regions` lacks {stack.region!r}. Add it, or correct the name."]
    return []
