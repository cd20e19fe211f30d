"""Every stack as text, small enough to review: `goldens/<stack>.txt`.

The stacks of production's home region are written out: type, name, parent and options of every resource, and below it each
input that is not a tag or a label of all, or what sets it apart from an earlier resource of its type. Every other stack is
written as what sets it apart from its like there (`local.edge` from `prod.edge`, a second region from the first): a changed
default shows once, and what sets an environment apart at a glance.

After a change that is meant, write them anew and read the difference:

    FLOTILLA_WRITE_GOLDENS=1 .venv/bin/pytest tests/infra/program/test_goldens.py
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest
from golden_files import GOLDENS, check

from infra.config import load_catalog
from infra.embedded.graph import TOKEN, Graph, Options, Resource
from infra.embedded.graph_json import hidden
from infra.embedded.recorder import environment_stacks
from infra.embedded.replacements import CHART
from infra.naming import StackName, parse_stack

CATALOG = load_catalog()
STACKS = [stack for environment in CATALOG.environments for stack in environment_stacks(environment)]
REFERENCE = "prod"
MAX_VALUE_CHARS = 140
COMMON = {"tags", "labels"}
"""Left out of the text, since test_rules_of_the_graph holds them. Labels at the top are another thing: a node group's."""

Lines = dict[str, list[str]]
"""A resource's heading and the lines of its inputs."""


def name_of(urn: str) -> str:
    return urn.rpartition("::")[2] or "-"


def heading(resource: Resource) -> str:
    options, default = resource.options, Options()
    told = [f"provider={name_of(options.provider)}"] if options.provider else []
    for field in fields(Options):
        value = getattr(options, field.name)
        if field.name in ("provider", "depends_on") or value == getattr(default, field.name):
            continue
        told.append(
            field.name if value is True else f"{field.name}={name_of(value) if isinstance(value, str) else ','.join(value)}"
        )
    return "  ".join([resource.type, resource.name, f"in {name_of(resource.parent)}", *told])


def leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each plain value below `value` with its path; text that is a JSON object is opened."""
    if isinstance(value, str) and value.startswith("{") and not TOKEN.match(value):
        with suppress(ValueError):
            value, path = json.loads(value), f"{path}/"
    if isinstance(value, Mapping) and value:
        for key in sorted(value.keys() - (COMMON if path else {"tags"})):
            yield from leaves(f"{path}.{key}" if path else str(key), value[key])
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, item in enumerate(value):
            name = item.get("name", index) if isinstance(item, Mapping) else index
            yield from leaves(f"{path}[{shown(name)}]", item)
    else:
        yield path, value


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = TOKEN.sub(lambda match: f"${{{name_of(match['urn'])}.{match['property']}}}", text).replace("\n", "⏎")
    if len(text) <= MAX_VALUE_CHARS:
        return text
    return f"{text[:MAX_VALUE_CHARS]}… sha256:{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def written(graph: Graph) -> Lines:
    """Every resource in full, and what the stack exports and reads."""
    lines: Lines = {}
    for resource in sorted(graph.resources, key=lambda resource: (resource.type, resource.name)):
        is_made = resource.custom or resource.type == CHART
        lines[heading(resource)] = [f"{path}: {shown(value)}" for path, value in leaves("", hidden(resource.inputs)) if is_made]
    lines["exports"] = [f"{name}: {shown(value)}" for name, value in leaves("", hidden(graph.outputs))]
    lines["reads"] = list(graph.references)
    return lines


def without_place(stack: StackName, lines: Lines) -> Lines:
    """`lines` with words for the environment, its account, and the region of a regional stack."""
    environment = CATALOG.environments[stack.environment]
    words = {environment.account_id: "<account>", rf"\b{stack.environment}\b": "<env>"}
    if stack.region:
        region = CATALOG.regions[stack.region]
        first, second, *_ = str(region.vpc_cidr).split(".")
        words |= {stack.region: "<region>", rf"\b{region.code}\b": "<code>", rf"\b{first}\.{second}\.": "<vpc>."}

    def replaced(line: str) -> str:
        for word, placeholder in words.items():
            line = re.sub(word, placeholder, line)
        return line

    return {replaced(head): [replaced(line) for line in below] for head, below in lines.items()}


def like(stack: str) -> str | None:
    """The stack that `stack` is written against; None for those that are written out."""
    name, home = parse_stack(stack), CATALOG.environments[REFERENCE].home_region
    reference = str(StackName(REFERENCE, name.layer, home if name.region else ""))
    return None if reference == stack else reference


def differences(before: Lines, after: Lines) -> Iterator[str]:
    for head in sorted({*before, *after}):
        old, new = before.get(head, []), after.get(head, [])
        if head not in before:
            yield from (f"+ {head}", *(f"    {line}" for line in new))
        elif head not in after:
            yield f"- {head}"
        elif old != new:
            yield from (
                f"~ {head}",
                *(f"  - {line}" for line in old if line not in new),
                *(f"  + {line}" for line in new if line not in old),
            )


def in_full(lines: Lines) -> Iterator[str]:
    """Every resource; one that is much like an earlier one of its type, as what sets the two apart."""
    models: dict[str, list[tuple[str, list[str]]]] = {}
    for head, below in lines.items():
        kind, _, rest = head.partition("  ")
        told = below
        for name, model in models.get(kind, []):
            apart = [*(f"- {line}" for line in model if line not in below), *(f"+ {line}" for line in below if line not in model)]
            if len(apart) + 1 < len(told):
                told = [f"as {name}, but", *apart]
        if told is below:
            models.setdefault(kind, []).append((rest.partition("  ")[0], below))
        yield from (head, *(f"    {line}" for line in told))


def summary(stack: str, graphs: Mapping[str, Graph]) -> str:
    lines = written(graphs[stack])
    reference = like(stack)
    if reference is None:
        text = list(in_full(lines))
    else:
        before = without_place(parse_stack(reference), written(graphs[reference]))
        text = [f"As {reference}, but:", *differences(before, without_place(parse_stack(stack), lines))]
    return "\n".join([*text, ""])


@pytest.mark.parametrize("stack", STACKS)
def test_the_stack_is_what_was_reviewed(stack: str, graphs: dict[str, Graph]) -> None:
    check(GOLDENS / f"{stack}.txt", summary(stack, graphs))


def test_there_is_a_golden_for_each_stack_and_none_besides() -> None:
    assert sorted(path.stem for path in GOLDENS.glob("*.txt")) == sorted(STACKS)
