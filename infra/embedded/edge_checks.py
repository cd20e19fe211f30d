"""The edge's health checks, read from the Route 53 records and checks that the program declares.

One declaration has two readers: Route 53, and the edge of one machine. So what takes a region out here is what would in AWS.
"""

from __future__ import annotations

from typing import Any

from infra.embedded.graph import Graph, Resource, tokens_in
from policies.failover.rotation import Check

CHECK, RECORD = "aws:route53/healthCheck:HealthCheck", "aws:route53/record:Record"


def checks_of(graph: Graph) -> dict[str, tuple[Check, ...]]:
    """By region, the checks that its record of the API's name hangs on; {} for a stack without such records."""
    checks = {resource.urn: resource for resource in graph.of_type(CHECK)}
    records = list(graph.of_type(RECORD))
    answers = [record for record in records if record.inputs.get("healthCheckId")]
    host_of = {str(record.inputs["setIdentifier"]): str(record.inputs["records"][0]) for record in answers}
    region_of = {host: region for region, host in host_of.items()}
    found = {}
    for record in answers:
        (calculated,) = _named(record.inputs["healthCheckId"], checks)
        children = _named(calculated.inputs["childHealthchecks"], checks)
        # The program names them in no certain order, and another order would roll the edge.
        asked = sorted((_check(child, region_of) for child in children), key=lambda check: (check.asked, check.path))
        found[str(record.inputs["setIdentifier"])] = tuple(asked)
    return found


def _named(value: Any, checks: dict[str, Resource]) -> list[Resource]:
    """The checks whose ids are in `value`."""
    return [checks[urn] for urn, _ in tokens_in(value)]


def _check(child: Resource, region_of: dict[str, str]) -> Check:
    its = child.inputs
    return Check(region_of[its["fqdn"]], its["resourcePath"], bool(its["invertHealthcheck"]), int(its["failureThreshold"]))
