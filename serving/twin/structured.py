"""Answers of a given form: what a twin writes where a grammar would guide a model, a JSON document or the call of a tool.

The same state gives the same answer, and its strings say that they are synthetic. A schema is followed as far as its types,
bounds, choices and references go; what a twin cannot follow is refused by name rather than ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from serving.twin.refusal import Refusal
from serving.twin.vocabulary import Vocabulary

_HEAD, _ARGUMENTS, _TAIL = '<tool_call>\n{"name": ', ', "arguments": ', "}\n</tool_call>"
"""How the `hermes` parser's models write a call."""
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_CANNOT = frozenset({"pattern", "not", "if", "allOf", "multipleOf", "minProperties", "patternProperties", "contains"})
_CANNOT |= {"dependentRequired", "dependentSchemas", "prefixItems", "uniqueItems"}
_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "synthetic@example.com",
    "uri": "https://example.com/synthetic",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_MAX_DEPTH = 16
_LEAN_DEPTH = 4
"""From here on only what is required is written, which ends schemas that contain themselves."""
_RANGE = 100


@dataclass(frozen=True)
class Call:
    """The call of a tool in a text."""

    name: str
    named: int
    """So many characters tell which tool it is."""
    begins: int
    ends: int
    """Its arguments are the characters from `begins` to before `ends`."""


@dataclass(frozen=True)
class Script:
    """An answer that is known from its first token on."""

    ids: Sequence[int]
    """The end-of-text token is the last."""
    pieces: Sequence[str]
    """The text of each of them."""
    call: Call | None


@dataclass(frozen=True)
class Form:
    """What an answer has to be: a call of one of `tools` (parameters by name), or where there are none a document of `schema`."""

    vocabulary: Vocabulary
    schema: Any = None
    tools: Mapping[str, Any] | None = None
    is_named: bool = False
    """The client named the tool, which vLLM tells apart in its finish reasons."""

    def check(self) -> None:
        """Write once.

        Raises:
            Refusal: the schema cannot be followed.
        """
        for schema in self.tools.values() if self.tools else (self.schema,):
            _value(schema, schema, Random(0), self._words, 0)  # noqa: S311 - no secret

    def write(self, state: int) -> Script:
        """The answer that follows from `state`."""
        random = Random(state)  # noqa: S311 - no secret
        call = None
        if self.tools:
            name = random.choice(sorted(self.tools))
            named = _HEAD + json.dumps(name)
            head = named + _ARGUMENTS
            arguments = json.dumps(_value(self.tools[name], self.tools[name], random, self._words, 0))
            call = Call(name, len(named), len(head), len(head) + len(arguments))
            text = head + arguments + _TAIL
        else:
            text = json.dumps(_value(self.schema, self.schema, random, self._words, 0))
        spelt = self.vocabulary.spell(text)
        return Script((*(token_id for token_id, _ in spelt), self.vocabulary.eos_id), (*(piece for _, piece in spelt), ""), call)

    @property
    def _words(self) -> Sequence[str]:
        return self.vocabulary.plain_words


def _value(schema: Any, root: Any, random: Random, words: Sequence[str], depth: int) -> Any:
    """A value of `schema`, whose references are into `root`.

    Raises:
        Refusal: it cannot be followed.
    """
    if schema in (None, True):
        return {"synthetic": random.choice(words)}
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        raise Refusal(400, "Grammar error: a schema is an object, and does not contain itself without end.")
    if unknown := sorted(_CANNOT & schema.keys()):
        raise Refusal(400, f"A twin cannot follow `{unknown[0]}` in a JSON schema.")
    if "$ref" in schema:
        return _value(_resolved(schema["$ref"], root), root, random, words, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return random.choice(schema["enum"])
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            # From some depth on the last, which is where people write null.
            chosen = schema[several][-1] if depth > _LEAN_DEPTH else random.choice(schema[several])
            return _value(chosen, root, random, words, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = random.choice(kind)
    if kind not in _TYPES:
        raise Refusal(400, f"Grammar error: Invalid type: {kind}")
    if kind == "object":
        return _object(schema, root, random, words, depth)
    if kind == "array":
        least = schema.get("minItems", 0)
        most = max(least, min(schema.get("maxItems", least + 2), least + 2) if depth <= _LEAN_DEPTH else least)
        return [_value(schema.get("items"), root, random, words, depth + 1) for _ in range(random.randint(least, most))]
    if kind == "string":
        return _string(schema, random, words)
    if kind == "boolean":
        return random.random() < 0.5
    return None if kind == "null" else _number(schema, random)


def _object(schema: Mapping[str, Any], root: Any, random: Random, words: Sequence[str], depth: int) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    return {
        name: _value(of, root, random, words, depth + 1)
        for name, of in schema.get("properties", {}).items()
        if name in required or (depth <= _LEAN_DEPTH and random.random() < 0.5)
    }


def _string(schema: Mapping[str, Any], random: Random, words: Sequence[str]) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = f"synthetic {random.choice(words)}"
    while len(text) < schema.get("minLength", 0):
        text += f" {random.choice(words)}"
    return text[: schema.get("maxLength", len(text))]


def _number(schema: Mapping[str, Any], random: Random) -> int:
    """Whole, whether any number would do or not."""
    least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    most = schema.get("maximum", schema.get("exclusiveMaximum", max(least, 0) + _RANGE + 1) - 1)
    if -(-least // 1) > most // 1:
        raise Refusal(400, "A twin cannot follow bounds that hold no whole number.")
    return random.randint(int(-(-least // 1)), int(most // 1))


def _resolved(reference: Any, root: Any) -> Any:
    found = root
    for name in str(reference).removeprefix("#/").split("/") if reference != "#" else ():
        found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        raise Refusal(400, f"Grammar error: there is nothing at {reference}")
    return found
