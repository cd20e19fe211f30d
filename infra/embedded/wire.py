"""Property values between the program and its monitor: protobuf on one side, plain Python with `Secret` on the other.

The SDK's own conversion opens secrets and pushes the mark upwards, which is right for a program and wrong for a record: here a
secret stays exactly where the program put it. Whole numbers become `int`, since protobuf has only doubles and a port is not 80.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2  # type: ignore[import-untyped]

from infra.embedded.graph import Secret

SIGNATURE = "4dabf18193072939515e22adb298388d"
"""Key that marks a special value on the wire (pulumi/sdk, `common/resource/sig`)."""
SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 (a marker, not a secret)
RESOURCE_REFERENCE = "5cf8f73096256a8f31e491e813e4eb8e"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


class UnknownValueError(Exception):
    """The program passed a value that is not known; under the recorder every value is, so this is a defect of the program."""


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The properties of a request as plain values; nulls are left out, as the engine does."""
    values = {key: _from_value(value) for key, value in struct.fields.items()}
    return {key: value for key, value in sorted(values.items()) if value is not None}


def to_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """`values` as the engine would answer them, secrets marked."""
    return struct_pb2.Struct(fields={key: _to_value(value) for key, value in values.items()})


def open_secrets(value: Any) -> Any:
    """`value` without its secret marks, at any depth."""
    if isinstance(value, Secret):
        return open_secrets(value.value)
    if isinstance(value, Mapping):
        return {key: open_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [open_secrets(item) for item in value]
    return value


def secret(value: Any) -> Secret:
    """`value` marked as a secret, once."""
    return Secret(open_secrets(value))


def has_secret(value: Any) -> bool:
    """Whether a secret lies anywhere in `value`."""
    if isinstance(value, Secret):
        return True
    if isinstance(value, Mapping):
        return any(has_secret(item) for item in value.values())
    return isinstance(value, list | tuple) and any(has_secret(item) for item in value)


def _from_value(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _from_special(value.struct_value)
    if kind == "list_value":
        return [_from_value(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "string_value":
        if value.string_value == UNKNOWN:
            raise UnknownValueError("a property is unknown: an Output of no recorded resource was used")
        return value.string_value
    return value.bool_value if kind == "bool_value" else None


def _from_special(struct: struct_pb2.Struct) -> Any:
    signature = struct.fields[SIGNATURE].string_value if SIGNATURE in struct.fields else ""
    if signature == SECRET:
        return secret(_from_value(struct.fields["value"]))
    if signature == RESOURCE_REFERENCE:
        return struct.fields["urn"].string_value
    return from_struct(struct)


def _to_value(value: Any) -> struct_pb2.Value:
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, Secret):
        return _to_value({SIGNATURE: SECRET, "value": value.value})
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, int | float):
        return struct_pb2.Value(number_value=float(value))
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, Mapping):
        return struct_pb2.Value(struct_value=to_struct(value))
    return struct_pb2.Value(list_value=struct_pb2.ListValue(values=[_to_value(item) for item in value]))
