"""`/livez`, `/readyz` and `/health`. None of them asks an engine to do anything."""

from flask import Blueprint, Response

from qwenapi.responses import json_response
from qwenapi.services import services

blueprint = Blueprint("ops", __name__)


@blueprint.get("/livez")
def livez() -> Response:
    """Answer that this process answers."""
    return json_response({"status": "ok"})


@blueprint.get("/readyz")
@blueprint.get("/health")
def readyz() -> Response:
    """Answer 200 only while an engine makes progress, or would if it had work."""
    if services().engine.is_ready:
        return json_response({"status": "ok"})
    return json_response({"status": "loading"}, 503, {"Retry-After": "1"})
