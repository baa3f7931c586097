"""JSON responses, and X-Ignored; where else response headers are set.

What may change a response header:

    here                      Content-Type; X-Ignored: fields that an older interface left out
    sse.py                    Cache-Control and X-Accel-Buffering of streams
    views in api/             X-Clamped: values that were cut; Retry-After, no-store in api/ops/
    errors.py                 Retry-After and retry-after-ms, Allow, WWW-Authenticate of refusals
    request_context/auth.py   x-ratelimit-*, made in keys/rate_limit.py
    request_context/cors.py   Access-Control-*, Vary
    app.py                    X-Request-Id
    web/, openapi/views.py    Content-Security-Policy, ETag and caching of web pages
    serving/fast_worker.py    all headers of answers to what is no HTTP
"""

import re
from collections.abc import Container, Mapping
from typing import Any

import orjson
from flask import Response

MAX_SHOWN = 16
_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response whose body is `body` as UTF-8 JSON."""
    return Response(orjson.dumps(body), status, dict(headers or {}), mimetype="application/json")


def ignored_header(body: Mapping[str, Any], known: Container[str]) -> dict[str, str]:
    """Return `X-Ignored` with the fields an older interface leaves out, if there are any.

    Only names that may stand in a header are shown, and not more than a handful.
    """
    names = [name for name in body if name not in known and _HEADER_SAFE.fullmatch(name)]
    return {"X-Ignored": ", ".join(names[:MAX_SHOWN])} if names else {}
