"""Request bodies: their bytes, read whole within limits, as JSON or form fields, or refused.

    read_json → strict JSON → a schema (schemas.py) → frozen dataclass → view(value)

A body has a Content-Length or comes in chunks. How long one may take to come, and what is done with
one that nobody reads, is serving/fast_worker.py's. The only module here that reads Flask's request.
"""

import functools
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from flask import Request, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

from qwenapi.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from qwenapi.http.schemas import RequestSchema, load_request
from qwenapi.text.errors import JsonError
from qwenapi.text.strict_json import parse_object

FORM = "application/x-www-form-urlencoded"
# Read at a time of a body in chunks; of chunks of one byte each this takes about 10 ms.
PIECE_BYTES = 4096


def accepts(
    schema_class: type[RequestSchema],
    max_bytes: int | None = None,
    before: Callable[[dict[str, Any]], None] = lambda body: None,
    load: Callable[[RequestSchema, dict[str, Any]], Any] = load_request,
) -> Callable[..., Any]:
    """Give a view the value that `load` makes of its JSON body; `before` sees the body first."""
    schema = schema_class()

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def checked(*args: Any, **kwargs: Any) -> Any:
            body = read_json(request, max_bytes)
            before(body)
            return view(load(schema, body), *args, **kwargs)

        return checked

    return decorate


def read_json(
    incoming: Request, max_bytes: int | None = None, *, may_be_absent: bool = False
) -> dict[str, Any]:
    """Return the object of a JSON body; refuse by headers alone what is too large, encoded or no
    JSON. The limit is the application's MAX_CONTENT_LENGTH where none is given. A body that
    `may_be_absent`, as FastAPI's may, is then an object without fields.
    """
    is_json = _is_json(incoming.mimetype)
    if not is_json and not (may_be_absent and not incoming.mimetype):
        raise UnsupportedMediaType
    raw = _read(incoming, max_bytes)
    if not raw and may_be_absent:
        return {}
    if not is_json:
        raise UnsupportedMediaType
    return parse_json(raw)


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the object a body holds; raise BadRequest for anything but strict JSON."""
    try:
        return parse_object(raw)
    except JsonError as error:
        raise BadRequest(str(error), kind="json") from error


def read_fields(incoming: Request) -> dict[str, Any]:
    """Return the fields of a urlencoded form or a JSON object, none of no body at all; anything
    else is 415.
    """
    if incoming.mimetype != FORM:
        try:
            return read_json(incoming, may_be_absent=True)
        except UnsupportedMediaType:
            message = "The body must be a urlencoded form or JSON, and say which."
            raise UnsupportedMediaType(message) from None
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
    limit = incoming.max_content_length if max_bytes is None else max_bytes
    if coding := incoming.headers.get("Transfer-Encoding"):
        if coding.strip().lower() != "chunked":
            raise UnsupportedMediaType("The only transfer coding that is read is chunked.")
        return _read_chunks(incoming, limit)
    length = incoming.content_length or 0
    if limit is not None and length > limit:
        raise _too_large(limit)
    try:
        body = incoming.get_data(cache=False) if length else b""
    except (ClientDisconnected, OSError) as error:
        raise BadRequest("The body ended before its Content-Length.") from error
    if len(body) != length:
        raise BadRequest("The body is not as long as its Content-Length.")
    return body


def _read_chunks(incoming: Request, limit: int | None) -> bytes:
    """Return a body in chunks. Werkzeug's own reading would cut it at the limit in silence."""
    source = incoming.environ["wsgi.input"]
    body = bytearray()
    try:
        while piece := source.read(PIECE_BYTES):
            body += piece
            if limit is not None and len(body) > limit:
                raise _too_large(limit)
            time.sleep(0)  # bytes that have come are read without a pause for others
    except ParseException as error:
        raise BadRequest("The chunks of the body are malformed.") from error
    except OSError as error:
        raise BadRequest("The body ended before its last chunk.") from error
    return bytes(body)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes.")


def _is_json(mimetype: str) -> bool:
    return mimetype == "application/json" or (
        mimetype.startswith("application/") and mimetype.endswith("+json")
    )
