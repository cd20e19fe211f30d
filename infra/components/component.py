"""What every component of this project is: a named group of resources that knows its stack and tags its children.

Tags are given to each resource here, not by a provider default or a transform: both are invisible to a run without the engine,
so neither could be tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import pulumi

from infra import migrations
from infra.naming import PROJECT, StackName
from infra.tags import tags_of


class Component(pulumi.ComponentResource):
    """Base of the project's components. `kind` is `<group>:<Noun>`, as in `artifacts:EncryptedBucket`."""

    def __init__(self, kind: str, name: str, stack: StackName, opts: pulumi.ResourceOptions | None) -> None:
        options = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(aliases=migrations.aliases_of(name)))
        super().__init__(f"{PROJECT}:{kind}", name, None, options)
        self.stack = stack
        self._name = name
        self._after = _resources(opts)

    def part(self, what: str) -> str:
        """Logical name of a child. URNs hold the types of a resource's ancestors but not their names, so the name must."""
        return f"{self._name}-{what}"

    def tags(self, **further: str) -> dict[str, str]:
        """Tags of a child."""
        return tags_of(self.stack, self._name, **further)

    def child(
        self,
        provider: pulumi.ProviderResource | None = None,
        *,
        protect: bool | None = None,
        depends_on: Sequence[pulumi.Resource] = (),
        ignore_changes: Sequence[str] = (),
    ) -> pulumi.ResourceOptions:
        """Options of a child; its provider is the component's unless given.

        It waits for what the component waits for: the SDK hands a component's provider down to its children, and not what it
        depends on, so that pods would race their namespace.
        """
        return pulumi.ResourceOptions(
            parent=self,
            provider=provider,
            protect=protect,
            depends_on=[*self._after, *depends_on],
            ignore_changes=list(ignore_changes),
        )


def _resources(opts: pulumi.ResourceOptions | None) -> list[pulumi.Resource]:
    """What `opts` depends on; the program gives lists of resources, and nothing that is known only later."""
    given = opts.depends_on if opts else None
    return [item for item in given if isinstance(item, pulumi.Resource)] if isinstance(given, Sequence) else []
