"""`/livez`, `/readyz`, `/health`, and what stands at `/`. None asks an engine to do anything."""

from flask import Blueprint, Response, g, redirect, request

from qwenapi.api.ops.health import health_body, loading_body
from qwenapi.errors import NotFound
from qwenapi.responses import json_response
from qwenapi.services import services
from qwenapi.web import wants_page

blueprint = Blueprint("ops", __name__)


@blueprint.get("/livez")
def livez() -> Response:
    """Answer that this process answers."""
    return json_response({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """Answer 200 only while an engine makes progress, or would if it had work."""
    if services().engine.is_ready:
        return json_response({"status": "ok"})
    return json_response({"status": "loading"}, 503, {"Retry-After": "1"})


@blueprint.get("/health")
def health() -> Response:
    """Answer as readyz does, in the words of the document whose callers ask here."""
    profile = services().profiles.for_health
    if not services().engine.is_ready:
        return json_response(loading_body(profile), 503, {"Retry-After": "1"})
    engine = services().engine
    return json_response(health_body(profile, engine.card, engine.devices()))


@blueprint.get("/")
def root() -> Response:
    """Send a browser to the page; describe the service to anything else that asks."""
    profiles = services().profiles
    classic = profiles.of_interface("classic")
    if wants_page(request) and not (classic and profiles.is_single):
        response = redirect("ui/")
        response.vary.add("Accept")
        return Response(response.data, response.status_code, response.headers)
    if classic is None:
        raise NotFound()
    g.profile = classic
    return json_response(classic.description)
