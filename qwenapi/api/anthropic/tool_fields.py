"""The fields `tools` and `tool_choice` in Anthropic's shape, and the values they become."""

from collections.abc import Iterator
from typing import Any

import orjson
from marshmallow import ValidationError, validates_schema

from qwenapi.generation.tools import (
    MAX_TOOL_BYTES,
    MAX_TOOLS,
    TOOL_NAME,
    TOOL_NAME_CLAIM,
    Tool,
    ToolChoice,
    repeated_name,
)
from qwenapi.http.fields import (
    Composite,
    Path,
    StrictBoolean,
    StrictChoice,
    StrictString,
    refuse,
)
from qwenapi.http.schemas import StrictSchema

_KNOWN = {"type", "name", "description", "input_schema", "strict"}
_MODES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


class ToolDefinitions(Composite):
    """Tools that the caller runs; those that Anthropic runs or has trained are refused by name."""

    json_schema = {
        "type": "array",
        "maxItems": MAX_TOOLS,
        "items": {
            "type": "object",
            "properties": {
                "type": {"enum": ["custom", None]},
                "name": {"type": "string", "pattern": f"^{TOOL_NAME.pattern}$"},
                "description": {"type": ["string", "null"]},
                "input_schema": {"type": "object"},
                "strict": {"type": ["boolean", "null"]},
            },
            "required": ["name", "input_schema"],
        },
    }

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the keys of tools that the model is not told."""
        for i, tool in enumerate(value if isinstance(value, list) else ()):
            for key in tool if isinstance(tool, dict) else ():
                if key not in _KNOWN and tool[key] is not None:
                    yield i, key

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[Tool, ...]:
        if not isinstance(value, list) or len(value) > MAX_TOOLS:
            raise ValidationError(f"must be a list of at most {MAX_TOOLS} tools")
        tools = tuple(_tool(i, tool) for i, tool in enumerate(value))
        if (i := repeated_name(tools)) is not None:
            refuse((i, "name"), "is the name of another tool as well")
        return tools


def _tool(i: int, tool: Any) -> Tool:
    if not isinstance(tool, dict):
        refuse((i,), "must be an object with a name and an input_schema")
    kind = tool.get("type")
    if kind not in (None, "custom"):
        refuse((i, "type"), f"is {str(kind)[:64]}; this server has no tools but the caller's own")
    name, description = tool.get("name"), tool.get("description")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        refuse((i, "name"), TOOL_NAME_CLAIM)
    if description is not None and not isinstance(description, str):
        refuse((i, "description"), "must be a string")
    schema, strict = tool.get("input_schema"), tool.get("strict")
    if not isinstance(schema, dict):
        refuse((i, "input_schema"), "must be a JSON Schema, which is an object")
    if len(orjson.dumps(schema)) > MAX_TOOL_BYTES:
        refuse((i, "input_schema"), f"must take at most {MAX_TOOL_BYTES} bytes")
    if strict is not None and not isinstance(strict, bool):
        refuse((i, "strict"), "must be true or false")
    function = {"name": name, "description": description or "", "parameters": schema}
    return Tool(name, schema, bool(strict), {"type": "function", "function": function})


class ToolChoiceSchema(StrictSchema):
    """`auto`, `any`, `none`, or `tool` with the name of one."""

    type = StrictChoice(*_MODES, required=True)
    name = StrictString(128)
    disable_parallel_tool_use = StrictBoolean()

    @validates_schema
    def check_name(self, data: dict[str, Any], **_: Any) -> None:
        if data["type"] == "tool" and "name" not in data:
            raise ValidationError("is required", "name")


def choice_of(data: dict[str, Any]) -> ToolChoice:
    """Return the choice that a body of `ToolChoiceSchema` makes."""
    names = (data["name"],) if data.get("type") == "tool" else ()
    return ToolChoice(_MODES[data.get("type", "auto")], names)  # type: ignore[arg-type]
