"""Build a running server's OpenAPI document from its marshmallow schemas and tables of prose.

Knows what is served, nothing of Flask's request.
"""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.common import resolve_schema_cls
from marshmallow import Schema, fields

from qwenapi import __version__
from qwenapi.http.schemas import StrictSchema
from qwenapi.openapi.bodies import BODIES
from qwenapi.openapi.error_bodies import ERROR_BODIES
from qwenapi.openapi.json_schema import JsonSchema
from qwenapi.openapi.operations import (
    ALIASES,
    EVENTS,
    JSON,
    KEY_ERRORS,
    OPERATIONS,
    QUERY,
    Operation,
)
from qwenapi.settings.profile import Profiles

OPENAPI_VERSION = "3.1.0"
WORDS = Path(__file__).with_name("words.toml")


def build_spec(addresses: Iterable[str], profiles: Profiles) -> dict[str, Any]:
    """Return the document of these addresses, each a method and a path as in OPERATIONS."""
    words = tomllib.loads(WORDS.read_text(encoding="utf-8"))
    schemas: dict[str, type[Schema]] = {}

    def name_of(schema: Any) -> str:
        schema_class = cast("type[Schema]", resolve_schema_cls(schema))
        name = schema_class.__name__.removesuffix("Schema") + "Request"
        schemas[name] = schema_class
        return name

    plugin = MarshmallowPlugin(schema_name_resolver=name_of)
    spec = APISpec(
        "qwenapi",
        __version__,
        OPENAPI_VERSION,
        plugins=[plugin],
        info={"description": _both(["Qwen models over HTTP.", "通过 HTTP 提供 Qwen 模型。"])},
    )
    converter: Any = plugin.converter
    converter.add_attribute_function(_own_schema)
    converter.add_attribute_function(lambda self, field, **_: _described(field, words["fields"]))
    for name, body in BODIES.items():
        spec.components.schema(name, body)
    for name, scheme in _SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    errors = _error_schema(profiles)
    for address in sorted(addresses):
        method, path = address.split(" ", 1)
        alias = ALIASES.get(path)
        known = f"{method} {alias or path}"
        described = _operation(OPERATIONS[known], known, words, errors)
        parameters = [_path_parameter(name) for name in re.findall(r"\{(\w+)\}", path)]
        parameters += [_query_parameter(name, words) for name in OPERATIONS[known].query]
        spec.path(
            path,
            operations={
                method.lower(): described
                | ({"parameters": parameters} if parameters else {})
                | ({"deprecated": True} if alias else {})
            },
        )
    document: dict[str, Any] = spec.to_dict()
    for name, schema in schemas.items():
        _close(document["components"]["schemas"][name], schema, words)
    return document


def _operation(
    operation: Operation, address: str, words: dict[str, Any], errors: JsonSchema
) -> dict[str, Any]:
    english = words["operations"][address][0]
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": english.split(".")[0],
        "description": _both(words["operations"][address]),
        "responses": {str(operation.status): _answer(operation)},
        "security": [] if operation.is_public else [{}, {"bearer": []}, {"apiKey": []}],
    }
    refused = operation.errors + (() if operation.is_public else KEY_ERRORS)
    for status in sorted(refused):
        described["responses"][str(status)] = {
            "description": _both(words["errors"][str(status)]),
            "content": {JSON: {"schema": errors}},
        }
    if operation.schema is not None:
        content = {kind: {"schema": operation.schema} for kind in operation.takes}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.body:
        content[JSON] = {"schema": {"$ref": f"#/components/schemas/{operation.body}"}}
    if operation.also:
        content[operation.also] = {"schema": {"type": "string"}}
    text = "The answer. 回答。" if operation.status == 200 else "Done. 完成。"
    if operation.also == EVENTS and operation.body:
        text = "The answer; events where `stream` is true. 回答；`stream` 为 true 时为事件流。"
    return {"description": text} | ({"content": content} if content else {})


def _error_schema(profiles: Profiles) -> JsonSchema:
    """Return the shapes of errors here: one of each dialect that is served."""
    names = sorted({ERROR_BODIES[profile.dialect] for profile in profiles} | {"OpenAIError"})
    return {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}


def _own_schema(self: Any, field: fields.Field[Any], **_: Any) -> JsonSchema:
    """Return what a field of ours says of itself; null always means absent."""
    schema: JsonSchema = dict(getattr(field, "json_schema", {}))
    return schema


def _described(field: fields.Field[Any], words: dict[str, list[str]]) -> JsonSchema:
    name = field.data_key or field.name
    return {"description": _both(words[name])} if name in words else {}


def _close(component: JsonSchema, schema: type[Schema], words: dict[str, Any]) -> None:
    """Say what the plugin does not know of: nulls, what is refused, and what is ignored."""
    component["additionalProperties"] = True
    for name in component["properties"].keys() - set(component.get("required", ())):
        described = component["properties"][name]
        kept = {"description": described.pop("description")} if "description" in described else {}
        component["properties"][name] = {"anyOf": [described, {"type": "null"}]} | kept
    unsupported = schema.unsupported if issubclass(schema, StrictSchema) else {}
    for name, field in unsupported.items():
        said = _both(words["unsupported"]["field"])
        allowed = {"anyOf": [field.json_schema, {"type": "null"}], "description": said}
        component["properties"][name] = allowed


def _both(words: list[str]) -> str:
    return "\n\n".join(words)


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameter(name: str, words: dict[str, Any]) -> dict[str, Any]:
    said = _both(words["query"][name])
    return {"name": name, "in": "query", "schema": QUERY[name], "description": said}


_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
