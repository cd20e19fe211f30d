"""Renames of components that stacks already have: what each was called before, so that the engine finds it and replaces nothing.

A component's children follow it: their names begin with its own (`Component.part`), and the engine takes that for a rename of
both. So one line here is all that a rename needs. A line may go once every environment has been deployed with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import pulumi

RENAMED: Mapping[str, tuple[str, ...]] = {}
"""Logical names that a component had before, newest first, by the one that it has now: `{"weights": ("artifacts",)}`."""


def aliases_of(name: str) -> list[pulumi.Alias]:
    """Aliases of the component called `name`; none, if it was never called otherwise."""
    return [pulumi.Alias(name=former) for former in RENAMED.get(name, ())]
