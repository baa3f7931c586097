"""Base schemas of request bodies: strict, frozen, and every fault named by its field.

`null` means absent. Schemas of the interfaces borrow these and the fields of fields.py.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any, ClassVar, NamedTuple

from marshmallow import Schema, ValidationError, post_load, pre_load

from qwenapi.errors import BadRequest
from qwenapi.http.fields import MISSING, Neutral, StrictFloat, StrictInteger, StrictString

MAX_SHOWN_CHARS = 64

_UNKNOWN = "is not a field of this request"


class StrictSchema(Schema):
    """An object of known fields, where null means absent."""

    error_messages = {"type": "must be an object"}

    @pre_load
    def drop_nulls(self, data: Any, **_: Any) -> Any:
        """Refuse the first unknown field, too: marshmallow's own check takes quadratic time."""
        if not isinstance(data, Mapping):
            return data
        known = {field.data_key or name for name, field in self.load_fields.items()}
        unknown = next((name for name in data if name not in known), None)
        if unknown is not None:
            raise ValidationError(_UNKNOWN, unknown)
        return {name: value for name, value in data.items() if value is not None}


class RequestSchema(StrictSchema):
    """A request's body, which becomes a frozen `value_class`.

    Fields that the value class lacks are checked and dropped: they are accepted though they change
    no output.
    """

    value_class: ClassVar[type]

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Any:
        names = {field.name for field in dataclass_fields(self.value_class)}
        shaped = self.shape(data)
        return self.value_class(**{k: v for k, v in shaped.items() if k in names})

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the value's arguments; a hook for those that are made of several fields."""
        return data


class LenientSchema(RequestSchema):
    """A body of the older interfaces: unknown fields are left out, numbers may be in quotes."""

    @pre_load
    def drop_nulls(self, data: Any, **_: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {
            name: _as_number(data[name], field)
            for name, field in self.load_fields.items()
            if data.get(name) is not None
        }


class FieldError(NamedTuple):
    path: tuple[str | int, ...]
    claim: str


def load_request(schema: Schema, body: dict[str, Any]) -> Any:
    """Return the value of a body; raise BadRequest naming one field at fault.

    That is the first unknown one, else the first in the body's order, else the first it lacks.
    """
    try:
        return schema.load(body)
    except ValidationError as error:
        fault = next(_walk_errors(error.messages, body))
        raise BadRequest(
            _explain(fault, schema),
            param=_shorten(_dotted(fault.path)) or None,
            kind=_kind(fault, schema, body),
        ) from error


def _as_number(value: Any, field: Any) -> Any:
    """Return a number written in quotes, or 2.0 where a whole number is wanted, as a number."""
    try:
        if isinstance(field, StrictInteger) and isinstance(value, str | float):
            return int(value) if isinstance(value, str) or value.is_integer() else value
        if isinstance(field, StrictFloat) and isinstance(value, str):
            return float(value)
    except ValueError:
        pass
    return value


def _walk_errors(errors: Any, data: Any, path: tuple[str | int, ...] = ()) -> Iterator[FieldError]:
    """Yield marshmallow's errors in the body's order, then those of fields it lacks."""
    if isinstance(errors, list):
        yield FieldError(path, str(errors[0]))
        return
    given = data if isinstance(data, Mapping) else {}
    for key in [*(k for k in given if k in errors), *(k for k in errors if k not in given)]:
        place = path if key == "_schema" else (*path, key)
        yield from _walk_errors(errors[key], given.get(key), place)


def _kind(fault: FieldError, schema: Schema, body: dict[str, Any]) -> str:
    """Return the kind of a BadRequest: a wrong value of the right type is no malformed body."""
    if fault.claim in (MISSING, _UNKNOWN):
        return "missing" if fault.claim == MISSING else "value"
    if len(fault.path) == 1:
        name = fault.path[0]
        value = body.get(str(name))
        field = next((f for f in schema.fields.values() if (f.data_key or f.name) == name), None)
        if isinstance(field, Neutral):
            return "value"
        if isinstance(field, StrictInteger | StrictFloat | StrictString):
            wanted = {StrictInteger: (int,), StrictFloat: (int, float), StrictString: (str,)}
            return "value" if type(value) in wanted[type(field)] else "type"
    return "type"


def _explain(fault: FieldError, schema: Schema) -> str:
    if not fault.path:
        return f"The body {fault.claim}."
    sentence = f"'{_shorten(_dotted(fault.path))}' {fault.claim}."
    if fault.claim == _UNKNOWN and len(fault.path) == 1:
        name = str(fault.path[0])[:MAX_SHOWN_CHARS]
        close = difflib.get_close_matches(name, schema.fields, n=1)
        return f"{sentence} Did you mean '{close[0]}'?" if close else sentence
    return sentence


def _dotted(path: tuple[str | int, ...]) -> str:
    """Return `messages[0].content` of ("messages", 0, "content")."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in path]
    return "".join(parts).removeprefix(".")


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_SHOWN_CHARS else name[:MAX_SHOWN_CHARS] + "…"
