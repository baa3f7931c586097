"""Amplifiers: what makes much out of little in a template, and how much that would be.

Filters and methods are foreseen by name, before they run: a text or a number of a few characters
may ask for gigabytes. Whatever is not named here gives at most as much as it is given.
"""

import re
from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

# A conversation of four megabytes comes to as many characters.
MAX_CHARS = 32 * 1024 * 1024
MAX_ITEMS = 1024 * 1024
MAX_SPLIT = MAX_CHARS // 4  # of a text that is split: each part takes more than its characters
MAX_SLOW = 1024 * 1024  # of what is searched by patterns, or laid out
MAX_BITS = 4096  # of whole numbers: the time of a division is the square of it
OPAQUE = 64  # characters of what shows as a name and an address

Sizes = dict[int, tuple[Any, int]]


class TooMuchError(SecurityError):
    """A template has taken more time, or made more text, than it may."""


def check_number(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TooMuchError


def check_length(length: int, most: int = MAX_CHARS) -> None:
    if length > most:
        raise TooMuchError


def size(value: Any, known: Sizes) -> int:
    """Return how many characters a value shows as, about; raise where they are too many.

    Lists that hold one another many times are small and show as endless ones. `known` keeps what
    it knows the sizes of, so that no other takes its place.
    """
    if isinstance(value, str | bytes):
        return len(value) + 1
    if isinstance(value, Namespace):
        raise TooMuchError  # changes after it was looked at
    parts: Any
    if isinstance(value, Mapping):
        parts = chain(value.keys(), value.values())
    elif isinstance(value, ItemsView):
        parts = chain.from_iterable(value)
    elif isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView):
        parts = value
    else:
        check_number(value)
        return OPAQUE
    if id(value) in known:
        return known[id(value)][1]
    total = 1
    for part in parts:
        total += size(part, known)
        check_length(total)
    known[id(value)] = (value, total)
    return total


def foresee(name: str, value: Any, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
    """Raise TooMuchError where a filter, or a method of this value, would make too much."""
    for argument in (value, *args, *more.values()):
        check_number(argument)
    if name in _ITEMS and isinstance(value, str | bytes | list | tuple | Mapping):
        check_length(len(value), MAX_ITEMS)
    if name in _SLOW:
        check_length(size(value, {}), MAX_SLOW)
    if name in _SHOWING and not isinstance(value, str):
        size(value, {})
    if foreseen := _FORESEEN.get(name):
        check_length(foreseen(value, *args, **more))


def format_length(format_: Any, values: Any) -> int:
    """Return how long what a format makes of values is at most; it may name widths."""
    text = str(format_)
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", text)]
    if "*" in text or re.search(r"\{[^{}]*\{", text):  # widths that are values
        widths += [value for value in _flat(values) if isinstance(value, int)]
    times = text.count("%") + text.count("{")
    return len(text) + times * size(values, {}) + sum(widths) * max(1, times)


def _flat(values: Any) -> Any:
    if isinstance(values, Mapping):
        return values.values()
    if not isinstance(values, list | tuple):
        return (values,)
    return [part for value in values for part in (value if isinstance(value, list) else (value,))]


def _width(value: Any, width: int | None = 80, *_: Any, **__: Any) -> int:
    return width if isinstance(width, int) else 0


def _indented(value: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    text = str(value)
    each = len(width) if isinstance(width, str) else int(width)
    return len(text) + (len(text.splitlines()) + 1) * max(0, each)


def _replaced(value: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> int:
    text, old = (value, old) if isinstance(value, bytes) else (str(value), str(old))
    each: int = len(new if isinstance(new, bytes) else str(new))
    return len(text) + each * int(text.count(old))


def _tabs(value: Any, tabsize: int = 8) -> int:
    total: int = len(value) + value.count("\t" if isinstance(value, str) else b"\t") * int(tabsize)
    return total


def _translated(value: Any, table: Any = None, *_: Any) -> int:
    longest = max((len(one) for one in _flat(table) if isinstance(one, str)), default=1)
    return len(value) * longest


def _joined(value: Any, d: Any = "", attribute: Any = None) -> int:
    if isinstance(value, str | bytes):  # the method: a separator, and what is joined
        value, d = d, value
    if not hasattr(value, "__len__"):
        raise TooMuchError  # its caller makes a list of it first
    return size(value, {}) + len(value) * len(d if isinstance(d, bytes) else str(d))


def _wrapped(value: Any, width: int = 79, *args: Any, **more: Any) -> int:
    text, by = str(value), more.get("wrapstring", args[1] if len(args) > 1 else None) or "\n"
    return (len(text) + 1) * (1 + len(str(by)) // max(1, min(width, 2)))


def _formatted(value: Any, *args: Any, **more: Any) -> int:
    return format_length(value, [*args, *more.values()])


def _dumped(value: Any, *args: Any, **more: Any) -> int:
    indent = more.get("indent", args[1] if len(args) > 1 else None) or 0
    each = len(indent) if isinstance(indent, str) else int(indent)
    marks = sum(len(one) for one in more.get("separators") or args[2:3] and args[2] or ())
    total = size(value, {})
    if not each:
        return total * (1 + marks)
    check_length(total, MAX_SLOW)
    return total * (1 + marks) + _deep(value) * each


def _deep(value: Any, depth: int = 1) -> int:
    """Return how many steps of indentation all lines of a value take."""
    parts = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple):
        return depth
    return 2 * depth + sum(_deep(part, depth + 1) for part in parts)


def _grouped(value: Any, attribute: Any, default: Any = "", *_: Any, **__: Any) -> int:
    return len(value) * size(default, {})  # each item has a copy, in small letters


def _summed(value: Any, attribute: Any = None, start: Any = 0) -> int:
    return 0 if isinstance(start, int | float) else len(value) * size(value, {})


def _split(value: Any, *_: Any, **__: Any) -> int:
    return len(value) * (MAX_CHARS // MAX_SPLIT)


def _lorem(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> int:
    return int(n) * int(max) * 1024


_ITEMS = frozenset(
    "batch slice list sort unique groupby select reject selectattr rejectattr map min max random"
    " sum dictsort items join".split()
)
_SLOW = frozenset("urlize urlencode striptags wordwrap wordcount title pprint xmlattr".split())
# Of others than texts they show the whole.
_SHOWING = frozenset(
    "capitalize center e escape forceescape format indent lower replace safe string tojson trim"
    " truncate upper urlencode wordcount int float".split()
)
_FORESEEN: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "to_bytes"), _width),
    **dict.fromkeys(("batch", "slice"), lambda value, n=0, *_, **__: int(n) * 32),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _split),
    **dict.fromkeys(("format", "format_map"), _formatted),
    "indent": _indented,
    "replace": _replaced,
    "expandtabs": _tabs,
    "translate": _translated,
    "join": _joined,
    "wordwrap": _wrapped,
    "tojson": _dumped,
    "sum": _summed,
    "groupby": _grouped,
    "generate_lorem_ipsum": lambda function, *args, **more: _lorem(*args, **more),
    "strftime_now": lambda function, pattern: len(pattern) * 1024,
}
