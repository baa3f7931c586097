"""The field `tools` of responses, and tools and choices as answers name them.

Only functions, which the caller runs; tools that OpenAI runs are refused by their names.
"""

from typing import Any

from qwenapi.generation.tools import MAX_TOOLS, Tool, ToolChoice
from qwenapi.http.fields import refuse
from qwenapi.shared_fields.function_tools import (
    FunctionTools,
    function_schema,
    read_function,
    read_tools,
)


class CallableTools(FunctionTools):
    """Functions the model may call."""

    known = {"type", "name", "description", "parameters", "strict"}
    json_schema = {
        "type": "array",
        "maxItems": MAX_TOOLS,
        "items": {
            "allOf": [
                {"properties": {"type": {"const": "function"}}, "required": ["type"]},
                function_schema(),
            ]
        },
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[Tool, ...]:
        return read_tools(value, _tool)


def tool_body(tool: Tool) -> dict[str, Any]:
    """Return a tool as answers name it."""
    absent = {"description": None, "parameters": None}
    return {"type": "function", "strict": tool.strict, **absent, **tool.source["function"]}


def choice_body(choice: ToolChoice) -> str | dict[str, Any]:
    """Return a choice as answers name it."""
    functions = [{"type": "function", "name": name} for name in choice.names]
    if not functions:
        return choice.mode
    if choice.mode == "required" and len(functions) == 1:
        return functions[0]
    return {"type": "allowed_tools", "mode": choice.mode, "tools": functions}


def _tool(i: int, tool: Any) -> Tool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        refuse((i, "type"), f"is {str(kind)[:64]}; this server has no tools but the caller's own")
    read = read_function((i,), tool)
    said = {"description": read.description, "parameters": read.parameters}
    function = {"name": read.name} | {key: item for key, item in said.items() if item is not None}
    source = {"type": "function", "function": function}
    return Tool(read.name, read.parameters or {}, read.strict, source)
