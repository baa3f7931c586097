"""Tools a caller offers, and which of them the model may or must call."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qwenapi.text.grammars import ToolShape
from qwenapi.text.output.call_format import Tools

MAX_TOOLS = 512
MAX_TOOL_BYTES = 256 * 1024  # of one tool's schema
# None of what the markup of a call is written in.
TOOL_NAME = re.compile(r"[^\s<>\"'=&\\]{1,128}")
TOOL_NAME_CLAIM = "must be 1 to 128 characters, none of <>\"'=&\\ or a blank"

ToolMode = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class Tool:
    """A function; `source` is the caller's own object, which the chat template is given."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ToolChoice:
    """Whether to call, and whom: with `names` only these, else any."""

    mode: ToolMode = "auto"
    names: tuple[str, ...] = ()

    def allowed(self, tools: Sequence[Tool]) -> list[Tool]:
        """Return the tools that may be called."""
        if self.mode == "none":
            return []
        return [tool for tool in tools if not self.names or tool.name in self.names]

    def fault(self, tools: Sequence[Tool]) -> str:
        """Return what is wrong with this choice among these tools, nothing if it can be made."""
        known = {tool.name for tool in tools}
        if unknown := next((name for name in self.names if name not in known), None):
            return f"names {unknown!r}, which is none of 'tools'"
        is_empty = self.mode == "required" and not tools
        return "asks for a call, but there are no 'tools'" if is_empty else ""


def repeated_name(tools: Sequence[Tool]) -> int | None:
    """Return the index of the first tool that is called like one before it, if there is one."""
    names = [tool.name for tool in tools]
    return next((i for i, name in enumerate(names) if name in names[:i]), None)


def schemas_of(tools: Sequence[Tool]) -> Tools:
    """Return each tool's schema of parameters by its name, as the output's parser wants it."""
    return {tool.name: tool.parameters for tool in tools}


def shapes_of(tools: Sequence[Tool]) -> list[ToolShape]:
    """Return the tools as a grammar of calls wants them."""
    return [ToolShape(tool.name, dict(tool.parameters), tool.strict) for tool in tools]
