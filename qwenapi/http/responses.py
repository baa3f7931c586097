"""JSON responses and X-Ignored, and the index of every place that sets a response header.

    here                      Content-Type; X-Ignored's text, which app.py sends
    http/sse.py               Cache-Control, X-Accel-Buffering of streams
    generation/sampling.py    X-Clamped's text, which request_context/respond.py
                              and api/generate/ send
    api/ops/views.py          Cache-Control, Retry-After, Vary; Location of `/`
    errors.py                 Retry-After, retry-after-ms, WWW-Authenticate of refusals
    keys/rate_limit.py        x-should-retry of refusals; x-ratelimit-*, which
                              request_context/auth.py puts on every answer to a key with limits
    request_context/cors.py   Access-Control-*, Vary
    api/anthropic/views.py    request-id
    api/batches/views.py      Content-Length of files
    app.py                    X-Request-Id, X-Ignored; Allow of refused methods
    web/, openapi/views.py    Content-Security-Policy, X-Content-Type-Options, Referrer-Policy,
                              Cache-Control, ETag of web pages; Location of their folders
    serving/fast_worker.py    all headers of answers to what is no HTTP

Flask adds Allow to answers to OPTIONS; gunicorn Server, Date, Connection, Transfer-Encoding.
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
    """Return a response whose body is `body` as UTF-8 JSON, or is that already."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return Response(raw, status, dict(headers or {}), mimetype="application/json")


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
