"""One line of a batch's input, checked, and one line of its output, in OpenAI's format. Pure."""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OUTPUT_ID = "batch_req_"
# How every line of an output begins, so that a torn one is known for what it is.
OUTPUT_BEGINNING = b'{"id": "' + OUTPUT_ID.encode()
MAX_ID_CHARS = 512
_ADDRESS = re.compile(r"/[!-~]*")


class LineError(ValueError):
    """A line that is no request of a batch; the message says what is wrong with it."""


@dataclass(frozen=True)
class BatchLine:
    """One request: its name in the file, the address it is posted to, and its body."""

    custom_id: str
    url: str
    body: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class BatchResponse:
    """What a server answered to one line; `body` is what its JSON holds."""

    status_code: int
    request_id: str
    body: Any = field(repr=False)


def parse_line(raw: bytes) -> BatchLine:
    """Return the request of a line; raise LineError where it is none, or could not be whole."""
    fields = _json(raw)
    if not isinstance(fields, dict):
        raise LineError("is no JSON object")
    custom_id, url, body = (fields.get(name) for name in ("custom_id", "url", "body"))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARS:
        raise LineError(f"'custom_id' must be a text of 1 to {MAX_ID_CHARS} characters")
    if fields.get("method") != "POST":
        raise LineError("'method' must be \"POST\"")
    if not isinstance(url, str) or not _ADDRESS.fullmatch(url):
        raise LineError("'url' must be an address as /v1/chat/completions, without a host")
    if not isinstance(body, dict):
        raise LineError("'body' must be an object")
    if body.get("stream"):
        raise LineError("'body' asks for a stream, and a line has one answer: leave 'stream' out")
    return BatchLine(custom_id, url, body)


def render_line(
    custom_id: str, response: BatchResponse | None, error: Mapping[str, str] | None = None
) -> bytes:
    """Return a line of output, its end included: an answer, an error, or an answer that is one.

    `error` is `code` and `message`.
    """
    answer = response and {
        "status_code": response.status_code,
        "request_id": response.request_id,
        "body": response.body,
    }
    line = {
        "id": OUTPUT_ID + uuid.uuid4().hex,
        "custom_id": custom_id,
        "response": answer,
        "error": error,
    }
    # What UTF-8 has no bytes for, half a surrogate pair, stands as JSON's escape.
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise LineError(f"is no JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
