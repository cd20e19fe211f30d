"""Places inside a resource's properties, as resource options name them: `spec.replicas`, `tags["a.b"]`, `env[*].value`.

`*` stands for every item of a list or every key of an object. Values are plain ones, secrets hidden; what is not there is
`ABSENT`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_STEP = re.compile(r"""\[\s*(?:"(?P<quoted>[^"]*)"|(?P<index>\d+)|(?P<every>\*))\s*\]|(?P<name>[^.\[\]]+)""")
EVERY = "*"

Step = str | int


class _Absent:
    """A value that is not there."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def parse(path: str) -> tuple[Step, ...]:
    """The steps of `path`: `a["b.c"][0].*` gives `("a", "b.c", 0, "*")`."""
    steps: list[Step] = []
    for match in _STEP.finditer(path):
        if match["index"] is not None:
            steps.append(int(match["index"]))
        else:
            steps.append(next(part for part in (match["quoted"], match["every"], match["name"]) if part is not None))
    return tuple(steps)


def values_at(value: Any, steps: Sequence[Step]) -> list[Any]:
    """Every value that `steps` lead to, in order; `ABSENT` where they lead nowhere."""
    if not steps:
        return [value]
    step, *rest = steps
    if step == EVERY:
        items = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else []
        return [found for item in items for found in values_at(item, rest)]
    return values_at(_child(value, step), rest)


def kept(before: Any, after: Any, steps: Sequence[Step]) -> Any:
    """`after` with what lies at `steps` as it was in `before`: what `ignoreChanges` makes of a resource's new inputs."""
    if not steps:
        return before
    step, *rest = steps
    if isinstance(after, list):
        changed = list(after)
        for index in _indices(after, step):
            item = kept(_child(before, index), after[index], rest)
            if item is not ABSENT:
                changed[index] = item
        return changed
    if not isinstance(after, Mapping):
        return after
    keys = {**after, **(before if isinstance(before, Mapping) else {})} if step == EVERY else [str(step)]
    result = dict(after)
    for key in keys:
        item = kept(_child(before, key), result.get(key, ABSENT), rest)
        if item is ABSENT:
            result.pop(key, None)
        else:
            result[key] = item
    return result


def _indices(items: Sequence[Any], step: Step) -> Iterator[int]:
    return (index for index in range(len(items)) if step in (EVERY, index))


def _child(value: Any, step: Step) -> Any:
    if isinstance(value, Mapping):
        return value.get(str(step), ABSENT)
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step]
    return ABSENT
