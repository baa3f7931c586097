"""Tools a caller offers, and which of them the model may or must call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qwenapi.text.grammars import ToolShape
from qwenapi.text.output.call_format import Tools

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


def schemas_of(tools: Sequence[Tool]) -> Tools:
    """Return each tool's schema of parameters by its name, as the output's parser wants it."""
    return {tool.name: tool.parameters for tool in tools}


def shapes_of(tools: Sequence[Tool]) -> list[ToolShape]:
    """Return the tools as a grammar of calls wants them."""
    return [ToolShape(tool.name, dict(tool.parameters), tool.strict) for tool in tools]
