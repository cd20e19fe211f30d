"""Reads YAML documents into typed models, and says everything that is wrong with them at once.

A fault is one line: file, key, value, what was expected. PyYAML lets a later key silently replace an earlier one of the
same name; here that is a fault too, since the reader of the file sees both.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from infra.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)
HINT = "correct the keys named above; `flotilla preview` checks them without a cloud"


class _Loader(yaml.CSafeLoader):
    """Safe loader that refuses repeated keys. libyaml's, since Python's own takes ten times as long over the catalog."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands here twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, shown: str) -> dict[str, Any]:
    """The mapping in the file at `path`, which errors call `shown`. An empty file is an empty mapping.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is no mapping.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError as error:
        raise ConfigError(f"{shown}: no such file", "every stack has a file beside the catalog, even an empty one") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{shown}: cannot be read: {reason}", "restore it from version control, or mend its permissions"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{shown}{where}: not valid YAML: {error.problem}", "correct that line") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown}: not valid YAML: {error}".replace("\n", " "), "correct the file") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{shown}: holds a {type(document).__name__}, must hold a mapping of keys", "see its neighbours for the shape"
        )
    return document


def parse(model: type[ModelT], values: Mapping[str, Any], shown: str, prefix: str = "") -> tuple[ModelT | None, list[str]]:
    """`values` as `model`, or None with every fault, one line each; `prefix` stands before each key, such as `flotilla:`."""
    try:
        return model.model_validate(dict(values)), []
    except ValidationError as error:
        return None, [_fault(model, item, shown, prefix) for item in error.errors(include_url=False)]


def raise_all(faults: Iterable[str]) -> None:
    """Raises one ConfigError that names every fault, if there is any."""
    lines = list(faults)
    if lines:
        raise ConfigError("\n".join(lines), HINT)


def _fault(model: type[BaseModel], item: ErrorDetails, shown: str, prefix: str) -> str:
    path = [part for part in item["loc"] if part != "[key]"]
    key = prefix + ".".join(str(part) for part in path)
    where = f"{shown}: `{key}`" if path else shown
    match item["type"]:
        case "missing":
            return f"{where} is missing. Add it."
        case "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), _fields(model, path[:-1]), n=1)
            return f"{where} is not a known key. {f'Did you mean `{near[0]}`?' if near else 'Remove it.'}"
        case "value_error":
            return f"{where}: {item['msg'].removeprefix('Value error, ')}"
    return f"{where} is {_short(item['input'])}: {item['msg'][0].lower()}{item['msg'][1:]}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(model: Any, path: Iterable[str | int]) -> list[str]:
    """Field names of the model that lies at `path` within `model`, as far as types say."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else next((a for a in getattr(model, "__args__", ())[::-1]), None)
        model = next((a for a in getattr(model, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)), model)
    return list(getattr(model, "model_fields", {}))
