"""A JSON Schema that an answer must keep to, and the grammar it becomes."""

from typing import Any

from marshmallow import ValidationError, fields

from qwenapi.generation.answer_format import schema_grammar
from qwenapi.text.errors import GrammarShapeError
from workers.wire.grammar import Grammar


class SchemaField(fields.Field[Grammar]):
    """A JSON Schema, which becomes the answer's grammar."""

    json_schema = {"type": "object"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Grammar:
        if not isinstance(value, dict):
            raise ValidationError("must be a JSON Schema, which is an object")
        return read_schema(value)


def read_schema(schema: Any) -> Grammar:
    """Return the grammar of a schema, also of one that is true or false; raise marshmallow's error
    of what is none or too large.
    """
    if not isinstance(schema, dict | bool):
        raise ValidationError("must be a JSON Schema, which is an object")
    try:
        return schema_grammar(schema)
    except GrammarShapeError as error:
        raise ValidationError(str(error)) from error
    except TypeError as error:
        raise ValidationError("holds a number of more than 64 bits") from error
