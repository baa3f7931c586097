"""Base schemas of request bodies: strict, frozen, and every fault named by its field.

`null` means absent. A field that no schema knows is left out and its place reported
(`ignored_fields`), or refused where a profile wants that (`refuse_unknown`). Schemas of the
interfaces borrow these and the fields of fields.py.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any, ClassVar, NamedTuple

from marshmallow import Schema, ValidationError, fields, post_load, pre_load

from qwenapi.errors import BadRequest
from qwenapi.http.fields import (
    MISSING,
    Composite,
    Neutral,
    Path,
    StrictFloat,
    StrictInteger,
    StrictString,
)

MAX_SHOWN_CHARS = 64
# How alike a name must be to be proposed in an unknown one's place.
MIN_LIKENESS = 0.75

_UNKNOWN = "is not a field of this request"


class StrictSchema(Schema):
    """An object of known fields, where null means absent."""

    error_messages = {"type": "must be an object"}
    # Fields of features that do not exist; not marshmallow's, which would visit each in each body.
    unsupported: ClassVar[Mapping[str, Neutral]] = {}

    @pre_load
    def drop_nulls(self, data: Any, **_: Any) -> Any:
        """Leave out unknown fields, too: marshmallow's own check takes quadratic time."""
        if not isinstance(data, Mapping):
            return data
        for name, value in data.items():
            neutral = self.unsupported.get(name)
            if neutral is not None and value is not None and not neutral.accepts(value):
                raise ValidationError(neutral.claim, name)
        known = _by_key(self)
        return {name: data[name] for name in data if name in known and data[name] is not None}


class RequestSchema(StrictSchema):
    """A request's body, which becomes a frozen `value_class`.

    Fields that the value class lacks are checked and dropped: they are accepted though they change
    no output.
    """

    value_class: ClassVar[type]
    # Names that no field has, at any depth, and that change no answer: never refused.
    without_effect: ClassVar[frozenset[str]] = frozenset()

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
    path: Path
    claim: str


def ignored_fields(schema: Schema, body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted places of what a schema leaves out, in the body's order."""
    return map(dotted, _unknown(schema, body))


def refuse_unknown(schema: RequestSchema, body: Mapping[str, Any]) -> None:
    """Raise BadRequest naming the first field that the schema does not know."""
    for path in _unknown(schema, body):
        if path[-1] not in schema.without_effect:
            fault = FieldError(path, _UNKNOWN)
            raise BadRequest(_explain(fault, schema), param=_shorten(dotted(path)) or None)


def load_request(schema: Schema, body: dict[str, Any]) -> Any:
    """Return the value of a body; raise BadRequest naming one field at fault.

    That is the first in the body's order, else the first it lacks.
    """
    try:
        return schema.load(body)
    except ValidationError as error:
        fault = next(_walk_errors(error.messages, body))
        raise BadRequest(
            _explain(fault, schema),
            param=_shorten(dotted(fault.path)) or None,
            kind=_kind(fault, schema, body),
        ) from error


def _by_key(schema: Schema) -> dict[str, fields.Field[Any]]:
    """Return a schema's fields by the names that a body has for them."""
    return {field.data_key or name: field for name, field in schema.load_fields.items()}


def _unknown(schema: Schema, data: Any) -> Iterator[Path]:
    """Yield the place of each field that no schema knows and that is not null."""
    known = _by_key(schema)
    unsupported = schema.unsupported if isinstance(schema, StrictSchema) else {}
    for name, value in data.items() if isinstance(data, Mapping) else ():
        field = known.get(name)
        if field is None:
            if value is not None and name not in unsupported:
                yield (name,)
        elif isinstance(field, fields.Nested):
            yield from ((name, *path) for path in _unknown(field.schema, value))
        elif isinstance(field, Composite):
            yield from ((name, *path) for path in field.unknown(value))


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


def _walk_errors(errors: Any, data: Any, path: Path = ()) -> Iterator[FieldError]:
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
    if fault.claim == MISSING:
        return "missing"
    if len(fault.path) == 1:
        name = fault.path[0]
        if isinstance(schema, StrictSchema) and name in schema.unsupported:
            return "value"
        value = body.get(str(name))
        field = next((f for f in schema.fields.values() if (f.data_key or f.name) == name), None)
        if isinstance(field, StrictInteger | StrictFloat | StrictString):
            wanted = {StrictInteger: (int,), StrictFloat: (int, float), StrictString: (str,)}
            return "value" if type(value) in wanted[type(field)] else "type"
    return "type"


def _explain(fault: FieldError, schema: Schema) -> str:
    if not fault.path:
        return f"The body {fault.claim}."
    sentence = f"'{_shorten(dotted(fault.path))}' {fault.claim}."
    if fault.claim == _UNKNOWN and len(fault.path) == 1:
        name = str(fault.path[0])[:MAX_SHOWN_CHARS]
        close = difflib.get_close_matches(name, _by_key(schema), n=1, cutoff=MIN_LIKENESS)
        return f"{sentence} Did you mean '{close[0]}'?" if close else sentence
    return sentence


def dotted(path: Path) -> str:
    """Return `messages[0].content` of ("messages", 0, "content")."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in path]
    return "".join(parts).removeprefix(".")


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_SHOWN_CHARS else name[:MAX_SHOWN_CHARS] + "…"
