"""What the tests of cluster stacks share: finding one resource, and what it points at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from infra.embedded.graph import Graph, Resource, tokens_in
from infra.embedded.recorder import record

PROD, STAGING, LOCAL = "prod.cluster.us-east-2", "staging.cluster.us-east-2", "local.cluster.us-east-2"


def named(graph: Graph, resource_type: str, name: str) -> Resource:
    """The one resource of this type and name."""
    (found,) = (resource for resource in graph.of_type(resource_type) if resource.name == name)
    return found


def points_at(value: Any) -> list[str]:
    """Names of the resources that `value` refers to, sorted."""
    return sorted(urn.rpartition("::")[2] for urn, _ in tokens_in(value))


def statements(graph: Graph, policy: str) -> Iterator[dict[str, Any]]:
    """Statements of the inline policy called `policy`."""
    yield from json.loads(named(graph, "aws:iam/rolePolicy:RolePolicy", policy).inputs["policy"])["Statement"]


def recorded_with(stack: str, **overrides: Any) -> Graph:
    """`stack` as it is with `overrides` laid over its file."""
    return record([stack], overrides={stack: overrides})[stack]


def is_allowed(policy: Sequence[Mapping[str, Any]], action: str, resource: str, context: Mapping[str, str]) -> bool:
    """Whether `policy`, which only allows, allows `action` on `resource` in a request with `context`.

    It knows the operators that our policies use, and fails on any other, so that no condition is overlooked.
    """
    return any(
        action in statement["Action"]
        and any(fnmatchcase(resource, pattern) for pattern in statement["Resource"])
        and all(_holds(*condition, context) for condition in statement.get("Condition", {}).items())
        for statement in policy
    )


def _holds(operator: str, wanted: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    for key, allowed in wanted.items():
        values = [allowed] if isinstance(allowed, str) else allowed
        match operator:
            case "StringEquals":
                holds = context.get(key) in values
            case "StringLike":
                holds = any(fnmatchcase(context.get(key, ""), pattern) for pattern in values) and key in context
            case "ForAllValues:StringEquals":
                holds = set(filter(None, context.get(key, "").split(","))) <= set(values)
            case _:
                raise AssertionError(f"unknown operator {operator}")
        if not holds:
            return False
    return True
