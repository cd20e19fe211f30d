"""What would change between two graphs of a stack: resources by URN or alias, their properties by path, and what the engine does.

Paths are for reading: list items that have names go by them (`containers[gateway].env[HOME].value`), so an insertion is one
change and not a shift of all that follows; text that is JSON is compared inside (`data.gateway.json/timeouts/gap_s`). Secrets are
compared as `[secret]`: a new value of one is not shown, not even that it is new.

Replacements spread: what a provider computes for a replaced resource is not known before it is there again, so whatever holds
such a value changes too, and is itself replaced where that is in a property that forces it (`replacements`). The same goes for a
new provider. Resources are visited in the order of the later graph, dependencies first, so one pass sees all of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from infra.embedded import replacements
from infra.embedded.aliases import former_urns
from infra.embedded.graph import HIDDEN, TOKEN, Graph, Options, Resource, Secret, tokens_in
from infra.embedded.graph_json import hidden
from infra.embedded.property_paths import ABSENT, kept, parse, values_at
from infra.embedded.replacements import Sides

REMADE = " (made anew)"
"""Follows a computed value of a resource that is replaced: nobody knows what it will be."""
PROVIDER = "options.provider"
UNCOMPARED_OPTIONS = ("depends_on", "aliases")
"""What a resource waits for is there again in the properties it takes from others; an alias only says what it was called."""

NAMING_KEYS = ("name", "id", "regionName", "region", "Sid")
"""What tells the items of a list apart: containers, replication rules, replicas of tables and of secrets, policy statements."""


class Verdict(StrEnum):
    """What happens to a resource."""

    CREATED = "created"
    UPDATED = "updated"
    REPLACED = "replaced"
    DELETED = "deleted"
    UNCHANGED = "unchanged"


class Refusal(StrEnum):
    """Who will not have a change."""

    PROTECTED = "protected"
    """The engine: it neither deletes nor replaces what its state says is protected. `up` stops before it changes anything."""
    IMMUTABLE = "immutable"
    """The API server: the property cannot be updated, and the provider does not know that. `up` fails half-way."""


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
    forced_by: tuple[str, ...] = ()
    """The properties for which it is replaced, or for which its change is refused."""
    refusal: Refusal | None = None
    formerly: str = ""
    """Its URN before, where an alias leads to another one than it has now."""

    @property
    def is_left_behind(self) -> bool:
        """Whether the engine forgets what is there now instead of deleting it."""
        return self.verdict in (Verdict.DELETED, Verdict.REPLACED) and self.resource.options.retain_on_delete

    @property
    def deletes_first(self) -> bool:
        """Whether it is gone for a while: deleted before its replacement is made."""
        return self.verdict is Verdict.REPLACED and self.resource.options.delete_before_replace


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
    def refused(self) -> tuple[ResourceChange, ...]:
        """Changes that somebody will not have."""
        return tuple(change for change in self.changes if change.refusal)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return all(change.verdict is Verdict.UNCHANGED for change in self.changes)


def compare(before: Graph | None, after: Graph | None) -> GraphDiff:
    """What would change from `before` (None: nothing is there) to `after` (None: nothing shall be), in this stack alone."""
    (diff,) = compare_in_order([(before, after)])
    return diff


def compare_in_order(stacks: Iterable[tuple[Graph | None, Graph | None]]) -> Iterator[GraphDiff]:
    """The same for stacks that come after those that they refer to: what one replaces or renames counts in those after it."""
    replaced: set[str] = set()
    renamed: dict[str, str] = {}
    for before, after in stacks:
        earlier = {resource.urn: resource for resource in before.resources} if before else {}
        later = after.resources if after else ()
        comparison = _Comparison(earlier, later, replaced, renamed)
        changes = [comparison.of(resource) for resource in later]
        changes += [_deleted(resource) for urn, resource in earlier.items() if urn not in comparison.formerly.values()]
        graph = after or before
        assert graph is not None
        yield GraphDiff(graph.stack, tuple(changes))


class _Comparison:
    """One run over a stack. `replaced` and `renamed` (new URN by old) hold those of earlier stacks, and grow by this one's."""

    def __init__(
        self, earlier: Mapping[str, Resource], later: Sequence[Resource], replaced: set[str], renamed: dict[str, str]
    ) -> None:
        self.formerly = former_urns(earlier, later)
        self._earlier = earlier
        self._later = {resource.urn: resource for resource in later}
        self._replaced = replaced
        self._renamed = renamed
        renamed.update((old, new) for new, old in self.formerly.items() if old != new)

    def of(self, after: Resource) -> ResourceChange:
        """What happens to one resource of the later graph; those it depends on have been asked about."""
        before = self._earlier.get(self.formerly.get(after.urn, ""))
        if before is None:
            return ResourceChange(Verdict.CREATED, after)
        old_inputs = self._as_of_now(hidden(before.inputs))
        new_inputs = self._with_ignored_changes(after, old_inputs, self._with_remade(after.inputs))
        old_options = self._as_of_now(_options(before.options))
        properties = (
            *_compare_values("", old_inputs, new_inputs),
            *_compare_values("options", old_options, _options(after.options)),
        )
        forced = self._forced_by(before, after, old_inputs, new_inputs) if after.custom else ()
        formerly = before.urn if before.urn != after.urn else ""
        if forced:
            self._replaced.add(after.urn)
            refusal = Refusal.PROTECTED if before.options.protect else None
            return ResourceChange(Verdict.REPLACED, after, properties, forced, refusal, formerly)
        if not properties:
            return ResourceChange(Verdict.UNCHANGED, after, formerly=formerly)
        refused = replacements.refused_by(after.type, Sides(old_inputs, new_inputs, {}))
        refusal = Refusal.IMMUTABLE if refused else None
        return ResourceChange(Verdict.UPDATED, after, properties, refused, refusal, formerly)

    def _forced_by(
        self, before: Resource, after: Resource, old_inputs: Mapping[str, Any], new_inputs: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """The properties for which the resource is replaced."""
        old_provider, new_provider = self._provider(self._earlier, before), self._provider(self._later, after)
        forced = list(replacements.forced_by(after.type, Sides(old_inputs, new_inputs, new_provider)))
        for pattern in after.options.replace_on_changes:
            if values_at(old_inputs, parse(pattern)) != values_at(new_inputs, parse(pattern)):
                forced.append(pattern)
        kind = self._later[after.options.provider].type if after.options.provider in self._later else ""
        if kind and old_provider and replacements.forced_by(kind, Sides(old_provider, new_provider, {})):
            forced.append(PROVIDER)
        if after.type.startswith(replacements.AWS) and "region" in after.outputs:
            # Taking `region` away replaces nothing: the provider then goes on with the one that its state has.
            old_region = replacements.region_of(old_inputs, old_provider)
            new_region = replacements.region_of(new_inputs, new_provider if "region" not in old_inputs else {})
            if old_region and new_region and old_region != new_region:
                forced.append("region")
        return tuple(dict.fromkeys(forced))

    def _provider(self, resources: Mapping[str, Resource], resource: Resource) -> dict[str, Any]:
        """Inputs of the resource's provider, as they are compared."""
        provider = resources.get(resource.options.provider)
        if provider is None:
            return {}
        if resources is self._earlier:
            return dict(self._as_of_now(hidden(provider.inputs)))
        return dict(self._with_remade(provider.inputs))

    def _as_of_now(self, value: Any) -> Any:
        """An earlier value with the URNs that its resources have now: a rename alone changes nothing that refers to it."""
        if not self._renamed:
            return value

        def translated(text: str) -> str:
            text = TOKEN.sub(lambda match: match[0].replace(match["urn"], self._renamed.get(match["urn"], match["urn"]), 1), text)
            return self._renamed.get(text, text)

        return _mapped(value, translated)

    def _with_remade(self, value: Any) -> Any:
        """A later value with secrets hidden and every computed value of a replaced resource marked."""
        if not self._replaced:
            return hidden(value)
        if isinstance(value, Secret):
            return HIDDEN + REMADE if any(urn in self._replaced for urn, _ in tokens_in(value)) else HIDDEN
        if isinstance(value, Mapping):
            return {str(key): self._with_remade(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._with_remade(item) for item in value]
        if isinstance(value, str):
            return TOKEN.sub(lambda match: match[0] + (REMADE if match["urn"] in self._replaced else ""), value)
        return value

    @staticmethod
    def _with_ignored_changes(after: Resource, old_inputs: Any, new_inputs: Any) -> Any:
        for pattern in after.options.ignore_changes:
            new_inputs = kept(old_inputs, new_inputs, parse(pattern))
        return new_inputs


def _deleted(resource: Resource) -> ResourceChange:
    return ResourceChange(Verdict.DELETED, resource, refusal=Refusal.PROTECTED if resource.options.protect else None)


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
    """`value` with every string in it put through `function`."""
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, function) for item in value]
    return function(value) if isinstance(value, str) else value


def _options(options: Options) -> dict[str, Any]:
    """Options that are set and compared."""
    default = asdict(Options())
    return {
        name: hidden(value)
        for name, value in asdict(options).items()
        if name not in UNCOMPARED_OPTIONS and value != default[name]
    }


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
    for key in NAMING_KEYS:
        names = [item.get(key) if isinstance(item, Mapping) else None for item in items]
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
