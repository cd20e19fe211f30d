"""Which earlier resource a later one is, by the aliases that the program gave it and those that it takes from its parent.

The rules are the engine's (pulumi, `pkg/resource/deploy/step_generator.go`, `generateAliases`, and
`sdk/go/common/resource/urn`): a resource is first looked for under its own URN, then under each alias. A child of a renamed
parent has an alias without being told: its URN holds its parents' types, and a name that begins with its parent's name is taken
to have followed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from infra.embedded.graph import Resource

_PART = re.compile(r"(?:^| )(name|type|stack|project|parent)=(\S+)")
_STACK_TYPE = "pulumi:pulumi:Stack"


def former_urns(earlier: Mapping[str, Resource], later: Sequence[Resource]) -> dict[str, str]:
    """The earlier URN of every later resource that was there before; parents come before their children in `later`."""
    names = {resource.urn: resource.name for resource in later}
    found: dict[str, str] = {}
    taken: set[str] = set()
    for resource in later:
        if resource.urn in earlier:
            found[resource.urn] = resource.urn
            taken.add(resource.urn)
    for resource in later:
        if resource.urn in found:
            continue
        former_parent = found.get(resource.parent, "")
        for urn in _candidates(resource, names.get(resource.parent, ""), former_parent):
            if urn in earlier and urn not in taken:
                found[resource.urn] = urn
                taken.add(urn)
                break
    return found


def _candidates(resource: Resource, parent_name: str, former_parent: str) -> Iterator[str]:
    """URNs that the resource may have had."""
    aliases = [_Alias(resource, text) for text in resource.options.aliases]
    for alias in aliases:
        yield alias.urn
    if former_parent and former_parent != resource.parent:
        _, _, former_type, former_name = _split(former_parent)
        for name, kind in [(resource.name, resource.type), *((alias.name, alias.type) for alias in aliases)]:
            followed = former_name + name.removeprefix(parent_name) if name.startswith(parent_name) else name
            yield _with(former_parent, f"{former_type}${kind}", followed)


class _Alias:
    """One alias as the recorder writes it: a URN, or what differs from the resource as it is now."""

    def __init__(self, resource: Resource, text: str) -> None:
        if text.startswith("urn:"):
            self.urn = text
            _, _, qualified, self.name = _split(text)
            self.type = qualified.rsplit("$", 1)[-1]
            return
        parts = dict(_PART.findall(text))
        stack, project, qualified, _ = _split(resource.urn)
        self.name, self.type = parts.get("name", resource.name), parts.get("type", resource.type)
        ancestors = qualified.rsplit("$", 1)[0] if "$" in qualified else ""
        if "parent" in parts:
            parent_type = _split(parts["parent"])[2]
            ancestors = "" if parent_type == _STACK_TYPE else parent_type
        elif text == "no parent":
            ancestors = ""
        qualified = f"{ancestors}${self.type}" if ancestors else self.type
        self.urn = f"urn:pulumi:{parts.get('stack', stack)}::{parts.get('project', project)}::{qualified}::{self.name}"


def _split(urn: str) -> tuple[str, str, str, str]:
    """Stack, project, type with those of its ancestors, and name."""
    stack, project, qualified, name = urn.removeprefix("urn:pulumi:").split("::", 3)
    return stack, project, qualified, name


def _with(urn: str, qualified: str, name: str) -> str:
    stack, project, _, _ = _split(urn)
    return f"urn:pulumi:{stack}::{project}::{qualified}::{name}"
