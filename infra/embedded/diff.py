"""What would change between two graphs of a stack: resources by URN, their properties by path.

Paths are for reading: list items that have names go by them (`containers[gateway].env[HOME].value`), so an insertion is one
change and not a shift of all that follows; text that is JSON is compared inside (`data.gateway.json/timeouts/gap_s`). Secrets are
compared as `[secret]`: a new value of one is not shown, not even that it is new.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from infra.embedded.graph import Graph, Options, Resource
from infra.embedded.graph_json import hidden


class Verdict(StrEnum):
    """What happens to a resource."""

    CREATED = "created"
    CHANGED = "changed"
    DELETED = "deleted"
    UNCHANGED = "unchanged"


class _Absent:
    """A property that is not there."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True)
class PropertyChange:
    """One property before and after; either may be `ABSENT`."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True)
class ResourceChange:
    """A resource, and what happens to it."""

    verdict: Verdict
    resource: Resource
    """As it will be; as it was, if it is deleted."""
    properties: tuple[PropertyChange, ...] = ()


@dataclass(frozen=True)
class GraphDiff:
    """Every resource of a stack, before or after, in the order of the later graph and then of the earlier."""

    stack: str
    changes: tuple[ResourceChange, ...]

    def counts(self) -> dict[Verdict, int]:
        """Number of resources by verdict, all verdicts present."""
        counted = Counter(change.verdict for change in self.changes)
        return {verdict: counted[verdict] for verdict in Verdict}

    def of(self, *verdicts: Verdict) -> Iterator[ResourceChange]:
        """Changes with any of these verdicts."""
        return (change for change in self.changes if change.verdict in verdicts)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return all(change.verdict is Verdict.UNCHANGED for change in self.changes)


def compare(before: Graph | None, after: Graph) -> GraphDiff:
    """What would change from `before` (None: nothing is there) to `after`."""
    earlier = {resource.urn: resource for resource in before.resources} if before else {}
    changes = [_compare_resource(earlier.get(resource.urn), resource) for resource in after.resources]
    kept = {resource.urn for resource in after.resources}
    changes += [ResourceChange(Verdict.DELETED, resource) for urn, resource in earlier.items() if urn not in kept]
    return GraphDiff(after.stack, tuple(changes))


def _compare_resource(before: Resource | None, after: Resource) -> ResourceChange:
    if before is None:
        return ResourceChange(Verdict.CREATED, after)
    properties = (
        *_compare_values("", hidden(before.inputs), hidden(after.inputs)),
        *_compare_values("options", _options(before.options), _options(after.options)),
    )
    return ResourceChange(Verdict.CHANGED if properties else Verdict.UNCHANGED, after, properties)


def _options(options: Options) -> dict[str, Any]:
    """Options that are set. What a resource waits for is not one: it is there again in the properties it takes from others."""
    default = asdict(Options())
    return {name: hidden(value) for name, value in asdict(options).items() if name != "depends_on" and value != default[name]}


def _compare_values(path: str, before: Any, after: Any) -> Iterator[PropertyChange]:
    if isinstance(before, str) and isinstance(after, str):
        inner_before, inner_after = _json_object(before), _json_object(after)
        if inner_before is not None and inner_after is not None:
            before, after, path = inner_before, inner_after, f"{path}/"
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            yield from _compare_values(_below(path, key), before.get(key, ABSENT), after.get(key, ABSENT))
    elif isinstance(before, list) and isinstance(after, list):
        named_before, named_after = _by_name(before), _by_name(after)
        for key in [*named_before, *(key for key in named_after if key not in named_before)]:
            yield from _compare_values(f"{path}[{key}]", named_before.get(key, ABSENT), named_after.get(key, ABSENT))
        if named_before.keys() == named_after.keys() and list(named_before) != list(named_after):
            yield PropertyChange(f"{path} (order)", list(named_before), list(named_after))
    elif before != after or isinstance(before, bool) != isinstance(after, bool):  # 1 equals True, and is not the same
        yield PropertyChange(path, before, after)


def _below(path: str, key: str) -> str:
    if not path:
        return key
    return f"{path}{key}" if path.endswith("/") else f"{path}.{key}"


def _by_name(items: Sequence[Any]) -> dict[str, Any]:
    """Items by name where each has one of its own, else by index."""
    names = [item.get("name") if isinstance(item, Mapping) else None for item in items]
    if items and all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
        return dict(zip(map(str, names), items, strict=True))
    return {str(index): item for index, item in enumerate(items)}


def _json_object(text: str) -> dict[str, Any] | None:
    """The object that `text` is the JSON of, if it is."""
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
