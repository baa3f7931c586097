"""The operators' endpoints in every profile, asked of the application while no engine is up."""

import time

import pytest

from qwenapi import __version__
from qwenapi.app import create_app
from qwenapi.engines.client import EngineClient
from qwenapi.generation.tokenizers import Tokenizers
from qwenapi.metrics.store import MetricsStore
from qwenapi.request_context.services import Services
from qwenapi.settings.profile import Profiles
from qwenapi.settings.sources import load, load_profiles

PROFILES = ("openai", "coder", "qwen2", "guide", "browser", "news", "all")
WITH_JSON = ("news", "all")
REPORTS = ("/api/v1/metrics", "/v1/v1/metrics", "/stats", "/metrics", "/metrics/prometheus")
ENDPOINTS = (*REPORTS, "/version", "/load", "/livez")
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.fixture(params=PROFILES)
def client(request, tmp_path):
    flags = {"profile": request.param}
    settings = load(flags, {})
    profiles = Profiles(load_profiles(settings, flags, {}))
    metrics_store = MetricsStore.lease("", [profile.name for profile in profiles])
    engine = EngineClient(tmp_path, "test", lambda card: None)
    app = create_app(Services(settings, profiles, engine, Tokenizers(), metrics_store))
    client = app.test_client()
    client.profile, client.metrics_store = request.param, metrics_store
    return client


@pytest.mark.parametrize("path", ENDPOINTS)
def test_it_answers_though_no_engine_is_up_and_is_never_stored(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.get_data()


def test_readiness_is_another_matter(client):
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.get_json() == {"status": "loading", "engines": {}}
    assert client.get("/api/v1/metrics").get_json()["status"] == "unhealthy"


def test_metrics_are_json_where_the_news_profile_is_served_and_text_elsewhere(client):
    answer = client.get("/metrics", headers={"Accept": "*/*"})
    is_json = client.profile in WITH_JSON
    assert answer.mimetype == ("application/json" if is_json else "text/plain")
    if is_json:
        assert list(answer.get_json()) == list(client.get("/api/v1/metrics").get_json())
    assert answer.headers["Vary"] == "Accept"


@pytest.mark.parametrize("accept", [PROMETHEUS, "text/plain; version=0.0.4"])
def test_a_prometheus_gets_text_everywhere_with_vllms_colons(client, accept):
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert "\nvllm:request_success_total{" in answer.get_data(as_text=True)


def test_the_documents_gauges_are_printed_as_it_prints_them(client):
    lines = client.get("/metrics/prometheus").get_data(as_text=True).splitlines()
    assert lines[:3] == [
        "# HELP vllm_num_waiting_requests Number of requests waiting in queue",
        "# TYPE vllm_num_waiting_requests gauge",
        "vllm_num_waiting_requests 0",
    ]
    assert [line for line in lines[:12] if line.startswith("# TYPE")] == [
        f"# TYPE vllm_{name} gauge"
        for name in (
            "num_waiting_requests",
            "num_running_requests",
            "ttft_p95",
            "decoding_throughput_mean",
        )
    ]


def test_the_news_service_has_its_documented_name_and_the_others_ours(client):
    body = client.get("/api/v1/metrics").get_json()
    expected = "qwen-vllm" if client.profile in WITH_JSON else "qwenapi"
    assert (body["service"], body["version"]) == (expected, "1.0.0")


def test_version_and_load_have_vllms_shape(client):
    assert client.get("/version").get_json() == {"version": __version__}
    assert client.get("/load").get_json() == {"server_load": 0}
    for started in (True, False):
        entry = client.metrics_store.begin(client.metrics_store.profiles[0], time.monotonic())
        entry.accept(5)
        if started:
            entry.start()
    assert client.get("/load").get_json() == {"server_load": 2}


def test_every_report_is_of_the_same_numbers(client):
    entry = client.metrics_store.begin(client.metrics_store.profiles[-1], time.monotonic() - 0.3)
    entry.accept(5)
    entry.start()
    entry.tokens(0, 3, time.monotonic())
    entry.succeed("stop", 0)
    whole = client.get("/api/v1/metrics").get_json()
    stats = client.get("/stats").get_json()
    assert (
        stats["tokens"]
        == whole["tokens"]
        == {
            "total_input": 5,
            "total_output": 3,
            "avg_per_request": 3.0,
        }
    )
    assert stats["latency"] == whole["latency"]
    text = client.get("/metrics/prometheus").get_data(as_text=True)
    profile = client.metrics_store.profiles[-1]
    assert f'qwenapi_completion_tokens_total{{profile="{profile}"}} 3\n' in text
    assert f"vllm_ttft_p95 {whole['slo']['ttft']['p95']}\n" in text


def test_posting_is_refused_and_counted_nowhere(client):
    assert client.post("/metrics").status_code == 405
    assert client.get("/stats").get_json()["requests"]["total"] == 0
