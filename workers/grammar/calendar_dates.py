"""The days of the calendar for `format: date` and `date-time`: 29 February in leap years only.

llguidance's pattern of a date allows 29 February of any year.
"""

from collections.abc import Iterator
from typing import Any

_FORMATS = ("date", "date-time")
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
# How either format may begin; the format itself says the rest.
_DAY = {"pattern": f"^([0-9]{{4}}-(0[13-9]|1[0-2]|02-([01]|2[0-8]))|{_LEAP_YEAR}-02-29)"}
# Where a JSON Schema (2020-12, section 10) has further schemas: one, a list, or by names.
_NESTED = (
    *("additionalProperties", "contains", "propertyNames", "not", "if", "then", "else"),
    *("items", "prefixItems", "anyOf", "oneOf", "allOf"),
)
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")


def keep_to_calendar(schema: dict[str, Any]) -> bool:
    """Add to a JSON Schema, in place, what dates lack; return whether it has any."""
    waiting, has_dates = [schema], False
    while waiting:
        schema = waiting.pop()
        waiting.extend(_nested(schema))
        if schema.get("format") in _FORMATS:
            others = schema.get("allOf", [])
            if isinstance(others, list):  # else it is no schema, and llguidance says so
                schema["allOf"] = [*others, _DAY]
                has_dates = True
    return has_dates


def _nested(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for keyword in _NESTED:
        value = schema.get(keyword)
        for nested in value if isinstance(value, list) else [value]:
            if isinstance(nested, dict):
                yield nested
    for keyword in _NAMED:
        if isinstance(value := schema.get(keyword), dict):
            yield from (nested for nested in value.values() if isinstance(nested, dict))
