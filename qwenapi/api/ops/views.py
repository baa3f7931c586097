"""Views of `/livez`, `/readyz`, `/health`, `/metrics` and the other reports, and of `/`.

None asks an engine to do anything, and all answer while no engine is up. The reports are of all
HTTP processes and profiles together.
"""

import re
import time
from functools import cache

from flask import Blueprint, Response, g, redirect, request
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import PrometheusMetrics

from qwenapi import __version__
from qwenapi.api.ops.gpus import read_gpus
from qwenapi.api.ops.health import health_body, loading_body
from qwenapi.errors import BadRequest, NotFound
from qwenapi.http.responses import json_response
from qwenapi.metrics.prometheus import MetricsCollector
from qwenapi.metrics.report import MetricsReading, metrics_body, stats_body
from qwenapi.metrics.snapshot import take_snapshot
from qwenapi.metrics.status import status_body
from qwenapi.request_context.services import services
from qwenapi.web import wants_page

blueprint = Blueprint("ops", __name__)

# What a Prometheus says it accepts, and nobody who wants JSON does.
_TEXT_FORMATS = ("openmetrics", "version=0.0.4")
_WHOLE_NUMBER = re.compile(r"^([^#\n].*) (-?\d+)\.0$", re.MULTILINE)


@blueprint.after_request
def _never_stored(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.get("/livez")
def livez() -> Response:
    """Answer that this process answers."""
    return json_response({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """Answer 200 only while an engine makes progress, or would if it had work."""
    engine = services().engine
    engines = {str(row.engine): row.state for row in engine.engine_rows()}
    if engine.is_ready:
        return json_response({"status": "ok", "engines": engines})
    return json_response({"status": "loading", "engines": engines}, 503, {"Retry-After": "1"})


@blueprint.get("/health")
def health() -> Response:
    """Answer as readyz does, in the words of the document whose callers ask here."""
    profile = services().profiles.for_health
    if not services().engine.is_ready:
        return json_response(loading_body(profile), 503, {"Retry-After": "1"})
    engine = services().engine
    rate = services().keys.shared_rate
    rate_limit = f"{rate}/min" if rate else profile.rate_limit
    return json_response(health_body(profile, engine.card, engine.devices(), rate_limit))


@blueprint.get("/api/v1/metrics")
@blueprint.get("/v1/v1/metrics")  # how a page's proxy rewrites the address above
def metrics_report() -> Response:
    """Answer with the whole report."""
    return json_response(metrics_body(_read(), services().profiles.for_metrics))


@blueprint.get("/stats")
def stats() -> Response:
    """Answer with the report's counters and latencies."""
    return json_response(stats_body(_read()))


@blueprint.get("/ui/status.json")
def status() -> Response:
    """Answer the status page with what it shows."""
    asked = request.args.get("history", "0")
    if asked not in ("0", "1"):
        raise BadRequest("'history' must be 0 or 1.", param="history")
    return json_response(status_body(_read(), with_history=asked == "1"))


@blueprint.get("/metrics")
def metrics() -> Response:
    """Answer a Prometheus as it asks, anybody else as the profile says."""
    accepted = request.headers.get("Accept", "")
    wants_text = any(name in accepted for name in _TEXT_FORMATS)
    is_text = wants_text or services().profiles.for_metrics.metrics == "text"
    response = prometheus() if is_text else metrics_report()
    response.vary.add("Accept")
    return response


@blueprint.get("/metrics/prometheus")
def prometheus() -> Response:
    """Answer in Prometheus' text format, also to those who would rather have OpenMetrics: there
    the library writes vLLM's names with underscores for their colons.
    """
    text, content_type = _exporter().generate_metrics()
    # The library writes every number with a fraction; the document and shell scripts do not.
    return Response(_WHOLE_NUMBER.sub(r"\1 \2", text), content_type=content_type)


@blueprint.get("/version")
def version() -> Response:
    """Answer as vLLM does."""
    return json_response({"version": __version__})


@blueprint.get("/load")
def load() -> Response:
    """Answer as vLLM does: how many requests are under way."""
    total = _read().snapshot.total
    return json_response({"server_load": total.running + total.waiting})


@blueprint.get("/")
def root() -> Response:
    """Send a browser to the page; describe the service to anything else that asks."""
    profiles = services().profiles
    generate = profiles.of_interface("generate")
    if wants_page(request) and not (generate and profiles.is_single):
        response = redirect("ui/")
        response.vary.add("Accept")
        return Response(response.data, response.status_code, response.headers)
    if generate is None:
        raise NotFound()
    g.profile = generate
    return json_response(generate.description)


def _read() -> MetricsReading:
    shared = services()
    engines = shared.engine.engine_rows()
    return MetricsReading(
        settings=shared.settings,
        snapshot=take_snapshot(shared.metrics_store.memory, shared.metrics_store.profiles),
        engines=engines,
        now=time.time(),
        is_ready=shared.engine.is_ready,
        is_shared=shared.metrics_store.is_shared,
        gpus=read_gpus(engines),
    )


@cache
def _exporter() -> PrometheusMetrics:
    """Return an exporter without its own endpoint and timer, which stops when a stream begins."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(_read))
    return PrometheusMetrics.for_app_factory(path=None, export_defaults=False, registry=registry)
