"""The fields `tools` and `tool_choice` in Anthropic's shape, and the values they become."""

from typing import Any

from marshmallow import ValidationError, validates_schema

from qwenapi.generation.tools import MAX_TOOLS, Tool, ToolChoice
from qwenapi.http.fields import StrictBoolean, StrictChoice, StrictString, refuse
from qwenapi.http.schemas import StrictSchema
from qwenapi.shared_fields.function_tools import (
    FunctionTools,
    function_schema,
    read_function,
    read_tools,
)

_MODES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


class ToolDefinitions(FunctionTools):
    """Tools that the caller runs; those that Anthropic runs or has trained are refused by name."""

    known = {"type", "name", "description", "input_schema", "strict"}
    json_schema = {
        "type": "array",
        "maxItems": MAX_TOOLS,
        "items": {
            "allOf": [
                {"type": "object", "properties": {"type": {"enum": ["custom", None]}}},
                function_schema(parameters="input_schema", requires_parameters=True),
            ]
        },
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[Tool, ...]:
        return read_tools(value, _tool)


def _tool(i: int, tool: Any) -> Tool:
    if not isinstance(tool, dict):
        refuse((i,), "must be an object with a name and an input_schema")
    kind = tool.get("type")
    if kind not in (None, "custom"):
        refuse((i, "type"), f"is {str(kind)[:64]}; this server has no tools but the caller's own")
    read = read_function((i,), tool, parameters="input_schema", requires_parameters=True)
    parameters = read.parameters or {}
    function = {
        "name": read.name,
        "description": read.description or "",
        "parameters": parameters,
    }
    return Tool(read.name, parameters, read.strict, {"type": "function", "function": function})


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
