"""Function tools and the choice among them, wherever an interface puts a function's fields.

Each interface has its own shape of a tool; what may stand in it is checked here, once.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

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
from qwenapi.http.fields import Composite, Path, refuse


class FunctionTools(Composite):
    """A list of tools whose functions' fields stand beside their type; `known` are their keys."""

    known: ClassVar[set[str]]

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the keys of tools that the model is not told."""
        for i, tool in enumerate(value if isinstance(value, list) else ()):
            for key in tool if isinstance(tool, dict) else ():
                if key not in self.known and tool[key] is not None:
                    yield i, key


class FunctionFields(NamedTuple):
    """What a tool says of its function, checked; None where it says nothing."""

    name: str
    description: str | None
    parameters: Mapping[str, Any] | None
    strict: bool


def function_schema(
    *, parameters: str = "parameters", requires_parameters: bool = False
) -> dict[str, Any]:
    """Return the JSON Schema of a function's fields, `parameters` being called so."""
    schema = {"type": "object"} if requires_parameters else {"type": ["object", "null"]}
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": f"^{TOOL_NAME.pattern}$"},
            "description": {"type": ["string", "null"]},
            parameters: schema,
            "strict": {"type": ["boolean", "null"]},
        },
        "required": ["name", parameters] if requires_parameters else ["name"],
    }


def read_tools(
    value: Any, read: Callable[[int, Any], Tool], *, place: Path = ()
) -> tuple[Tool, ...]:
    """Return a list of tools, each as `read` has it; `place`: where in a tool its name stands."""
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ValidationError(f"must be a list of at most {MAX_TOOLS} tools")
    tools = tuple(read(i, tool) for i, tool in enumerate(value))
    if (i := repeated_name(tools)) is not None:
        refuse((i, *place, "name"), "is the name of another tool as well")
    return tools


def read_function(
    path: Path,
    function: Mapping[str, Any],
    *,
    parameters: str = "parameters",
    requires_parameters: bool = False,
) -> FunctionFields:
    """Return the fields of a function at this place, or raise marshmallow's error of one."""
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        refuse((*path, "name"), TOOL_NAME_CLAIM)
    if description is not None and not isinstance(description, str):
        refuse((*path, "description"), "must be a string")
    schema, strict = function.get(parameters), function.get("strict")
    if not isinstance(schema, dict) and (requires_parameters or schema is not None):
        refuse((*path, parameters), "must be a JSON Schema, which is an object")
    if schema is not None and json_size((*path, parameters), schema) > MAX_TOOL_BYTES:
        refuse((*path, parameters), f"must take at most {MAX_TOOL_BYTES} bytes")
    if strict is not None and not isinstance(strict, bool):
        refuse((*path, "strict"), "must be true or false")
    return FunctionFields(name, description, schema, bool(strict))


def json_size(path: Path, value: Any) -> int:
    """Return how many bytes a value takes; refuse one that no answer could hold."""
    try:
        return len(orjson.dumps(value))
    except TypeError:
        refuse(path, "holds a number of more than 64 bits")


class ToolChoiceField(fields.Field[ToolChoice]):
    """`none`, `auto`, `required`, one function by its name, or `allowed_tools`; a function's name
    may stand in the choice itself or in its `function`.
    """

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
            tools, mode = None, None
            if isinstance(allowed, dict):
                tools, mode = allowed.get("tools"), allowed.get("mode", "auto")
            if not isinstance(tools, list) or not tools or mode not in ("auto", "required"):
                raise ValidationError(self.CLAIM)
            return ToolChoice(mode, tuple(map(self._name, tools)))
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
