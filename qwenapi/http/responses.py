"""JSON responses, and X-Ignored; where else response headers are set.

What may change a response header:

    here                      Content-Type; X-Ignored: fields of the request that were left out
    sse.py                    Cache-Control and X-Accel-Buffering of streams
    views in api/             X-Clamped: values that were cut; Retry-After, no-store in api/ops/
    errors.py                 Retry-After and retry-after-ms, Allow, WWW-Authenticate of refusals
    request_context/auth.py   x-ratelimit-*, made in keys/rate_limit.py
    request_context/cors.py   Access-Control-*, Vary
    app.py                    X-Request-Id, X-Ignored
    web/, openapi/views.py    Content-Security-Policy, ETag and caching of web pages
    serving/fast_worker.py    all headers of answers to what is no HTTP
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from flask import Response

MAX_IGNORED_BYTES = 1024
_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.\[\]-]{1,128}")


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response whose body is `body` as UTF-8 JSON."""
    return Response(orjson.dumps(body), status, dict(headers or {}), mimetype="application/json")


def ignored_header(paths: Iterable[str]) -> dict[str, str]:
    """Return `X-Ignored` with the places of fields that were left out, if there are any.

    Only what may stand in a header is shown, and whole places, until the header is full.
    """
    shown = ""
    for path in filter(_HEADER_SAFE.fullmatch, paths):
        longer = f"{shown}, {path}" if shown else path
        if len(longer) > MAX_IGNORED_BYTES:
            break
        shown = longer
    return {"X-Ignored": shown} if shown else {}
