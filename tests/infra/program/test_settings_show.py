"""Every number and switch of a stack file shows in that stack's golden: a default that is changed cannot pass unseen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel
from test_goldens import summary

from infra import config
from infra.__main__ import build
from infra.embedded.graph import Graph
from infra.embedded.recorder import overlaid, record_program
from infra.errors import ConfigError
from infra.naming import parse_stack
from infra.stack_config import LAYER_CONFIGS

STACKS = ("prod.foundation", "prod.cluster.us-east-2", "prod.serving.us-east-2")


def settings(model: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every number and switch of `model` with its path, defaults included."""
    for name in type(model).model_fields:
        yield from _settings(getattr(model, name), (*path, name))


def _settings(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, BaseModel):
        yield from settings(value, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _settings(item, (*path, str(key)))
    elif isinstance(value, int):
        yield path, value


def nested(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


@pytest.mark.parametrize("stack", STACKS)
def test_a_setting_that_changes_shows_in_the_golden(stack: str, graphs: dict[str, Graph]) -> None:
    name = parse_stack(stack)
    values = config.read_stack_file(name)
    known = config.load(name, LAYER_CONFIGS[name.layer], values).config
    before = summary(stack, graphs)
    unseen, num_shown = [], 0
    for path, value in settings(known):
        for other in [not value] if isinstance(value, bool) else [value + 1, value - 1]:
            try:
                changed = overlaid(values, nested(path, other))
                after = record_program(partial(build, stack), stack, values=changed, graphs=graphs)
            except ConfigError:
                continue  # a rule between settings refuses it; the other direction may do
            if summary(stack, {**graphs, stack: after}) == before:
                unseen.append(".".join(path))
            num_shown += 1
            break
    assert unseen == []
    assert num_shown > 5
