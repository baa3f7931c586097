"""The fields `tools` and `tool_choice`, and the values they become."""

from typing import Any

import orjson
from marshmallow import ValidationError, fields

from qwenapi.generation.tools import (
    MAX_TOOL_BYTES,
    MAX_TOOLS,
    TOOL_NAME,
    TOOL_NAME_CLAIM,
    Tool,
    ToolChoice,
    repeated_name,
)
from qwenapi.http.fields import refuse


class Tools(fields.Field[tuple[Tool, ...]]):
    """Functions the model may call; each is given to the chat template as it is."""

    json_schema = {
        "type": "array",
        "maxItems": MAX_TOOLS,
        "items": {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "pattern": f"^{TOOL_NAME.pattern}$"},
                        "description": {"type": ["string", "null"]},
                        "parameters": {"type": ["object", "null"]},
                        "strict": {"type": ["boolean", "null"]},
                    },
                    "required": ["name"],
                },
            },
            "required": ["type", "function"],
        },
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[Tool, ...]:
        if not isinstance(value, list) or len(value) > MAX_TOOLS:
            raise ValidationError(f"must be a list of at most {MAX_TOOLS} tools")
        tools = tuple(_tool(i, tool) for i, tool in enumerate(value))
        if (i := repeated_name(tools)) is not None:
            refuse((i, "function", "name"), "is the name of another tool as well")
        return tools


def _tool(i: int, tool: Any) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        refuse((i, "type"), "must be function; this server runs no tools of its own")
    function = tool.get("function")
    if not isinstance(function, dict):
        refuse((i, "function"), "must be an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        refuse((i, "function", "name"), TOOL_NAME_CLAIM)
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        refuse((i, "function", "parameters"), "must be a JSON Schema, which is an object")
    if parameters is not None and len(orjson.dumps(parameters)) > MAX_TOOL_BYTES:
        refuse((i, "function", "parameters"), f"must take at most {MAX_TOOL_BYTES} bytes")
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        refuse((i, "function", "strict"), "must be true or false")
    return Tool(name, parameters or {}, bool(strict), tool)


class ToolChoiceField(fields.Field[ToolChoice]):
    """`none`, `auto`, `required`, one function by its name, or `allowed_tools`."""

    CLAIM = "must be none, auto, required, a function by its name, or allowed_tools"
    json_schema = {
        "anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object", "required": ["type"]}]
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> ToolChoice:
        if value in ("none", "auto", "required") and isinstance(value, str):
            return ToolChoice(value)  # type: ignore[arg-type]
        if not isinstance(value, dict):
            raise ValidationError(self.CLAIM)
        if value.get("type") == "allowed_tools":
            allowed = value.get("allowed_tools", value)
            tools = allowed.get("tools") if isinstance(allowed, dict) else None
            if (
                not isinstance(tools, list)
                or not tools
                or allowed.get("mode", "auto")
                not in (
                    "auto",
                    "required",
                )
            ):
                raise ValidationError(self.CLAIM)
            return ToolChoice(allowed.get("mode", "auto"), tuple(map(self._name, tools)))
        return ToolChoice("required", (self._name(value),))

    def _name(self, value: Any) -> str:
        function = value.get("function") if isinstance(value, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if name is None and isinstance(value, dict):
            name = value.get("name")
        if not isinstance(name, str) or value.get("type", "function") != "function":
            raise ValidationError(self.CLAIM)
        return name


def check_choice(tools: tuple[Tool, ...], choice: ToolChoice) -> None:
    """Refuse a choice of tools that are not there."""
    if fault := choice.fault(tools):
        raise ValidationError(fault, "tool_choice")
