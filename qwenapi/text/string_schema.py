"""String schemas of JSON Schema as regular expressions, for values that stand without quotes."""

import re
from collections.abc import Mapping
from typing import Any

_HOUR = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:([0-5][0-9]|60)(\.[0-9]{{1,9}})?(Z|[+-]{_HOUR})"
_DAY = (
    "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8])"
)
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE = f"([0-9]{{4}}-({_DAY})|{_LEAP_YEAR}-02-29)"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
# Those of JSON Schema 2020-12, section 7.3, that agents' schemas have; others are annotations.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*@{_LABEL}(\.{_LABEL})+",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
_ANY = r"(.|\n)"


def expressions(schema: Mapping[str, Any]) -> list[str]:
    """Return regular expressions that a string of a schema matches whole, each of them.

    Of `minLength`, `maxLength`, `pattern` and `format`; what has another type than JSON Schema
    wants is left out, as are formats that are not in FORMATS.
    """
    found = []
    least, most = (schema.get(name) for name in ("minLength", "maxLength"))
    if type(least) is int or type(most) is int:
        low, high = least if type(least) is int else 0, most if type(most) is int else ""
        found.append(f"{_ANY}{{{low},{high}}}")
    if isinstance(pattern := schema.get("pattern"), str):
        found.append(_searched(pattern))
    if isinstance(name := schema.get("format"), str) and name in FORMATS:
        found.append(FORMATS[name])
    return found


def _searched(pattern: str) -> str:
    """Return an expression, fit to stand between slashes, for all strings in which a pattern is
    found.
    """
    begins = pattern.startswith("^")
    ends = re.search(r"(?<!\\)(\\\\)*\$\Z", pattern) is not None
    inner = pattern[begins : len(pattern) - ends]
    if _has_branches(inner):  # an anchor belongs to one branch only
        begins = ends = False
        inner = pattern
    inner = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", inner, flags=re.DOTALL)
    return f"{'' if begins else _ANY + '*'}({inner}){'' if ends else _ANY + '*'}"


def _has_branches(pattern: str) -> bool:
    """Whether a pattern is of several branches at its outermost level."""
    bare = re.sub(r"\\.|\[(\\.|[^\]\\])*\]", "", pattern, flags=re.DOTALL)
    depth = 0
    for character in bare:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            return True
    return False
