"""The resource graph of one stack: what the program declared, as plain values.

Previews, golden tests, guardrails, cost and the local realiser all read this. Values that a provider computes only when it
creates something, such as an ARN, are tokens: `${<urn>#<property>}` inside ordinary strings, so that an address built from
one survives concatenation and JSON. Secrets are wrapped, and are never printed or written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(r"\$\{(?P<urn>urn:pulumi:[^#}]+)#(?P<property>[A-Za-z0-9_.]+)\}")
HIDDEN = "[secret]"


@dataclass(frozen=True, repr=False)
class Secret:
    """A value that must not be shown. `value` may be a token."""

    value: Any

    def __repr__(self) -> str:
        return HIDDEN


@dataclass(frozen=True)
class Options:
    """The resource options that the program set; an option left alone has its default."""

    protect: bool = False
    retain_on_delete: bool = False
    delete_before_replace: bool = False
    ignore_changes: tuple[str, ...] = ()
    replace_on_changes: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    provider: str = ""
    """URN of the explicit provider; empty for components and for default providers, which are refused."""
    depends_on: tuple[str, ...] = ()
    deleted_with: str = ""


@dataclass(frozen=True)
class Resource:
    """One declared resource. Property names are the provider's own (camelCase)."""

    urn: str
    type: str
    name: str
    parent: str
    """URN of the parent; empty below the stack itself."""
    custom: bool
    """False for components, which no provider creates."""
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    """Inputs and computed properties together, `id` included."""
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Graph:
    """Every resource of a stack in order of declaration, parents and dependencies first."""

    stack: str
    resources: tuple[Resource, ...]
    outputs: Mapping[str, Any]
    """What the stack exports to other stacks."""
    references: tuple[str, ...] = ()
    """Stacks whose outputs it reads."""

    def of_type(self, *types: str) -> Iterator[Resource]:
        """Resources of any of these types, in order."""
        return (resource for resource in self.resources if resource.type in types)


def token(urn: str, name: str) -> str:
    """The token for property `name` of the resource `urn`."""
    return "${" + urn + "#" + name + "}"


def substitute(value: Any, lookup: Callable[[str, str], Any]) -> Any:
    """`value` with every token replaced by `lookup(urn, property)`, at any depth.

    A string that is one token whole takes the looked-up value as it is; inside a longer string it becomes text.
    Secrets are opened: the result is for the process or the call that needs it, never for print.
    """
    if isinstance(value, Secret):
        return substitute(value.value, lookup)
    if isinstance(value, str):
        whole = TOKEN.fullmatch(value)
        if whole:
            return lookup(whole["urn"], whole["property"])
        return TOKEN.sub(lambda match: str(lookup(match["urn"], match["property"])), value)
    if isinstance(value, Mapping):
        return {key: substitute(item, lookup) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [substitute(item, lookup) for item in value]
    return value


def tokens_in(value: Any) -> set[tuple[str, str]]:
    """Every (URN, property) that `value` refers to."""
    found: set[tuple[str, str]] = set()

    def note(urn: str, name: str) -> str:
        found.add((urn, name))
        return ""

    substitute(value, note)
    return found
