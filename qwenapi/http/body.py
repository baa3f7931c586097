"""Request bodies: their bytes, read whole within limits, as JSON or form fields, or refused.

    read_json → strict JSON → a schema (schemas.py) → frozen dataclass → view(value)

The only module here that reads Flask's request.
"""

import functools
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from flask import Request, request
from marshmallow import Schema
from werkzeug.exceptions import ClientDisconnected

from qwenapi.errors import BadRequest, LengthRequired, PayloadTooLarge, UnsupportedMediaType
from qwenapi.http.schemas import load_request
from qwenapi.text.errors import JsonError
from qwenapi.text.strict_json import parse_object

FORM = "application/x-www-form-urlencoded"


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
            body = read_json(request, max_bytes)
            before(body)
            return view(load_request(schema, body), *args, **kwargs)

        return checked

    return decorate


def read_json(incoming: Request, max_bytes: int | None = None) -> dict[str, Any]:
    """Return the object of a JSON body; refuse by headers alone what is too large, encoded or no
    JSON. The limit is the application's MAX_CONTENT_LENGTH where none is given.
    """
    if not _is_json(incoming.mimetype):
        raise UnsupportedMediaType
    return parse_json(_read(incoming, max_bytes))


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the object a body holds; raise BadRequest for anything but strict JSON."""
    try:
        return parse_object(raw)
    except JsonError as error:
        raise BadRequest(str(error), kind="json") from error


def read_fields(incoming: Request) -> dict[str, Any]:
    """Return the fields of a urlencoded form or a JSON object; anything else is 415."""
    if _is_json(incoming.mimetype):
        return read_json(incoming)
    if incoming.mimetype != FORM:
        raise UnsupportedMediaType("The body must be a urlencoded form or JSON, and say which.")
    try:
        text = _read(incoming, None).decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
    except (UnicodeError, ValueError) as error:
        raise BadRequest("The body is not a urlencoded form in UTF-8.", kind="json") from error
    return dict(pairs)


def _read(incoming: Request, max_bytes: int | None) -> bytes:
    encoding = incoming.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType
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


def _is_json(mimetype: str) -> bool:
    return mimetype == "application/json" or (
        mimetype.startswith("application/") and mimetype.endswith("+json")
    )
