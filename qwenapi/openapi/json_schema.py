"""The JSON Schemas that bodies are put together from."""

from collections.abc import Mapping
from typing import Any

JsonSchema = dict[str, Any]

TEXT: JsonSchema = {"type": "string"}
WHOLE: JsonSchema = {"type": "integer", "minimum": 0}
NUMBER: JsonSchema = {"type": "number"}


def object_of(properties: Mapping[str, JsonSchema], *optional: str) -> JsonSchema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def list_of(items: JsonSchema) -> JsonSchema:
    return {"type": "array", "items": items}


def or_null(schema: JsonSchema) -> JsonSchema:
    return {"anyOf": [schema, {"type": "null"}]}


def page_of(items: JsonSchema) -> JsonSchema:
    return object_of(
        {
            "object": {"const": "list"},
            "data": list_of(items),
            "first_id": or_null(TEXT),
            "last_id": or_null(TEXT),
            "has_more": {"type": "boolean"},
        }
    )


def ref(name: str) -> JsonSchema:
    return {"$ref": f"#/components/schemas/{name}"}
