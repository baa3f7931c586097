"""The type a tool's schema gives a parameter, and a parameter's text as JSON of that type.

The text is never guessed at: it becomes the first of null, boolean, integer, number, object and
array that the schema allows and the text spells, JSON's way or Python's. Otherwise it is a string,
with every character kept: so is any text whose type is unknown, or which does not fit its type.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from qwenapi.text.output import python_literal
from qwenapi.text.output.json_scanner import NUMBER, WORDS

MAX_REFERENCES = 64
MAX_NUMBER_CHARS = 1000

_INTEGER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
_KINDS = ("null", "boolean", "integer", "number", "object", "array", "string")
_CONTAINERS = {"object": dict, "array": list}


@dataclass(frozen=True)
class ParameterType:
    """The kinds of JSON value a parameter may have, and the strings its enum names."""

    kinds: frozenset[str]
    names: frozenset[str] = frozenset()

    @property
    def is_string(self) -> bool:
        """Whether any text is a string, so that it may be passed on as it grows."""
        return self.kinds <= {"string"}

    def to_json(self, text: str) -> str:
        """Return JSON text of the value that `text` spells."""
        if text not in self.names:
            bare = text.strip()
            for kind in _KINDS:
                spelt = _spell(kind, bare) if kind in self.kinds else None
                if spelt is not None:
                    return spelt
        return json.dumps(text, ensure_ascii=False)


def parameter_type(schema: Mapping[str, Any], name: str) -> ParameterType:
    """Return the type of one parameter, given the schema of them all."""
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and name in properties:
        own = properties[name]
    else:
        own = schema.get("additionalProperties")
    found = _Resolver(schema)
    return ParameterType(frozenset(found.kinds_of(own)), frozenset(found.names))


class _Resolver:
    """Collects kinds from a schema; follows each reference once, so loops end."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.names: set[str] = set()
        self._root = root
        self._followed: set[str] = set()

    def kinds_of(self, schema: Any) -> set[str]:
        """Return the kinds a schema allows; "string" stands for an unknown one."""
        if not isinstance(schema, Mapping):
            return {"string"}
        kinds = set(self._stated(schema)) & set(_KINDS)
        if not kinds:
            kinds = {kind for branch in _branches(schema) for kind in self.kinds_of(branch)}
        if schema.get("nullable") is True:  # OpenAPI 3.0
            kinds.add("null")
        return kinds or {"string"}

    def _stated(self, schema: Mapping[str, Any]) -> Iterator[str]:
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(values, list):
            self.names.update(value for value in values if isinstance(value, str))
            yield from map(_kind_of, values)
        elif "type" in schema:
            stated = schema["type"]
            yield from [stated] if isinstance(stated, str) else _strings(stated)
        elif isinstance(schema.get("$ref"), str):
            yield from self._referred(schema["$ref"])
        elif "properties" in schema:
            yield "object"
        elif "items" in schema:
            yield "array"

    def _referred(self, reference: str) -> set[str]:
        if reference in self._followed or len(self._followed) >= MAX_REFERENCES:
            return set()
        self._followed.add(reference)
        target: Any = self._root if reference.startswith("#") else None
        for key in reference.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, Mapping) else None
        return self.kinds_of(target)


def _branches(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a value may match; of `allOf` the first, as its parts only narrow each other."""
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            yield from schema[key]
    if isinstance(schema.get("allOf"), list):
        yield from schema["allOf"][:1]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, str))


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
        case dict():
            return "object"
    return "string"


def _spell(kind: str, text: str) -> str | None:
    """Return the JSON text of the value of this kind that `text` spells, or None."""
    if kind in _CONTAINERS:
        return _spell_container(_CONTAINERS[kind], text)
    if kind == "string" or len(text) > MAX_NUMBER_CHARS:
        return None
    if kind == "integer":
        whole = _INTEGER.fullmatch(text)
        return whole[1] if whole else None
    if kind == "number":
        return text if NUMBER.fullmatch(text) else None
    word = WORDS.get(text)
    return word if (word == "null") is (kind == "null") else None


def _spell_container(kind: type, text: str) -> str | None:
    if _is_json_of(kind, text):
        return text
    translated = python_literal.to_json(text)
    return translated if translated is not None and _is_json_of(kind, translated) else None


def _is_json_of(kind: type, text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_constant=_refuse_constant), kind)
    except (ValueError, RecursionError):
        return False


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are no JSON")
