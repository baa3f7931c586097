"""Streamed responses, unbuffered to the client: events, and the coder interface's plain text."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from flask import Response


def stream(chunks: Iterable[bytes]) -> Response:
    """Return an event-stream response that sends each chunk as it comes.

    `mimetype=` rather than `content_type=`: only it adds the charset, without which some clients
    read Latin-1.
    """
    response = Response(chunks, mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def named_events(payloads: Iterable[Mapping[str, Any]]) -> bytes:
    """Return payloads as events, each with its type as the event's name."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (payload["type"].encode(), orjson.dumps(payload))
        for payload in payloads
    )
