"""The border where a request's bytes become a frozen value, or a refusal that names the field.

    read_body → parse_json → RequestSchema.load → dataclass → view(value)

Nothing is coerced: a number in quotes is a string, `true` is no number. `null` means absent. The
one module here that reads Flask's request; schemas only borrow its fields and base.
"""

import difflib
import functools
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qsl

from flask import Request, request
from marshmallow import Schema, ValidationError, fields, post_load, pre_load, validate
from werkzeug.exceptions import ClientDisconnected

from qwenapi.errors import BadRequest, LengthRequired, PayloadTooLarge, UnsupportedMediaType
from qwenapi.text.errors import JsonError
from qwenapi.text.strict_json import parse_object

MAX_SHOWN_CHARS = 64

FORM = "application/x-www-form-urlencoded"
_UNKNOWN = "is not a field of this request"
_MISSING = "is required"


class StrictInteger(fields.Integer):
    """A whole number within inclusive bounds. No string, boolean or float, not even 1.0."""

    def __init__(self, low: int | None = None, high: int | None = None, **kwargs: Any) -> None:
        claim = _claim("an integer", low, high)
        if (low, high) != (None, None):
            kwargs["validate"] = validate.Range(low, high, error=claim)
        super().__init__(
            strict=True, error_messages={"invalid": claim, "required": _MISSING}, **kwargs
        )


class StrictFloat(fields.Float):
    """A finite number within bounds: `low` and `high` inclusive, `above` exclusive."""

    def __init__(
        self,
        low: float | None = None,
        high: float | None = None,
        *,
        above: float | None = None,
        **kwargs: Any,
    ) -> None:
        claim = (
            _claim("a number", low, high)
            if above is None
            else f"must be a number above {above} and up to {high}"
        )
        bottom = low if above is None else above
        kwargs["validate"] = validate.Range(bottom, high, min_inclusive=above is None, error=claim)
        super().__init__(
            error_messages={"invalid": claim, "special": claim, "too_large": claim}, **kwargs
        )

    def _validated(self, value: Any) -> float:
        if type(value) not in (int, float):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class StrictBoolean(fields.Boolean):
    """`true` or `false` and nothing that resembles them."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if value is True or value is False:
            return bool(value)
        raise ValidationError("must be true or false")


class StrictString(fields.String):
    """A string of at most `max_chars` characters."""

    def __init__(self, max_chars: int, **kwargs: Any) -> None:
        claim = f"must be a string of at most {max_chars} characters"
        super().__init__(
            validate=validate.Length(max=max_chars, error=claim),
            error_messages={"invalid": claim, "required": _MISSING},
            **kwargs,
        )


class Neutral(fields.Field[Any]):
    """A field whose feature does not exist yet; only values that ask for nothing pass."""

    def __init__(self, *values: Any, feature: str, **kwargs: Any) -> None:
        self._values = values
        self.json_schema: dict[str, Any] = {"enum": list(values)} if values else {"not": {}}
        self._claim = f"asks for {feature}, which this server does not support"
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if any(type(value) is type(known) and value == known for known in self._values):
            return value
        raise ValidationError(self._claim)


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


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the object a body holds; raise BadRequest for anything but strict JSON."""
    try:
        return parse_object(raw)
    except JsonError as error:
        raise BadRequest(str(error), kind="json") from error


def read_body(incoming: Request, max_bytes: int | None = None) -> bytes:
    """Return the whole body; refuse by headers alone what is too large, encoded or no JSON.

    The limit is the application's MAX_CONTENT_LENGTH where none is given.
    """
    if not _is_json(incoming.mimetype):
        raise UnsupportedMediaType
    return _read(incoming, max_bytes)


def _read(incoming: Request, max_bytes: int | None = None) -> bytes:
    _check_encoding(incoming)
    length = incoming.content_length
    if length is None:
        raise LengthRequired
    limit = incoming.max_content_length if max_bytes is None else max_bytes
    if limit is not None and length > limit:
        raise PayloadTooLarge(f"The body is larger than {limit} bytes.")
    try:
        body = incoming.get_data(cache=False)
    except (ClientDisconnected, OSError) as error:
        _read_no_more(incoming)
        raise BadRequest("The body ended before its Content-Length.") from error
    if len(body) != length:
        raise BadRequest("The body is not as long as its Content-Length.")
    return body


def _read_no_more(incoming: Request) -> None:
    # Otherwise gunicorn would wait for the rest of the body before it looks for another request.
    if sock := incoming.environ.get("gunicorn.socket"):
        sock._sock.shutdown(socket.SHUT_RD)


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


def accepts(
    schema_class: type[Schema],
    max_bytes: int | None = None,
    before: Callable[[dict[str, Any]], None] = lambda body: None,
) -> Callable[..., Any]:
    """Give a view the checked value of its JSON body; `before` sees the body unchecked."""
    schema = schema_class()

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def checked(*args: Any, **kwargs: Any) -> Any:
            body = parse_json(read_body(request, max_bytes))
            before(body)
            return view(load_request(schema, body), *args, **kwargs)

        return checked

    return decorate


def read_fields(incoming: Request) -> dict[str, Any]:
    """Return the fields of a urlencoded form or a JSON object; anything else is 415."""
    if _is_json(incoming.mimetype):
        return parse_json(read_body(incoming))
    if incoming.mimetype != FORM:
        raise UnsupportedMediaType("The body must be a urlencoded form or JSON, and say which.")
    try:
        text = _read(incoming).decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
    except (UnicodeError, ValueError) as error:
        raise BadRequest("The body is not a urlencoded form in UTF-8.", kind="json") from error
    return dict(pairs)


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


def _is_json(mimetype: str) -> bool:
    return mimetype == "application/json" or (
        mimetype.startswith("application/") and mimetype.endswith("+json")
    )


def _check_encoding(incoming: Request) -> None:
    is_json = _is_json(incoming.mimetype) or incoming.mimetype == FORM
    encoding = incoming.headers.get("Content-Encoding", "identity").strip().lower()
    if not is_json or encoding not in ("", "identity"):
        raise UnsupportedMediaType


def _claim(kind: str, low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"must be {kind} from {low} to {high}"
    return f"must be {kind}" if low is None else f"must be {kind} of at least {low}"


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
    if fault.claim in (_MISSING, _UNKNOWN):
        return "missing" if fault.claim == _MISSING else "value"
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
