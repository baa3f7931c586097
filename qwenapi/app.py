"""The factory of the Flask application: blueprints, request ids, error handling, request log."""

import logging
import re
import uuid

from flask import Blueprint, Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from qwenapi import openapi, web
from qwenapi.api import anthropic, batches, coder, generate, openai, ops, responses
from qwenapi.engines.mailbox import Cancelled
from qwenapi.errors import (
    DIALECTS,
    ApiError,
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServerDraining,
)
from qwenapi.http.addresses import CleanAddresses
from qwenapi.http.responses import ignored_header, json_response
from qwenapi.observability.logs import RequestLog
from qwenapi.request_context import auth, cors
from qwenapi.request_context.current_request import count_failure, current_profile
from qwenapi.request_context.services import EXTENSION, Services, services
from qwenapi.settings.profile import Interface

log = logging.getLogger(__name__)

# nginx's code for a client that left before its answer; only the log reads it.
CLIENT_CLOSED_REQUEST = 499
# When a caller may find the next start, or another server behind the same address.
DRAINING_RETRY_SECONDS = 5
INTERFACES: dict[Interface, tuple[Blueprint, ...]] = {
    "openai": (openai.blueprint, responses.blueprint),
    "coder": (coder.blueprint,),
    "generate": (generate.blueprint,),
    "anthropic": (anthropic.blueprint,),
}
WORKING = {blueprint.name for blueprints in INTERFACES.values() for blueprint in blueprints}
QUIET = (ops.blueprint.name, openapi.blueprint.name, web.blueprint.name)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HTTP_ERRORS: dict[int | None, type[ApiError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    413: PayloadTooLarge,
}


def create_app(services_: Services) -> Flask:
    """Return the application that serves the profiles' interfaces through their engines."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # an address is right or unknown, never redirected
    app.wsgi_app = CleanAddresses(app.wsgi_app)  # type: ignore[method-assign]
    app.config["MAX_CONTENT_LENGTH"] = services_.settings.max_body_bytes
    app.extensions[EXTENSION] = services_
    app.before_request(_begin)
    app.after_request(_end)
    app.register_error_handler(ApiError, _on_api_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Cancelled, _on_cancelled)
    app.register_error_handler(Exception, _on_exception)
    cors.register(app)
    auth.register(app)  # a preflight has no key
    app.before_request(_refuse_late)
    for interface, blueprints in INTERFACES.items():
        for blueprint in blueprints if services_.profiles.of_interface(interface) else ():
            app.register_blueprint(blueprint)
    if services_.profiles.of_interface("openai"):
        app.register_blueprint(batches.blueprint)
    app.register_blueprint(ops.blueprint)
    app.register_blueprint(openapi.blueprint)
    app.register_blueprint(web.blueprint)
    return app


def _begin() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    route = request.url_rule.rule if request.url_rule else "none"
    # Probes come every few seconds and say nothing; the chat page's files say no more.
    g.is_quiet = request.blueprint in QUIET
    is_logged = services().settings.log_requests and not g.is_quiet
    g.log = RequestLog(is_logged, g.request_id, request.method, route)


def _refuse_late() -> None:
    """Take no more work while the server drains; reports and probes are answered to the end."""
    is_work = request.method == "POST" and request.blueprint in WORKING
    if is_work and services().engine.is_refusing:
        raise ServerDraining(retry_after=DRAINING_RETRY_SECONDS)


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    response.headers.update(ignored_header(g.get("ignored", ())))
    line, status, metrics = g.log, response.status_code, g.get("request_metrics")
    line.add(profile=current_profile().name)
    tracer = None if g.is_quiet else services().tracer
    parent, model = request.headers.get("traceparent", ""), current_profile().canonical

    def close() -> None:
        if metrics is not None:
            line.add(**metrics.facts)
        line.write(status)
        if tracer is not None:
            tracer.record(line, parent, model)

    # Closed when the last byte is out or the caller has gone: only then is a stream's line
    # complete.
    response.call_on_close(close)
    return response


def _on_api_error(error: ApiError) -> Response:
    profile = current_profile()
    rendered = DIALECTS[profile.dialect](error, profile.wording(g.request_id))
    # A caller's mistake is no error of ours, and nobody's who searches the log for errors.
    g.log.add(code=error.code or error.type.removesuffix("_error"))
    if error.status >= 500 and request.method == "POST" and request.blueprint in WORKING:
        count_failure(error)
    return json_response(rendered.body, rendered.status, rendered.headers)


def _on_http_error(error: HTTPException) -> Response:
    known = _HTTP_ERRORS.get(
        error.code, BadRequest if (error.code or 500) < 500 else InternalError
    )()
    if error.code == 405 and (allowed := getattr(error, "valid_methods", None)):
        known.extra_headers["Allow"] = ", ".join(sorted(allowed))
    return _on_api_error(known)


def _on_cancelled(error: Cancelled) -> Response:
    return Response(status=CLIENT_CLOSED_REQUEST)


def _on_exception(error: Exception) -> Response:
    # The words of an exception are for the log: they may hold paths, addresses or a caller's text.
    log.exception("request %s failed", g.request_id)
    return _on_api_error(InternalError())
