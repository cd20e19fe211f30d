"""Graphs as JSON files, for people and for comparing later.

A secret is written as `[secret]` and cannot be had back. What a provider would compute is left out: those are tokens that name
themselves, and comparing inputs says all. So a graph that was read has its inputs for outputs, and writing it again gives the
same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.embedded import state as files
from infra.embedded.graph import HIDDEN, Graph, Options, Resource, Secret
from serving.errors import UserError

FORMAT = 1


def hidden(value: Any) -> Any:
    """`value` with every secret replaced by `[secret]`, at any depth, as plain JSON values."""
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(key): hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(item) for item in value]
    return value


def encode(graph: Graph) -> str:
    """The graph as JSON text, the same for equal graphs."""
    document = {
        "format": FORMAT,
        "stack": graph.stack,
        "references": list(graph.references),
        "outputs": hidden(graph.outputs),
        "resources": [_resource(resource) for resource in graph.resources],
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def decode(text: str, shown: str) -> Graph:
    """The graph in `text`, which errors call `shown`.

    Raises:
        UserError: it is no such graph.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise UserError(
                f"{shown}: has format {document['format']!r}, must be {FORMAT}", "run `flotilla up` again: it writes it anew"
            )
        return Graph(
            stack=document["stack"],
            resources=tuple(_decode_resource(item) for item in document["resources"]),
            outputs=document["outputs"],
            references=tuple(document["references"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown}: is no recorded graph: {error}", "remove it; `flotilla up` writes it anew") from error


def graph_path(state_dir: Path, stack: str) -> Path:
    """Where the graph of `stack` lies, as it last came up."""
    return state_dir / "graphs" / f"{stack}.json"


def load_graph(state_dir: Path, stack: str) -> Graph | None:
    """The graph of `stack` as it last came up; None if it never did.

    Raises:
        UserError: the file cannot be read.
    """
    path = graph_path(state_dir, stack)
    try:
        return decode(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "mend its permissions, or remove it") from error


def save_graph(state_dir: Path, graph: Graph) -> None:
    """Keeps `graph` as what has come up; the file is whole or the old one stays."""
    path = graph_path(state_dir, graph.stack)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write(path, encode(graph).encode())


def _resource(resource: Resource) -> dict[str, Any]:
    default = asdict(Options())
    options = {name: value for name, value in asdict(resource.options).items() if value != default[name]}
    return {
        "urn": resource.urn,
        "type": resource.type,
        "name": resource.name,
        "parent": resource.parent,
        "custom": resource.custom,
        "inputs": hidden(resource.inputs),
        "options": options,
    }


def _decode_resource(item: Mapping[str, Any]) -> Resource:
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in item["options"].items()
    }
    return Resource(
        urn=item["urn"],
        type=item["type"],
        name=item["name"],
        parent=item["parent"],
        custom=item["custom"],
        inputs=item["inputs"],
        outputs=item["inputs"],
        options=Options(**options),
    )
