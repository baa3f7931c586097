"""Command-line flags made from the table of settings.

Knows argparse. Refuses to know what a value means (sources.py): all of them are taken as text.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from qwenapi.settings.setting import Scope, Setting
from qwenapi.settings.sources import closest
from qwenapi.settings.table import table
from qwenapi.settings.vllm_flags import add_vllm_flags

_SCOPES: dict[str, tuple[Scope, ...]] = {
    "serve": ("both", "model", "http"),
    "check": ("both", "model", "http"),
    "model": ("both", "model"),
    "http": ("both", "http"),
    "bench": ("model",),
}
_WITHOUT: dict[str, tuple[str, ...]] = {
    "serve": ("model_run_dir",),  # it runs both halves itself
    "bench": (
        "data_parallel_size",
        "tensor_parallel_size",
        "enable_expert_parallel",
        "allow_cross_node_tp",
        "step_timeout",
        "stub",
        "stub_step_seconds",
    ),
}
_SHORT = {"tensor_parallel_size": ("-tp",)}
_TITLES: dict[Scope, str] = {"both": "settings", "model": "model half", "http": "HTTP half"}
_METAVARS = {"text": "TEXT", "texts": "NAME", "whole number": "N", "number": "X"}


class FlagParser(argparse.ArgumentParser):
    """A parser that guesses nothing and answers an unknown flag with its closest one (exit 2)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and refuse what is left over here: only a sub-command has its list of flags."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0].partition("=")[0])
        return namespace, []

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the long list of flags."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith("-"):
            self.error(f"unexpected argument {word!r}")
        self.error(f"unknown flag {word}: {closest(word, self._option_string_actions)}")


def add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """Give `parser` the flags of a command; one left out is absent from the parsed namespace."""
    for scope in _SCOPES[command]:
        group = parser.add_argument_group(_TITLES[scope])
        for row in table().values():
            if row.scope == scope and row.name not in _WITHOUT.get(command, ()):
                _add(group, row)
        if scope == "http":
            group.add_argument(
                "--disable-log-requests",
                dest="log_requests",
                action="store_false",
                default=argparse.SUPPRESS,
                help="the same as --no-log-requests",
            )
            group.add_argument(
                "--enable-log-requests",
                dest="log_requests",
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
    if command != "bench":
        add_vllm_flags(parser)


def _add(group: argparse._ArgumentGroup, row: Setting) -> None:
    help = argparse.SUPPRESS if row.hidden else _help(row)
    common: dict[str, Any] = {"dest": row.name, "default": argparse.SUPPRESS, "help": help}
    if row.kind == "switch":
        group.add_argument(row.flag, action=argparse.BooleanOptionalAction, **common)
        return
    if row.kind == "texts":
        common |= {"nargs": "+", "action": "extend"}
    names = (row.flag, *_SHORT.get(row.name, ()))
    metavar = "{" + ",".join(row.choices) + "}" if row.choices else _METAVARS[row.kind]
    group.add_argument(*names, metavar=metavar, **common)


def _help(row: Setting) -> str:
    shown = row.help.replace("%", "%%")
    if row.default in ("", (), None):
        return shown
    return f"{shown} (default: {str(row.default).lower()})"
