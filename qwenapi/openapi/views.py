"""Views of `/openapi.json`, and of `/docs/`, a web page that shows it."""

import re

from flask import Blueprint, Response, current_app

from qwenapi.http.responses import json_response
from qwenapi.openapi.operations import ALIASES, OPERATIONS
from qwenapi.openapi.spec import build_spec
from qwenapi.request_context.services import services
from qwenapi.web.views import page

EXTENSION = "qwenapi.openapi"

blueprint = Blueprint("openapi", __name__)

# The viewer sets styles on its elements; scripts still come from here alone.
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; img-src 'self' data:"
)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    kept = current_app.extensions
    if EXTENSION not in kept:  # addresses and profiles stay the same for a process's life
        kept[EXTENSION] = build_spec(_addresses(), services().profiles)
    return json_response(kept[EXTENSION])


@blueprint.get("/docs")
def folder() -> Response:
    return Response(status=308, headers={"Location": "docs/"})


@blueprint.get("/docs/")
def docs() -> Response:
    response = page("docs.html")
    response.headers["Content-Security-Policy"] = POLICY
    return response


def _addresses() -> list[str]:
    """Return the documented addresses among those this application answers."""
    found = []
    for rule in current_app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            if f"{method} {ALIASES.get(path, path)}" in OPERATIONS:
                found.append(f"{method} {path}")
    return found
