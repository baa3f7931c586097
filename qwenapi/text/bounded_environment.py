"""BoundedEnvironment: Jinja's immutable sandbox, where templates end in time and stay small.

A template comes with its model, and is rendered where other callers are served: one that loops for
ever, or doubles a text again and again, is stopped. Time is that of the thread, so a machine that
is busy with others stops nobody.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from qwenapi.text.amplifiers import (
    MAX_BITS,
    MAX_CHARS,
    MAX_ITEMS,
    Sizes,
    TooMuchError,
    check_length,
    check_number,
    foresee,
    format_length,
    size,
)

# A conversation of four megabytes takes a tenth of a second.
MAX_SECONDS = 2.0
MAX_EXPONENT = 64
MAX_GROWTH_PAGES = (1 << 29) // 4096  # of the process, while a template holds what it has made
# How many rounds of loops, or calls, lie between two looks at the clock, and at the memory.
ROUNDS, MEMORY_ROUNDS = 16, 256
LARGE = 128 * 1024  # what is looked at after each


class _Rendering(threading.local):
    """What is rendered in this thread; while a template is compiled, nothing is."""

    def __init__(self) -> None:
        self.begin(float("inf"))

    def begin(self, deadline: float) -> None:
        self.rounds, self.deadline, self.pages = 0, deadline, 0
        self.sizes: Sizes = {}


_rendering = _Rendering()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Bounds the time of whatever is rendered within `bounded`, and the size of every value."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=shown, **options)
        self.concat = joined  # type: ignore[method-assign]
        both: tuple[dict[str, Any], ...] = (self.filters, self.tests)
        for functions in both:
            for name, function in functions.items():
                functions[name] = guarded(name, function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Bounds().visit(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what may become large; refuse it where it would."""
        check_number(left)
        check_number(right)
        if operator == "**" and not (abs(right) <= MAX_EXPONENT and abs(left) <= MAX_CHARS):
            raise TooMuchError
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | bytes):
                    check_length(len(value) * times)
                elif isinstance(value, list | tuple):
                    check_length(len(value) * times, MAX_ITEMS)
                    check_length(size(value, _rendering.sizes) * times)
        if operator == "%" and isinstance(left, str | bytes):
            check_length(format_length(left, right))
        return _checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a method or a function for a template, where it would not make too much."""
        if __obj in _OWN:
            return __obj(*args)
        tick()
        # Jinja wraps `format` of texts.
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        value = owner if isinstance(owner, str | bytes | int) else __obj
        foresee(getattr(method, "__name__", "").lstrip("_"), value, args, kwargs)
        return _checked(super().call(__context, __obj, *args, **kwargs))


@contextmanager
def bounded() -> Iterator[None]:
    """Give what is rendered inside MAX_SECONDS of this thread."""
    _rendering.begin(time.thread_time() + MAX_SECONDS)
    try:
        yield
    finally:
        _rendering.begin(float("inf"))


def joined(pieces: Iterable[str]) -> str:
    """Return the text of a template's pieces, as long as it may be."""
    kept, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_CHARS:
            raise TooMuchError
        kept.append(piece)
    return "".join(kept)


def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or test that makes no more than it may."""
    passes = hasattr(function, "jinja_pass_arg")  # the environment or so comes first

    @wraps(function)
    def guard(*args: Any, **more: Any) -> Any:
        tick()
        first, (value, *rest) = args[:passes], args[passes:]
        if name in ("join", "sum", "groupby") and not hasattr(value, "__len__"):
            value = _checked(list(value))
        foresee(name, value, tuple(rest), more)
        return _checked(function(*first, value, *rest, **more))

    return guard


def tick() -> str:
    """Count a round of a loop, which writes nothing; called by templates."""
    _rendering.rounds += 1
    if _rendering.rounds % ROUNDS == 0:
        if time.thread_time() > _rendering.deadline:
            raise TooMuchError
        if _rendering.rounds % MEMORY_ROUNDS == 0:
            _check_memory()
    return ""


def concatenated(pieces: list[Any]) -> str:
    """Return what `~` makes of its sides; called by templates."""
    return joined([str(shown(piece)) for piece in pieces])


def shown(value: Any) -> Any:
    """Return a value that is short enough to be shown; called by templates."""
    if not isinstance(value, str):
        size(value, _rendering.sizes)
    return value


def held(value: Any) -> Any:
    """Return a list or the like that holds no more than it may; called by templates."""
    return _checked(value)


_OWN = (tick, concatenated, held)


def _checked(value: Any) -> Any:
    """Return what was made, if it is small enough, and there is time and memory for more."""
    if isinstance(value, str | bytes):
        check_length(len(value))
        is_large = len(value) > LARGE
    elif isinstance(value, list | tuple | dict):
        is_large = size(value, _rendering.sizes) > LARGE
    else:
        check_number(value)
        return value
    if is_large:
        if time.thread_time() > _rendering.deadline:
            raise TooMuchError
        _check_memory()
    return value


def _check_memory() -> None:
    """Raise where the process has grown by too much since this was first asked."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    _rendering.pages = _rendering.pages or pages
    if pages - _rendering.pages > MAX_GROWTH_PAGES:
        raise TooMuchError


class _Bounds(NodeTransformer):
    """Lets every loop and macro begin with a tick, and every list and `~` be bounded."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        pieces = nodes.List(node.nodes, lineno=node.lineno)
        return _call("concatenated", [pieces], node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._held(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._held(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._held(node) if node.ctx == "load" else node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int) and node.value.bit_length() > MAX_BITS:
            raise TemplateSyntaxError("a number has too many digits", node.lineno)
        return node

    def _held(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        try:
            node.as_const()
        except nodes.Impossible:
            return _call("held", [node], node.lineno)
        return node  # type: ignore[no-any-return]

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("tick", [], node.lineno)], lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _call(function: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    name = nodes.ImportedName(f"{__name__}.{function}", lineno=line)
    return nodes.Call(name, arguments, [], None, None, lineno=line)
