"""OpenTelemetry traces: one span for each request, in the words of the GenAI conventions.

A span is made when its request has ended, of what the request's log line says; so it holds no
content either, and nothing is traced while tokens flow. Spans are sent by a greenlet of their own;
a collector that is down or slow loses spans, of a full queue the oldest, and delays no request.
Without an endpoint nothing of OpenTelemetry is imported; it comes with the extra `otel`.
"""

import atexit
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qwenapi import __version__
from workers.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Tracer as OtelTracer

    from qwenapi.observability.logs import RequestLog

log = logging.getLogger(__name__)

EXPORTER_PACKAGE = "opentelemetry-exporter-otlp-proto-http"
# What a collector gets to take a batch, and at a stop to take what is left.
EXPORT_SECONDS = 3.0
FLUSH_SECONDS = 2.0
TRACES_PATH = "/v1/traces"
NANO = 1_000_000_000
_CONVENTIONS = {
    "request_id": "qwenapi.request_id",
    "profile": "qwenapi.settings.profile",
    "ending": "qwenapi.ending",
    "queue": "qwenapi.time_in_queue",
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "ttft": "gen_ai.response.time_to_first_chunk",
    "code": "error.type",
}


class Tracer:
    """Makes and sends the spans of one process."""

    def __init__(self, otel: "OtelTracer") -> None:
        self._otel = otel

    def record(self, line: "RequestLog", traceparent: str, model: str) -> None:
        """Send the span of a request that has just ended; `traceparent` is its caller's header."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end = time.time_ns()
        facts = line.facts
        operation = _operation(facts)
        span = self._otel.start_span(
            f"{operation} {model}" if operation else f"{facts['method']} {facts['route']}",
            context=TraceContextTextMapPropagator().extract({"traceparent": traceparent}),
            kind=SpanKind.SERVER,
            attributes=_attributes(facts, operation, model),
            start_time=end - int(line.elapsed * NANO),
        )
        if facts["status"] >= 500 or facts.get("ending") == "failed":
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR)
        span.end(end_time=end)


class Exporter:
    """A span exporter that says when its collector takes no spans, and when it does again."""

    def __init__(self, inner: "SpanExporter") -> None:
        self._inner = inner
        self._is_losing = False

    def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
        result = self._inner.export(spans)
        is_losing = result.name != "SUCCESS"
        if is_losing and not self._is_losing:
            log.warning("traces are lost: the collector of otel_endpoint does not take them")
        elif self._is_losing and not is_losing:
            log.info("traces are sent again")
        self._is_losing = is_losing
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


def open_tracer(endpoint: str) -> Tracer | None:
    """Return what sends spans to a collector, None for no endpoint.

    Call it in the process that serves, after gevent's patches: its thread is then a greenlet.
    """
    if not endpoint:
        return None
    check_endpoint(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    names = {"service.name": "qwenapi", "service.version": __version__}
    provider = TracerProvider(resource=Resource.create(names), shutdown_on_exit=False)
    exporter: Any = Exporter(OTLPSpanExporter(traces_url(endpoint), timeout=EXPORT_SECONDS))
    processor = BatchSpanProcessor(exporter)
    provider.add_span_processor(processor)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # Exporter says it once
    atexit.register(_flush, processor, exporter)
    return Tracer(provider.get_tracer("qwenapi", __version__))


def check_endpoint(endpoint: str) -> None:
    """Raise ConfigError if spans cannot be sent to an endpoint, whoever listens there."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"otel_endpoint = {endpoint!r} is no http:// or https:// address;"
            " name a collector's, such as http://127.0.0.1:4318"
        )
    try:
        version(EXPORTER_PACKAGE)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"otel_endpoint is set, but {EXPORTER_PACKAGE} is not installed;"
            " install it with: pip install 'qwenapi[otel]', or leave the setting out"
        ) from error


def traces_url(endpoint: str) -> str:
    """Return where a collector takes spans: its address alone means the standard path."""
    parts = urlsplit(endpoint)
    return endpoint if parts.path.strip("/") else parts._replace(path=TRACES_PATH).geturl()


def _flush(processor: Any, exporter: Exporter) -> None:
    """Send what waits, but let no dead collector hold up a stop."""
    limit = threading.Timer(FLUSH_SECONDS, exporter.shutdown)
    limit.daemon = True
    limit.start()
    processor.shutdown()
    limit.cancel()


def _operation(facts: Mapping[str, Any]) -> str:
    """Return what the conventions call the request, empty for one that asked no model."""
    if "prompt_tokens" not in facts:
        return ""
    return "text_completion" if facts["route"].endswith("/v1/completions") else "chat"


def _attributes(facts: Mapping[str, Any], operation: str, model: str) -> dict[str, Any]:
    attributes = {
        name: facts[fact] for fact, name in _CONVENTIONS.items() if facts.get(fact) is not None
    }
    if operation:
        attributes |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "qwenapi",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
        }
    return attributes
