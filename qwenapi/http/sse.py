"""Streamed responses, unbuffered to the client: events, and the coder interface's plain text."""

from collections.abc import Iterable

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
