"""A stack as guardrails see it: its resources, what its environment is, and the documents inside properties."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from policies.resources import Declared, at, listed

PROVIDER_TYPES = "pulumi:providers:"
KUBERNETES_TYPES = "kubernetes:"


@dataclass(frozen=True)
class Scope:
    """What the catalog says of an environment."""

    regions: tuple[str, ...]
    is_on_this_machine: bool = False
    """Pods are processes here and AWS is emulated: rules about what is bought or pulled do not apply."""


@dataclass(frozen=True)
class Estate:
    """All resources of one stack, and what its environment is."""

    stack: str
    resources: tuple[Declared, ...]
    scope: Scope

    def of_type(self, *types: str) -> Iterator[Declared]:
        """Resources of any of these types, in order of declaration."""
        for wanted in types:
            yield from self._by_type.get(wanted, ())

    def companions(self, of: Declared, type_: str, by: str) -> list[Declared]:
        """Resources of `type_` whose property `by` names `of`: the versioning of a bucket, the rules of a group."""
        return [found for found in self.of_type(type_) if found.refers_to(of, by)]

    @property
    def is_multi_region(self) -> bool:
        """Whether the environment has a region to lose."""
        return len(self.scope.regions) > 1

    @cached_property
    def _by_type(self) -> Mapping[str, list[Declared]]:
        grouped: dict[str, list[Declared]] = {}
        for resource in self.resources:
            grouped.setdefault(resource.type, []).append(resource)
        return grouped


def statements(document: Any) -> list[Mapping[str, Any]]:
    """The statements of an IAM policy document, given as JSON or as a mapping; none where it is not one."""
    if isinstance(document, str):
        try:
            document = json.loads(document)
        except ValueError:
            return []
    return [item for item in listed(at(document, "Statement")) if isinstance(item, Mapping)]
