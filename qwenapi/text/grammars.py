"""Grammars of tool calls and structural tags, as Lark text that an engine compiles.

Knows the two ways Qwen models write a call, and JSON Schema as far as it decides how a parameter is
written. Refuses to know llguidance and requests. Properties come in the schema's order.

    hermes  <tool_call>⏎{"name": "f", "arguments": {…}}⏎</tool_call>
    xml     <tool_call>⏎<function=f>⏎<parameter=p>⏎…⏎</parameter>⏎</function>⏎</tool_call>

What is a token of the model's tokenizer is written as that token, so that text cannot imitate it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from qwenapi.text import string_schema
from qwenapi.text.errors import GrammarShapeError

CallFormat = Literal["hermes", "xml"]
TokenIds = Mapping[str, int]  # of the tokenizer's added tokens
Schema = dict[str, Any]

JSON_OBJECT = '{"type": "object"}'

# As the engine allows it for a schema alone: a space, or a line break and its indentation.
_JSON_OPTIONS = {"whitespace_pattern": r"[ ]|\n[ \t]{0,40}"}
_TEXT = "TEXT: /(.|\\n)*/\n"
# A parameter's text ends where its closing tag begins, whatever it holds before.
_VALUE_END = '"\\n</parameter>\\n"'
_NO_END = "~/(.|\\n)*\\n<\\/parameter>(.|\\n)*/"
_FREE_VALUE = "free_value[lazy]: /(.|\\n)*\\n<\\/parameter>\\n/\n"
_ANY_PARAMETERS = (
    'any_parameter: "<parameter=" /[^>\\n]{1,200}/ ">\\n" free_value\n'
    "any_parameters: any_parameter*\n"
)
_DEFINITIONS = ("$defs", "definitions")
_MAX_REFERENCES = 16


class ToolShape(NamedTuple):
    """A tool a model may call. Where not strict, what cannot be enforced of its schema is not."""

    name: str
    parameters: Schema | None = None
    strict: bool = False

    @property
    def schema(self) -> Schema:
        """The schema of the arguments, which are always an object."""
        return {**(self.parameters or {}), "type": "object"}


def forced_calls(
    tools: Sequence[ToolShape], call_format: CallFormat, token_ids: TokenIds, *, several: bool
) -> str:
    """Return the grammar of an answer that is a call of one of the tools, or several of them."""
    more = '("\\n" call)*' if several else ""
    return f"start: call {more}\n" + _calls(tools, call_format, token_ids)


def triggered_calls(
    tools: Sequence[ToolShape], call_format: CallFormat, token_ids: TokenIds, *, several: bool
) -> str:
    """Return the grammar of an answer of free text in which each call begun is a valid one."""
    start = "start: (said_call)* TEXT\n" if several else "start: TEXT | said_call\n"
    said = f"said_call: {_trigger('<tool_call>', token_ids)} call_body\n"
    lazy = _lazy_trigger("<tool_call>", token_ids)
    return start + said + lazy + _TEXT + _calls(tools, call_format, token_ids)


def structural_tag(value: Mapping[str, Any], token_ids: TokenIds) -> str:
    """Return the grammar of free text with tagged parts, of either of vLLM's two forms.

    Raise GrammarShapeError if the value is of neither.
    """
    try:
        tags, triggers = _tags(value)
        rules = [_tag_rule(number, *tag, triggers, token_ids) for number, tag in enumerate(tags)]
    except (KeyError, TypeError, AttributeError) as error:
        raise GrammarShapeError(f"the structural tag lacks or misuses {error}") from error
    if not rules:
        raise GrammarShapeError("the structural tag has no tags")
    names = " | ".join(f"tag_{number}" for number in range(len(rules)))
    return f"start: ({names})* TEXT\n{_TEXT}" + "".join(rules)


def _calls(tools: Sequence[ToolShape], call_format: CallFormat, token_ids: TokenIds) -> str:
    """Return the rules `call` and `call_body`, which is a call behind its opening tag."""
    make = _hermes_rule if call_format == "hermes" else _xml_rules
    names = " | ".join(f"tool_{number}" for number in range(len(tools)))
    tags = [_tag("<tool_call>", token_ids), _tag("</tool_call>", token_ids)]
    head = f'call: {tags[0]} call_body\ncall_body: "\\n" ({names}) "\\n" {tags[1]}\n'
    extra = "" if call_format == "hermes" else _FREE_VALUE + _ANY_PARAMETERS
    return head + extra + "".join(make(number, tool) for number, tool in enumerate(tools))


def _hermes_rule(number: int, tool: ToolShape) -> str:
    name = json.dumps(tool.name, ensure_ascii=False)
    opening = _literal(f'{{"name": {name}, "arguments": ')
    return f'tool_{number}: {opening} {_json(tool.schema, tool.strict)} "}}"\n'


def _xml_rules(number: int, tool: ToolShape) -> str:
    opening = _literal(f"<function={tool.name}>\n")
    schema = tool.schema
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        parameters = "" if schema.get("additionalProperties") is False else "any_parameters"
        return f'tool_{number}: {opening} {parameters} "</function>"\n'
    required = schema.get("required") or ()
    rules, parts = "", []
    for index, (key, value) in enumerate(properties.items()):
        name = f"tool_{number}_{index}"
        opened = _literal(f"<parameter={key}>\n")
        if limits := _limits(value, tool):
            rules += f"{name}: {opened} {name.upper()}\n{name.upper()}: ({limits}) {_VALUE_END}\n"
        else:
            rules += f"{name}: {opened} ({_value(value, tool)})\n"
        parts.append(name if key in required else f"{name}?")
    return f'tool_{number}: {opening} {" ".join(parts)} "</function>"\n' + rules


def _limits(schema: Any, tool: ToolShape) -> str:
    """Return what a strict tool's string must match, all of it; nothing where all is allowed."""
    found = _resolved(schema, tool.schema)
    if not tool.strict or found is None or found.get("type") != "string" or _options(found):
        return ""
    limits = string_schema.expressions(found)
    return " & ".join([*(f"/{limit}/" for limit in limits), _NO_END]) if limits else ""


def _value(schema: Any, tool: ToolShape) -> str:
    """Return what may stand between a parameter's tags, and its closing tag."""
    found = _resolved(schema, tool.schema)
    if (options := _options(found)) is not None:
        texts = [option if isinstance(option, str) else json.dumps(option) for option in options]
        return f"({' | '.join(map(_literal, texts))}) {_VALUE_END}"
    if found is None or _allows_string(found, tool.schema):
        return "free_value"
    assert isinstance(schema, dict)
    roots = {key: tool.schema[key] for key in _DEFINITIONS if key in tool.schema}
    return f"{_json({**roots, **schema}, tool.strict)} {_VALUE_END}"


def _options(schema: Schema | None) -> list[Any] | None:
    if schema is not None and "const" in schema:
        return [schema["const"]]
    options = (schema or {}).get("enum")
    return options if isinstance(options, list) and options else None


def _resolved(schema: Any, root: Schema) -> Schema | None:
    """Return a schema behind its references into the root's definitions; None if there is none."""
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, dict):
            return None
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = root
        for part in reference.removeprefix("#/").split("/"):
            schema = schema.get(part) if isinstance(schema, dict) else None
        if reference.partition("/")[2].partition("/")[0] not in _DEFINITIONS:
            return None
    return None


def _allows_string(schema: Any, root: Schema, depth: int = 0) -> bool:
    """Whether a value may be a string, which stands between the tags without quotes."""
    found = _resolved(schema, root)
    if found is None or depth > _MAX_REFERENCES:
        return True
    types = found.get("type")
    if types is not None:
        return "string" in ([types] if isinstance(types, str) else types)
    if (options := _options(found)) is not None:
        return any(isinstance(option, str) for option in options)
    for key in ("anyOf", "oneOf"):
        if isinstance(found.get(key), list):
            return any(_allows_string(branch, root, depth + 1) for branch in found[key])
    if isinstance(found.get("allOf"), list):
        return all(_allows_string(branch, root, depth + 1) for branch in found["allOf"])
    return not any(key in found for key in ("properties", "items", "prefixItems"))


def _tags(value: Mapping[str, Any]) -> tuple[list[tuple[str, Any, str]], list[str]]:
    """Return begin, schema and end of each tag, and the triggers."""
    if value.get("type") != "structural_tag":
        tags = [(tag["begin"], tag["schema"], tag["end"]) for tag in value["structures"]]
        return tags, list(value["triggers"])
    body = value["format"]
    if body["type"] != "triggered_tags":
        raise GrammarShapeError(f"a structural tag of type {body['type']!r} is not supported")
    found = []
    for tag in body["tags"]:
        if tag["content"]["type"] != "json_schema":
            raise GrammarShapeError("a structural tag's content must be a json_schema")
        found.append((tag["begin"], tag["content"]["json_schema"], tag["end"]))
    return found, list(body["triggers"])


def _tag_rule(
    number: int, begin: str, schema: Any, end: str, triggers: list[str], token_ids: TokenIds
) -> str:
    trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
    if not trigger:
        raise GrammarShapeError(f"no trigger begins the structural tag {begin!r}")
    rest, closing = _marked(begin[len(trigger) :], token_ids), _marked(end, token_ids)
    body = f"{rest} {_json(schema, strict=True)} {closing}"
    if trigger in token_ids:
        return f"tag_{number}: TEXT {_tag(trigger, token_ids)} {body}\n"
    lazy = f"tag_{number}_trigger[lazy]: /(.|\\n)*{_escaped(trigger)}/\n"
    return f"tag_{number}: tag_{number}_trigger {body}\n{lazy}"


def _trigger(text: str, token_ids: TokenIds) -> str:
    return f"TEXT {_tag(text, token_ids)}" if text in token_ids else "call_trigger"


def _lazy_trigger(text: str, token_ids: TokenIds) -> str:
    return "" if text in token_ids else f"call_trigger[lazy]: /(.|\\n)*{_escaped(text)}/\n"


def _tag(text: str, token_ids: TokenIds) -> str:
    token_id = token_ids.get(text)
    return _literal(text) if token_id is None else f"<[{token_id}]>"


def _marked(text: str, token_ids: TokenIds) -> str:
    """Return text as literals, and as tokens where it spells one."""
    for name in token_ids:
        if name and name in text:
            before, _, after = text.partition(name)
            parts = (_marked(before, token_ids), _tag(name, token_ids), _marked(after, token_ids))
            return " ".join(filter(None, parts))
    return _literal(text) if text else ""


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Return a regular expression for the text itself, fit to stand between slashes."""
    return "".join(c if c.isalnum() or c in "_ <>=" else f"\\x{{{ord(c):x}}}" for c in text)


def _json(schema: Any, strict: bool) -> str:
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarShapeError("a schema must be a JSON object")
    options = _JSON_OPTIONS if strict else {**_JSON_OPTIONS, "lenient": True}
    return "%json " + json.dumps({"x-guidance": options, **schema}, ensure_ascii=False)
