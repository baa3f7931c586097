"""BoundedEnvironment: Jinja's immutable sandbox, where templates end in time and stay small.

A template comes with its model, and is rendered where other callers are served: one that loops for
ever, or doubles a text again and again, is stopped. Time is that of the thread, so a machine that
is busy with others stops nobody.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# A conversation of four megabytes takes a tenth of a second, and comes to as many characters.
MAX_SECONDS = 2.0
MAX_CHARS = 32 * 1024 * 1024
MAX_EXPONENT = 64
# How many rounds of loops, or calls of macros, lie between two looks at the clock.
ROUNDS = 16

_rendering = threading.local()


class TooMuchError(SecurityError):
    """A template has taken more time, or made more text, than it may."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Bounds the time of whatever is rendered within `bounded`, and the length of every text."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Bounds().visit(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what may become large; refuse it where it would."""
        if operator == "**" and not (abs(right) <= MAX_EXPONENT and abs(left) <= MAX_CHARS):
            raise TooMuchError
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and len(text) * times > MAX_CHARS:
                    raise TooMuchError
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, str | list | tuple):
            _check_length(len(result))
        return result


@contextmanager
def bounded() -> Iterator[None]:
    """Give what is rendered inside MAX_SECONDS of this thread."""
    _rendering.rounds, _rendering.deadline = 0, time.thread_time() + MAX_SECONDS
    yield


def joined(pieces: Iterator[str]) -> str:
    """Return the text of a template's pieces, as long as it may be."""
    kept, length = [], 0
    for piece in pieces:
        length += len(piece)
        _check_length(length)
        kept.append(piece)
    return "".join(kept)


def tick() -> str:
    """Count a round of a loop, which writes nothing; called by templates."""
    _rendering.rounds += 1
    if _rendering.rounds % ROUNDS == 0 and time.thread_time() > _rendering.deadline:
        raise TooMuchError
    return ""


def concatenated(pieces: list[Any]) -> str:
    """Return what `~` makes of its sides; called by templates."""
    texts = [str(piece) for piece in pieces]
    _check_length(sum(map(len, texts)))
    return str_join(texts)


def _check_length(length: int) -> None:
    if length > MAX_CHARS:
        raise TooMuchError


class _Bounds(NodeTransformer):
    """Lets every loop and macro begin with a tick, and every `~` be bounded."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        pieces = nodes.List(node.nodes, lineno=node.lineno)
        return _call("concatenated", [pieces], node.lineno)

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("tick", [], node.lineno)], lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _call(function: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    name = nodes.ImportedName(f"{__name__}.{function}", lineno=line)
    return nodes.Call(name, arguments, [], None, None, lineno=line)
