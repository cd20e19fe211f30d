"""Declared resources as plain values: what guardrails and costs look at, from a recorded graph or from the engine itself.

Both give the same thing, so a rule cannot tell them apart. What differs is how one resource names another: a recording has
tokens, an engine has values and says which properties depend on which resources. So references are a field of their own here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Declared:
    """One resource. Property names are the provider's own (camelCase)."""

    stack: str
    urn: str
    type: str
    name: str
    inputs: Mapping[str, Any]
    is_custom: bool = True
    """False for components, which no provider makes."""
    is_protected: bool = False
    provider: str = ""
    """URN of its provider; empty where the engine would take a default one."""
    references: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Property → URNs of the resources that its value comes from."""

    @property
    def environment(self) -> str:
        """The first part of the stack's name."""
        return self.stack.partition(".")[0]

    @property
    def region(self) -> str:
        """The last part of a regional stack's name; empty for stacks of all regions."""
        parts = self.stack.split(".")
        return parts[2] if len(parts) > 2 else ""

    def at(self, *path: str | int) -> Any:
        """The value at a path of properties, such as `at("spec", "ports", 0)`; None where anything on the way is missing."""
        return at(self.inputs, *path)

    def refers_to(self, other: Declared, by: str) -> bool:
        """Whether property `by` takes its value from `other`."""
        return other.urn in self.references.get(by, frozenset())


def at(value: Any, *path: str | int) -> Any:
    """The value at `path` in mappings and lists; None where anything on the way is missing."""
    for step in path:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list | tuple) and -len(value) <= step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value


def listed(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty one, and a single value as a list of it, as IAM's documents allow."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def texts(value: Any) -> Iterable[str]:
    """Every string in `value`, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)
