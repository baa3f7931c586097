"""Views of the pages' files, with security headers (Content-Security-Policy, nosniff)."""

from typing import Any

from flask import Blueprint, Request, Response, current_app, request

from qwenapi.errors import NotFound
from qwenapi.web.static_files import load_static_files

EXTENSION = "qwenapi.web"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; object-src 'none'; base-uri 'none'; "
        "frame-ancestors 'none'; img-src 'self' data:; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked for again at each visit and answered 304: an upgraded page is never half old.
    "Cache-Control": "no-cache",
}

blueprint = Blueprint("web", __name__)


@blueprint.get("/ui")
def folder() -> Response:
    # Relative, so that it holds behind a proxy with another host, scheme or prefix.
    return Response(status=308, headers={"Location": "ui/"})


@blueprint.get("/ui/")
def index() -> Response:
    return page("index.html")


@blueprint.get("/ui/status")
def status() -> Response:
    return page("status.html")


@blueprint.get("/ui/<path:name>")
def page(name: str) -> Response:
    found = current_app.extensions[EXTENSION].get(name)
    if found is None:
        raise NotFound()
    response = Response(found.content, headers=HEADERS, content_type=found.content_type)
    response.set_etag(found.etag)
    response.make_conditional(request)
    return response


def wants_page(asked: Request) -> bool:
    """Return whether a browser asks, which prefers HTML to JSON; `*/*` is no such wish."""
    kinds = ["application/json", "text/html"]
    return asked.method == "GET" and asked.accept_mimetypes.best_match(kinds) == "text/html"


def _load(state: Any) -> None:
    state.app.extensions[EXTENSION] = load_static_files()


blueprint.record(_load)
