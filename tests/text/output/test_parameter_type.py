import json

import pytest

from qwenapi.text.output.parameter_type import parameter_type

DEFINITIONS = {
    "Colour": {"enum": ["red", 7, None]},
    "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}, {"type": "boolean"}]},
    "a/b": {"type": "array"},
}


def value_of(schema: object, text: str) -> object:
    root = {"properties": {"p": schema}, "$defs": DEFINITIONS}
    return json.loads(parameter_type(root, "p").to_json(text))


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, " a\n", " a\n"),
        ({"type": "integer"}, " 5\n", 5),
        ({"type": "integer"}, "-3.0", -3),
        ({"type": "integer"}, "3.5", "3.5"),
        ({"type": "integer"}, "007", "007"),
        ({"type": "integer"}, "", ""),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "1" * 2000, "1" * 2000),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "boolean"}, "null", "null"),
        ({"type": "null"}, "None", None),
        ({"type": "object"}, '{"a": [1, "x\\n"]}', {"a": [1, "x\n"]}),
        (
            {"type": "object"},
            "{'a': [True, None, 'it\\'s \"x\"']}",
            {"a": [True, None, 'it\'s "x"']},
        ),
        ({"type": "object"}, '{"a": "two\nlines", }', {"a": "two\nlines"}),
        ({"type": "object"}, "[1]", "[1]"),
        ({"type": "object"}, '{"a": NaN}', '{"a": NaN}'),
        ({"type": "object"}, "{'a': f(x)}", "{'a': f(x)}"),
        ({"type": "array"}, "['a', \"b\", -1.5e3,]", ["a", "b", -1500.0]),
        ({"type": "array"}, "[" * 100_000, "[" * 100_000),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "None", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "none", "none"),
        ({"oneOf": [{"type": "array"}, {"type": "string"}]}, '["a"]', ["a"]),
        ({"oneOf": [{}, {"type": "integer"}]}, "x", "x"),
        ({"allOf": [{"$ref": "#/$defs/Colour"}, {"description": "…"}]}, "7", 7),
        ({"type": "integer", "nullable": True}, "null", None),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, "1"]}, "1", "1"),
        ({"const": True}, "true", True),
        ({"$ref": "#/$defs/Colour"}, "red", "red"),
        ({"$ref": "#/$defs/Colour"}, "null", None),
        ({"$ref": "#/$defs/Loop"}, "True", True),
        ({"$ref": "#/$defs/a~1b"}, "[]", []),
        ({"$ref": "#/$defs/none"}, "1", "1"),
        ({"$ref": "https://example.com/x"}, "1", "1"),
        ({"properties": {}}, "{}", {}),
        ({"items": {}}, "[]", []),
        ({"type": "dict"}, "{}", "{}"),
        ({"type": 5}, "5", "5"),
        ({}, "5", "5"),
        (True, "5", "5"),
    ],
)
def test_text_takes_the_type_of_the_schema(schema: object, text: str, value: object) -> None:
    assert value_of(schema, text) == value
    assert type(value_of(schema, text)) is type(value)


def test_parameters_beside_the_named_ones_have_their_own_schema() -> None:
    schema = {"additionalProperties": {"type": "integer"}}
    assert parameter_type(schema, "any").to_json("5") == "5"
    assert parameter_type({"additionalProperties": True}, "any").to_json("5") == '"5"'


def test_only_what_must_be_a_string_may_stream() -> None:
    assert parameter_type({}, "p").is_string
    assert parameter_type({"properties": {"p": {"enum": ["a", "b"]}}}, "p").is_string
    nullable = {"type": ["string", "null"]}
    assert not parameter_type({"properties": {"p": nullable}}, "p").is_string


def test_references_do_not_multiply() -> None:
    definitions = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(50)}
    schema = {"properties": {"p": {"$ref": "#/$defs/d0"}}, "$defs": definitions}
    assert parameter_type(schema, "p").to_json("x") == '"x"'
