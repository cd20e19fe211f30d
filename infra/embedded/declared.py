"""A recorded graph as the plain resources that policies read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.embedded.graph import Graph, Resource, tokens_in
from infra.embedded.graph_json import hidden
from policies.resources import Declared

NAMED = ("bucket", "role", "policy", "repository")
"""Nouns whose physical name the program gives, so that others name them by it."""


def declared(graph: Graph) -> tuple[Declared, ...]:
    """Every resource of the graph, in its order. Secrets stay hidden."""
    owners = {identity: resource.urn for resource in graph.resources if (identity := _identity(resource))}
    return tuple(
        Declared(
            stack=graph.stack,
            urn=resource.urn,
            type=resource.type,
            name=resource.name,
            inputs=hidden(resource.inputs),
            is_custom=resource.custom,
            is_protected=resource.options.protect,
            provider=resource.options.provider,
            references={name: _references(value, resource.urn, owners) for name, value in resource.inputs.items()},
        )
        for resource in graph.resources
    )


def _references(value: Any, own: str, owners: Mapping[str, str]) -> frozenset[str]:
    """URNs that a property's value comes from: by token, or by the physical name that the program gave the other resource."""
    found = {urn for urn, _ in tokens_in(value)}
    if isinstance(value, str) and value in owners:
        found.add(owners[value])
    return frozenset(found - {own})


def _identity(resource: Resource) -> str:
    """The physical name that the program gave it: a bucket's `bucket`, others' `name`; empty where AWS chooses."""
    noun = resource.type.rpartition("/")[2].partition(":")[0]
    named = resource.inputs.get(noun, resource.inputs.get("name"))
    return named if resource.custom and isinstance(named, str) and noun in NAMED else ""
