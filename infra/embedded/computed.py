"""What a provider would compute: a token for every output property that the program did not give as an input.

The properties and their types come from the resource's own Python class, found by its type token, so nothing here knows any
service. A property that is an object is opened, `${urn#certificateAuthority.data}`, because programs reach into it; a list of
objects has one such element; anything else is one token, a list of strings too, which passes through whole.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
from pulumi import _types

from infra.embedded.graph import Secret, token

KUBERNETES = "kubernetes:"
PROVIDERS = "pulumi:providers:"
MAX_DEPTH = 4
"""Objects deeper than this are one token: schemas such as JSONSchemaProps contain themselves."""


class UnknownTypeError(Exception):
    """A resource's type token belongs to no class that has been imported."""


def outputs_of(resource_type: str, urn: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and computed properties of a custom resource, `id` apart.

    What a provider adds inside an object that the program gave (the security group in a cluster's `vpcConfig`) is there too;
    not so for Kubernetes objects, where it would be every default of the API server and no program reads it back. A custom
    resource, such as KEDA's ScaledObject, has no class of its own, and gives back what it got.

    Raises:
        UnknownTypeError: it is another provider's, and no program has imported its class.
    """
    is_kubernetes = resource_type.startswith(KUBERNETES)
    if resource_type.startswith(PROVIDERS) or (is_kubernetes and not has_class(resource_type)):
        return dict(inputs)
    outputs: dict[str, Any] = {}
    for name, hint in _types.resource_types(class_of(resource_type)).items():
        given = inputs.get(name)
        if given is None:
            outputs[name] = _expand(hint, urn, name, depth=0)
        else:
            outputs[name] = given if is_kubernetes else _complete(hint, given, urn, name)
    return {**inputs, **outputs}


def _expand(hint: Any, urn: str, path: str, depth: int) -> Any:
    """Tokens in the shape of type `hint`."""
    hint = _types.unwrap_optional_type(hint)
    if depth < MAX_DEPTH:
        if _is_object(hint):
            fields = _types.output_type_types(hint)
            return {name: _expand(field, urn, f"{path}.{name}", depth + 1) for name, field in fields.items()}
        element = _element(hint)
        if _is_object(element):
            return [_expand(element, urn, f"{path}.0", depth + 1)]
    return token(urn, path)


def _complete(hint: Any, given: Any, urn: str, path: str) -> Any:
    """`given`, with a token for each plain property of its type that it leaves out."""
    hint = _types.unwrap_optional_type(hint)
    if isinstance(given, Secret):
        return given
    if isinstance(given, Mapping) and _is_object(hint):
        fields = _types.output_type_types(hint)
        added = {name: token(urn, f"{path}.{name}") for name, field in fields.items() if name not in given and _is_plain(field)}
        kept = {name: _complete(fields.get(name), item, urn, f"{path}.{name}") for name, item in given.items()}
        return {**kept, **added}
    if isinstance(given, list) and _is_object(_element(hint)):
        return [_complete(_element(hint), item, urn, f"{path}.{index}") for index, item in enumerate(given)]
    return given


def _is_object(hint: Any) -> bool:
    return isinstance(hint, type) and _types.is_output_type(hint)


def _is_plain(hint: Any) -> bool:
    return _types.unwrap_optional_type(hint) is str


def _element(hint: Any) -> Any:
    """The element type of a list type, else None."""
    origin = typing.get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
        arguments = typing.get_args(hint)
        return arguments[0] if arguments else None
    return None


def has_class(resource_type: str) -> bool:
    """Whether an imported class has this type."""
    try:
        class_of(resource_type)
    except UnknownTypeError:
        return False
    return True


@functools.cache
def class_of(resource_type: str) -> type:
    """The class whose `pulumi_type` is `resource_type`.

    Raises:
        UnknownTypeError: no program has imported it.
    """
    pending: list[type] = [pulumi.CustomResource]
    while pending:
        candidate = pending.pop()
        if candidate.__dict__.get("pulumi_type") == resource_type:
            return candidate
        pending.extend(candidate.__subclasses__())
    raise UnknownTypeError(f"{resource_type}: no imported resource class has this type")
