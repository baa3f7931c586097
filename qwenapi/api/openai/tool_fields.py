"""The field `tools` of chat completions, and the values it becomes."""

from typing import Any

from marshmallow import fields

from qwenapi.generation.tools import MAX_TOOLS, Tool
from qwenapi.http.fields import refuse
from qwenapi.shared_fields.function_tools import function_schema, read_function, read_tools


class Tools(fields.Field[tuple[Tool, ...]]):
    """Functions the model may call; each is given to the chat template as it is."""

    json_schema = {
        "type": "array",
        "maxItems": MAX_TOOLS,
        "items": {
            "type": "object",
            "properties": {"type": {"const": "function"}, "function": function_schema()},
            "required": ["type", "function"],
        },
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[Tool, ...]:
        return read_tools(value, _tool, place=("function",))


def _tool(i: int, tool: Any) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        refuse((i, "type"), "must be function; this server runs no tools of its own")
    function = tool.get("function")
    if not isinstance(function, dict):
        refuse((i, "function"), "must be an object with a name")
    read = read_function((i, "function"), function)
    return Tool(read.name, read.parameters or {}, read.strict, tool)
