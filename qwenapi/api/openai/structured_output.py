"""The fields of structured output, OpenAI's and vLLM's, and the grammar they become.

Only shape and size are checked here: whether a grammar can be kept to, the engine says.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from marshmallow import ValidationError, fields

from qwenapi.generation.answer_format import AnswerFormat, StructuralTag, sized
from qwenapi.shared_fields.json_schema import read_schema
from qwenapi.text.errors import GrammarShapeError
from qwenapi.text.grammars import JSON_OBJECT, structural_tag
from workers.wire.grammar import Grammar

_SCHEMA = {"type": ["object", "string", "boolean"]}
# vLLM's older names, one field each.
GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice",
          "guided_grammar": "grammar"}  # fmt: skip


class ResponseFormat(fields.Field[AnswerFormat | None]):
    """`text`, `json_object`, `json_schema`, or vLLM's `structural_tag`."""

    json_schema = {
        "type": "object",
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema", "structural_tag"]},
            "json_schema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "schema": {"type": "object"},
                    "strict": {"type": ["boolean", "null"]},
                },
            },
        },
        "required": ["type"],
    }

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> AnswerFormat | None:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "text":
            return None
        if kind == "json_object":
            return Grammar(kind="json_schema", text=JSON_OBJECT)
        if kind == "structural_tag":
            return _tagged(value)
        if kind != "json_schema":
            raise ValidationError("must have the type text, json_object or json_schema")
        named = value.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if schema is None and isinstance(value.get("schema"), dict):  # as llama.cpp's clients do
            schema = value["schema"]
        if not isinstance(schema, dict):
            raise ValidationError({"json_schema": {"schema": ["must be an object"]}})
        return read_schema(schema)


class StructuredOutputs(fields.Field[AnswerFormat | None]):
    """vLLM's `structured_outputs`: exactly one of its forms."""

    FORMS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
    json_schema = {
        "type": "object",
        "properties": {
            "json": _SCHEMA,
            "regex": {"type": "string"},
            "choice": {"type": "array", "items": {"type": "string"}},
            "grammar": {"type": "string"},
            "json_object": {"type": "boolean"},
        },
    }

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> AnswerFormat | None:
        given = (
            {form: value[form] for form in self.FORMS if value.get(form) is not None}
            if isinstance(value, dict)
            else {}
        )
        if len(given) != 1:
            raise ValidationError(f"must have exactly one of {', '.join(self.FORMS)}")
        ((form, content),) = given.items()
        return grammar_of(form, content)


class Guided(fields.Field[AnswerFormat | None]):
    """One of vLLM's older `guided_…` fields."""

    def __init__(self, form: str, **kwargs: Any) -> None:
        self._form = form
        self.json_schema: dict[str, Any] = StructuredOutputs.json_schema["properties"][form]  # type: ignore[index]
        super().__init__(**kwargs)

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> AnswerFormat | None:
        return grammar_of(self._form, value)


def grammar_of(form: str, content: Any) -> AnswerFormat | None:
    """Return the grammar of one of vLLM's forms; raise ValidationError for another shape."""
    if form == "json_object":
        return Grammar(kind="json_schema", text=JSON_OBJECT) if content is True else None
    if form == "json":
        if isinstance(content, str):
            return _sized(Grammar(kind="json_schema", text=content))
        return read_schema(content)
    if form == "structural_tag":
        return _tagged(_decoded(content))
    if form == "choice":
        if not isinstance(content, list) or not all(isinstance(one, str) for one in content):
            raise ValidationError("must be a list of strings")
        if not content:
            return None
        return _sized(Grammar(kind="choice", text=orjson.dumps(content).decode()))
    if not isinstance(content, str) or not content:
        raise ValidationError("must be a string")
    return _sized(Grammar(kind="regex" if form == "regex" else "lark", text=content))


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except ValueError as error:
        raise ValidationError("must be JSON") from error


def _tagged(value: Any) -> StructuralTag:
    if not isinstance(value, Mapping):
        raise ValidationError("must be an object")
    try:
        structural_tag(value, {})
    except GrammarShapeError as error:
        raise ValidationError(str(error)) from error
    return StructuralTag(value)


def _sized(grammar: Grammar) -> Grammar:
    try:
        return sized(grammar)
    except GrammarShapeError as error:
        raise ValidationError(str(error)) from error
