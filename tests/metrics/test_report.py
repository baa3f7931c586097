"""The report is document 004's, to the letter."""

import json
import random

import numpy as np
import pytest

from qwenapi.metrics.report import Gpu, metrics_body, stats_body
from qwenapi.metrics.snapshot import percentile
from qwenapi.settings.profile import Profile
from qwenapi.settings.table import Settings
from tests.documents.printed import only
from tests.metrics.readings import (
    counts,
    engine_row,
    reading,
    record,
    sample_reading,
    snapshot,
)

NEWS = Profile(name="news", settings=Settings(), service="qwen-vllm")
CLOCKS = ("timestamp", "uptime")


def shape(value):
    """Return a body with its numbers and strings replaced by their types."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value)


def test_the_documents_sample_comes_out_field_by_field():
    body = metrics_body(sample_reading(gpus={0: Gpu("NVIDIA GeForce RTX 3080", 0.5)}), NEWS)
    assert body["uptime"] == {"seconds": 117.3, "human": "0h 1m"}
    assert body["requests"] == {
        "waiting": 0,
        "running": 0,
        "peak_concurrent": 1,
        "total": 3,
        "successful": 3,
        "failed": 0,
        "success_rate_percent": 100.0,
        "error_rate_percent": 0.0,
        "requests_per_second": 0.026,
    }
    assert body["tokens"] == {"total_input": 27, "total_output": 43, "avg_per_request": 14.3}
    assert list(body["slo"]["ttft"].values())[:4] == [0.6978, 0.6143, 0.9588, 0.9588]
    assert list(body["slo"]["throughput"].values())[:3] == [3.41, 3.39, 3.11]
    assert list(body["latency"].values())[:6] == [4.6085, 4.0945, 6.2639, 6.2639, 3.467, 6.2639]
    assert list(body["latency_histogram"].values()) == [0, 0, 0, 0, 2, 1, 0]
    assert list(body["gpu"].values()) == ["NVIDIA GeForce RTX 3080", 7.64, 9.64, 2.0, 79.3]


def test_the_printed_body_and_ours_are_the_same_text():
    printed = json.loads(only("004", '"service": "qwen-vllm"').text)
    ours = metrics_body(sample_reading(gpus={0: Gpu("NVIDIA GeForce RTX 3080", 0.5)}), NEWS)
    assert shape(ours) == shape(printed)
    for body in (ours, printed):
        assert body.pop("timestamp")[10] == "T"
    assert json.dumps(ours) == json.dumps(printed)  # keys in order, numbers as printed


def test_before_the_first_request_every_number_is_a_number():
    empty = metrics_body(reading(snapshot()), NEWS)
    assert shape(empty) == shape(metrics_body(sample_reading(), NEWS))
    assert empty["requests"]["success_rate_percent"] == 100.0
    assert empty["requests"]["error_rate_percent"] == 0.0
    assert empty["slo"]["ttft"]["p95"] == empty["slo"]["throughput"]["decoding_mean"] == 0.0
    assert empty["gpu"] == {
        "name": "CPU",
        "allocated_gb": 0.0,
        "total_gb": 0.0,
        "free_gb": 0.0,
        "utilization_percent": 0.0,
    }


def test_failed_counts_those_who_left_and_says_so():
    done = counts(
        accepted=10, started=10, successful=5, failed=2, cancelled=1, failed__queue_full=2
    )
    body = metrics_body(reading(snapshot({"news": done})), NEWS)
    assert body["requests"]["failed"] == body["errors"]["total"] == 3
    assert body["errors"]["by_type"] == {"queue_full": 2, "cancelled": 1}
    assert body["requests"]["running"] == 2
    assert body["requests"]["error_rate_percent"] == 37.5
    assert body["requests"]["success_rate_percent"] == 62.5


def test_all_profiles_are_reported_together():
    each = {name: counts(accepted=2, prompt_tokens=5) for name in ("news", "coder")}
    body = metrics_body(reading(snapshot(each)), NEWS)
    assert body["requests"]["total"] == body["requests"]["waiting"] == 4
    assert body["tokens"]["total_input"] == 10


def test_a_service_that_is_not_ready_is_not_healthy():
    assert metrics_body(reading(snapshot(), is_ready=False), NEWS)["status"] == "unhealthy"


def test_alerts_are_objects_the_oldest_first():
    up = {"kv_cache_full": 1_766_500_000.5, "error_rate": 1_766_400_000.0}
    body = metrics_body(reading(snapshot(alerts=up)), NEWS)
    assert body["alerts_count"] == 2
    assert [alert["name"] for alert in body["alerts"]] == ["error_rate", "kv_cache_full"]
    assert list(body["alerts"][0]) == ["name", "level", "message", "since"]
    assert "5%" in body["alerts"][0]["message"] and "95%" in body["alerts"][1]["message"]
    assert body["alerts"][0]["since"][10] == "T"


def test_the_memory_of_several_gpus_is_added_up_and_each_name_said_once():
    rows = [engine_row(i, "cuda:0", device_allocated=2**30, device_total=2**32) for i in range(3)]
    gpus = {0: Gpu("A", 0.1), 1: Gpu("A", 0.2), 2: Gpu("B", 0.3)}
    gpu = metrics_body(reading(snapshot(), rows, gpus=gpus), NEWS)["gpu"]
    assert list(gpu.values()) == ["A, B", 3.0, 12.0, 9.0, 25.0]
    assert metrics_body(reading(snapshot(), rows), NEWS)["gpu"]["name"] == "GPU"


def test_stats_are_three_parts_of_the_report():
    taken = sample_reading()
    whole = metrics_body(taken, NEWS)
    assert stats_body(taken) == {key: whole[key] for key in ("requests", "tokens", "latency")}


def test_an_answer_of_one_token_has_no_decoding_rate():
    body = metrics_body(reading(snapshot(records=[record(0.5, 0.5, 1)])), NEWS)
    assert body["slo"]["throughput"]["decoding_mean"] == 0.0
    assert body["slo"]["throughput"]["total"] == 2.0


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_percentiles_are_numpys_higher_ones(share):
    """Our index is int(n × p), numpy's ceil((n − 1) × p): the same wherever the fraction of n × p
    is at most p, which for p = 1 − 1/k is always.
    """
    drawn = random.Random(7)
    for size in (*range(1, 130), 999, 1023, 1024):
        values = sorted(drawn.expovariate(1.0) for _ in range(size))
        assert percentile(values, share) == np.quantile(values, share, method="higher")
    assert percentile([1.0, 2.0], 0.25) != np.quantile([1.0, 2.0], 0.25, method="higher")
