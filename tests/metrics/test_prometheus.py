"""What Prometheus reads: valid text, stable names, and the numbers of the JSON report."""

import shutil
import subprocess
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

from qwenapi.metrics.prometheus import MetricsCollector
from qwenapi.metrics.report import Gpu
from tests.metrics.readings import counts, engine_row, reading, sample_reading, snapshot

COUNTERS = {
    "qwenapi_requests_accepted",
    "qwenapi_requests",
    "qwenapi_failures",
    "qwenapi_prompt_tokens",
    "qwenapi_cached_prompt_tokens",
    "qwenapi_completion_tokens",
    "qwenapi_engine_prompt_tokens",
    "qwenapi_engine_cached_tokens",
    "qwenapi_engine_generated_tokens",
    "qwenapi_engine_preemptions",
    "qwenapi_engine_drafted_tokens",
    "qwenapi_engine_accepted_tokens",
    "qwenapi_engine_nonfinite_logits",
    "qwenapi_engine_encoded_images",
    "qwenapi_engine_cached_images",
    "qwenapi_engine_restarts",
    "qwenapi_replays",
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:num_preemptions",
    "vllm:spec_decode_num_draft_tokens",
    "vllm:spec_decode_num_accepted_tokens",
    "vllm:request_success",
}
GAUGES = {
    "vllm_num_waiting_requests",
    "vllm_num_running_requests",
    "vllm_ttft_p95",
    "vllm_decoding_throughput_mean",
    "qwenapi_requests_running",
    "qwenapi_requests_waiting",
    "qwenapi_engine_up",
    "qwenapi_kv_cache_usage_ratio",
    "qwenapi_engine_running_sequences",
    "qwenapi_engine_waiting_sequences",
    "qwenapi_device_memory_allocated_bytes",
    "qwenapi_device_memory_total_bytes",
    "qwenapi_device_utilization_ratio",
    "qwenapi_ready",
    "qwenapi_http_processes",
    "qwenapi_ledger_shared",
    "qwenapi_alert",
    "qwenapi_max_waiting_requests",
    "qwenapi_build_info",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
}
HISTOGRAMS = {
    "qwenapi_time_to_first_token_seconds",
    "qwenapi_inter_token_seconds",
    "qwenapi_request_seconds",
    "qwenapi_queue_seconds",
    "qwenapi_prefill_seconds",
    "qwenapi_decode_seconds",
    "qwenapi_request_prompt_tokens",
    "qwenapi_request_completion_tokens",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
}


def text_of(taken):
    registry = CollectorRegistry()
    registry.register(MetricsCollector(lambda: taken))
    return generate_latest(registry).decode()


def families(taken):
    return {family.name: family for family in parse(text_of(taken))}


def value(found, family, **labels):
    """Return the value of the one sample with these labels."""
    (sample,) = [s for s in found[family].samples if labels.items() <= s.labels.items()]
    return sample.value


@pytest.fixture(scope="module")
def sample():
    return sample_reading(gpus={0: Gpu("NVIDIA GeForce RTX 3080", 0.5)})


def test_the_names_are_the_ones_dashboards_and_rules_are_built_on(sample):
    kinds = {name: family.type for name, family in families(sample).items()}
    assert kinds == (
        dict.fromkeys(COUNTERS, "counter")
        | dict.fromkeys(GAUGES, "gauge")
        | dict.fromkeys(HISTOGRAMS, "histogram")
    )


def test_the_documents_four_gauges_come_first_with_its_words(sample):
    assert text_of(sample).splitlines()[:12] == [
        "# HELP vllm_num_waiting_requests Number of requests waiting in queue",
        "# TYPE vllm_num_waiting_requests gauge",
        "vllm_num_waiting_requests 0.0",
        "# HELP vllm_num_running_requests Number of requests currently running",
        "# TYPE vllm_num_running_requests gauge",
        "vllm_num_running_requests 0.0",
        "# HELP vllm_ttft_p95 P95 time to first token in seconds",
        "# TYPE vllm_ttft_p95 gauge",
        "vllm_ttft_p95 0.9588",
        "# HELP vllm_decoding_throughput_mean Mean decoding throughput in tokens/sec",
        "# TYPE vllm_decoding_throughput_mean gauge",
        "vllm_decoding_throughput_mean 3.41",
    ]


def test_every_profile_and_every_ending_has_its_sample():
    done = counts(accepted=9, started=8, successful=4, failed=2, cancelled=1, failed__queue_full=2)
    found = families(reading(snapshot({"news": done, "coder": counts()})))
    endings = {"successful": 4, "failed": 2, "cancelled": 1}
    for outcome, count in endings.items():
        assert value(found, "qwenapi_requests", profile="news", outcome=outcome) == count
        assert value(found, "qwenapi_requests", profile="coder", outcome=outcome) == 0
    assert value(found, "qwenapi_failures", profile="news", type="queue_full") == 2
    assert value(found, "qwenapi_failures", profile="news", type="worker_lost") == 0
    assert value(found, "qwenapi_requests_waiting", profile="news") == 1
    assert value(found, "qwenapi_requests_running", profile="news") == 1


def test_histograms_are_cumulative_and_end_at_their_count(sample):
    family = families(sample)["qwenapi_request_seconds"]
    buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == 3
    upto = {s.labels["le"]: s.value for s in family.samples if "le" in s.labels}
    assert (upto["2.5"], upto["5.0"], upto["10.0"], upto["+Inf"]) == (0, 2, 3, 3)
    sums = {s.name.rpartition("_")[2]: s.value for s in family.samples if "le" not in s.labels}
    assert sums == {"count": 3, "sum": pytest.approx(13.8254, abs=1e-3)}


def test_an_engine_of_a_cluster_says_its_node_and_others_have_none():
    rows = [engine_row(0), replace(engine_row(1), node="a")]
    family = families(reading(snapshot(), rows))["qwenapi_engine_node_info"]
    assert [(s.labels, s.value) for s in family.samples] == [({"engine": "1", "node": "a"}, 1)]


def test_each_engine_has_its_row_also_under_vllms_names():
    rows = [
        engine_row(0, running=2, prompt_tokens=50, cached_tokens=8, starts=1),
        engine_row(1, state="down", generated_tokens=70, starts=4),
    ]
    taken = reading(snapshot(), rows)
    found, model = families(taken), taken.settings.served_names[0]
    assert value(found, "qwenapi_engine_up", engine="0") == 1
    assert value(found, "qwenapi_engine_up", engine="1") == 0
    assert value(found, "qwenapi_engine_restarts", engine="1") == 3
    assert value(found, "vllm:num_requests_running", engine="0", model_name=model) == 2
    assert value(found, "vllm:prefix_cache_queries", engine="0", model_name=model) == 50
    assert value(found, "vllm:prefix_cache_hits", engine="0", model_name=model) == 8
    assert value(found, "vllm:generation_tokens", engine="1", model_name=model) == 70
    assert "qwenapi_device_utilization_ratio" not in found


def test_only_engines_of_hybrid_models_have_state_slots():
    slots = {"total_state_slots": 20, "free_state_slots": 13}
    hybrid = engine_row(1, **slots, state_snapshots=6, state_snapshot_hits=9)
    found = families(reading(snapshot(), [engine_row(0), hybrid]))
    for name, expected in (("slots", 20), ("slots_used", 7), ("snapshots", 6)):
        family = found[f"qwenapi_engine_state_{name}"]
        assert family.type == "gauge"
        assert [(s.labels, s.value) for s in family.samples] == [({"engine": "1"}, expected)]
    assert value(found, "qwenapi_engine_state_snapshot_hits", engine="1") == 9
    assert found["qwenapi_engine_state_snapshot_hits"].type == "counter"


def test_an_alert_that_is_up_is_one_and_the_others_are_nought():
    found = families(reading(snapshot(alerts={"kv_cache_full": 1.0}), is_ready=False))
    assert value(found, "qwenapi_alert", name="kv_cache_full") == 1
    assert value(found, "qwenapi_alert", name="error_rate") == 0
    assert value(found, "qwenapi_ready") == 0


def test_without_an_engine_there_is_still_something_to_read():
    found = families(reading(snapshot(), is_ready=False))
    assert found["qwenapi_engine_up"].samples == []
    assert value(found, "vllm_num_running_requests") == 0


def test_promtool_finds_nothing_but_the_colons_of_vllms_names(sample):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text_of(sample), capture_output=True, text=True
    )
    said = (done.stdout + done.stderr).splitlines()
    other = [line for line in said if not (line.startswith("vllm:") and "contain ':'" in line)]
    assert not other
    assert len(said) == sum(":" in name for name in COUNTERS | GAUGES | HISTOGRAMS)
