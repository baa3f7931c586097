"""CORS: which web pages of other origins may call, and what their scripts may read.

No credentials, ever.
"""

import re

from flask import Flask, Response, request

from qwenapi.request_context.current_request import current_profile
from qwenapi.request_context.services import services

EXPOSED = ", ".join(
    """
    X-Request-Id request-id X-Clamped X-Ignored Retry-After retry-after-ms x-should-retry
    x-ratelimit-limit-requests x-ratelimit-remaining-requests x-ratelimit-reset-requests
    x-ratelimit-limit-tokens x-ratelimit-remaining-tokens x-ratelimit-reset-tokens
    """.split()
)
# Granted where a page does not say what it will send.
USUAL = "Authorization, Content-Type, X-Api-Key, X-Request-Id"
MAX_AGE_SECONDS = 600
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~, \t-]+", re.ASCII)


def register(app: Flask) -> None:
    app.before_request(_preflight)
    app.after_request(_allow)


def _preflight() -> Response | None:
    """Answer what a browser asks before the request itself, whose model is not yet known."""
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    origin = request.headers.get("Origin", "")
    if not any(_allows(profile.cors_origins, origin) for profile in services().profiles):
        return None
    response = Response(status=204)
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
    response.headers["Access-Control-Allow-Headers"] = _granted()
    response.headers["Access-Control-Max-Age"] = str(MAX_AGE_SECONDS)
    response.vary.update(("Origin", "Access-Control-Request-Headers"))
    return response


def _granted() -> str:
    """Return the headers a page may send: those it asks for, whatever its library calls them."""
    asked = request.headers.get("Access-Control-Request-Headers", "").strip()
    return asked if _HEADER_NAMES.fullmatch(asked) else USUAL


def _allow(response: Response) -> Response:
    origin = request.headers.get("Origin")
    # A page must be able to read that its key is refused, before anybody could say for whom it is.
    is_refused = response.status_code == 401
    readers = services().profiles if is_refused else [current_profile()]
    origins = tuple(name for profile in readers for name in profile.cors_origins)
    if origin and request.method != "OPTIONS" and _allows(origins, origin):
        response.headers["Access-Control-Allow-Origin"] = "*" if "*" in origins else origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED
        response.vary.add("Origin")
    return response


def _allows(origins: tuple[str, ...], origin: str) -> bool:
    return bool(origin) and ("*" in origins or origin in origins)
