"""Spans as a real collector gets them, and what happens when there is none that takes them."""

import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from qwenapi.observability.tracing import check_endpoint, traces_url
from tests.running_server import RunningServer, wait_for
from workers.errors import ConfigError

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "kanarienvogel-8802"
BODY = {"messages": [{"role": "user", "content": CANARY}], "model": "qwen-demo"}


class Collector:
    """Takes spans over OTLP/HTTP and keeps them, by the code of the library that sends them."""

    def __init__(self) -> None:
        service = pytest.importorskip(
            "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
            reason="the extra otel is not installed",
        )
        self.paths: set[str] = set()
        self.raw = b""
        self.spans: list = []
        kept = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                kept.paths.add(self.path)
                kept.raw += body
                for resource in service.ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        kept.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(10)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """Return a port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def facts_of(span) -> dict:
    values = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        values[item.key] = getattr(item.value, kind)
    return values


def ask(server: RunningServer, **fields) -> requests.Response:
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    address = f"{server.url}/v1/chat/completions"
    return requests.post(address, json=BODY | fields, headers=headers, timeout=60)


def test_each_request_is_one_span_of_its_callers_trace(collector, start_server):
    server = start_server("--stub", "--otel-endpoint", collector.url)
    assert ask(server, max_tokens=5).status_code == 200
    assert ask(server, max_tokens=5, stream=True).status_code == 200
    assert ask(server, max_tokens=0).status_code == 400
    assert server.get(f"/{CANARY}").status_code == 404
    assert server.get("/health").status_code == 200
    server.stop()
    whole, streamed, refused, lost = collector.spans
    assert collector.paths == {"/v1/traces"}
    for span in (whole, streamed):
        facts = facts_of(span)
        assert span.name == "chat qwen-demo"
        assert facts["gen_ai.operation.name"] == "chat"
        assert facts["gen_ai.request.model"] == facts["gen_ai.response.model"] == "qwen-demo"
        assert facts["gen_ai.usage.output_tokens"] == 5
        assert facts["gen_ai.usage.input_tokens"] > 5
        assert facts["http.response.status_code"] == 200
        seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert 0 < facts["gen_ai.response.time_to_first_chunk"] <= seconds < 60
        assert abs(span.end_time_unix_nano / 1e9 - time.time()) < 60
    for span in (whole, streamed, refused):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert not lost.parent_span_id and lost.trace_id != whole.trace_id
    assert facts_of(refused)["error.type"] == "invalid_request"
    assert "gen_ai.request.model" not in facts_of(refused)
    assert CANARY.encode() not in collector.raw


def test_a_caller_that_samples_nothing_is_not_traced(collector, start_server):
    server = start_server("--stub", "--otel-endpoint", collector.url)
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
    address = f"{server.url}/v1/chat/completions"
    unsampled = requests.post(address, json=BODY | {"max_tokens": 2}, headers=headers, timeout=60)
    assert unsampled.status_code == 200
    for broken in ("", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 4000):
        headers = {"traceparent": broken}
        assert requests.get(f"{server.url}/v1/models", headers=headers, timeout=60).ok
    server.stop()
    assert [span.name for span in collector.spans] == ["GET /v1/models"] * 4


def test_a_collector_that_never_answers_holds_up_neither_tokens_nor_the_stop(
    deaf_port, start_server
):
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    server = start_server(
        "--stub", "--stub-step-seconds", "0.01", "--otel-endpoint", f"http://127.0.0.1:{deaf_port}"
    )
    # For longer than a batch waits, so that the exporter hangs in the middle of the stream.
    body = BODY | {"max_tokens": 800, "stream": True}
    address = f"{server.url}/v1/chat/completions"
    assert ask(server, max_tokens=2).status_code == 200
    times = []
    with requests.post(address, json=body, stream=True, timeout=60) as answer:
        for _ in answer.iter_content(None):
            times.append(time.monotonic())
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert len(gaps) > 100 and statistics.median(gaps) < 0.1
    assert max(gaps) < 2, "the hub stood still while the exporter waited"
    wait_for(lambda: "traces are lost" in server.log)
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 15
    assert server.log.count("traces are lost") == 1 and "Traceback" not in server.log


def test_a_collector_that_is_down_is_told_of_once(start_server):
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = start_server("--stub", "--otel-endpoint", f"http://127.0.0.1:{port}")
    for _ in range(3):
        assert ask(server, max_tokens=2).status_code == 200
    wait_for(lambda: "traces are lost" in server.log)
    server.stop()
    assert server.log.count("traces are lost") == 1 and "Traceback" not in server.log


def test_without_an_endpoint_nothing_of_it_is_imported():
    code = (
        "import sys, qwenapi.app, qwenapi.serving.server;"
        "from qwenapi.observability.tracing import open_tracer;"
        "assert open_tracer('') is None;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x", "http://", "4318"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint):
    with pytest.raises(ConfigError, match="otel_endpoint"):
        check_endpoint(endpoint)


def test_an_address_alone_means_the_standard_path():
    assert traces_url("http://c:4318") == traces_url("http://c:4318/") == "http://c:4318/v1/traces"
    assert traces_url("http://c/own/path") == "http://c/own/path"
