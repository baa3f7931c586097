"""Setting: one row of the table of settings, and the names that follow from its own.

Knows names, types and bounds. Refuses to know which rows there are (table.py).
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Scope = Literal["model", "http", "both"]
Kind = Literal["text", "texts", "whole number", "number", "switch"]

SECTIONS = ("auth", "limits", "log", "defaults", "alerts")
_KINDS: dict[Any, Kind] = {
    str: "text",
    tuple[str, ...]: "texts",
    int: "whole number",
    float: "number",
    bool: "switch",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table."""

    name: str
    kind: Kind
    default: Any
    help: str
    scope: Scope
    choices: tuple[str, ...]
    synonyms: Mapping[str, str]
    minimum: float | None
    maximum: float | None
    hidden: bool

    @property
    def key(self) -> str:
        """Return the name in a TOML file, dots standing for tables."""
        section, _, rest = self.name.partition("_")
        return f"{section}.{rest}" if section in SECTIONS else self.name

    @property
    def flag(self) -> str:
        """Return the flag's name, vLLM's wherever vLLM has one."""
        name = self.name.removeprefix("limits_")
        if self.name.startswith("defaults_"):
            name = "default_" + name.removeprefix("defaults_")
        return "--" + name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the name of the environment variable."""
        return "QWENAPI_" + self.name.upper()


def row(
    default: Any,
    help: str,
    *,
    scope: Scope = "both",
    choices: tuple[str, ...] = (),
    synonyms: Mapping[str, str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    hidden: bool = False,
    secret: bool = False,
) -> Any:
    facts = {"help": help, "scope": scope, "choices": choices, "hidden": hidden}
    metadata = {**facts, "minimum": minimum, "maximum": maximum, "synonyms": synonyms or {}}
    return field(default=default, repr=not secret, metadata=metadata)


def kind_of(hint: Any) -> Kind:
    """Return what values a field of Settings has, by its type."""
    if isinstance(hint, types.UnionType):
        (hint,) = (member for member in typing.get_args(hint) if member is not types.NoneType)
    return _KINDS[hint]
