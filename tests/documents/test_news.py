"""Document 004: no model field, values that are cut, flat errors, three run and ten wait."""

import pytest

from tests.e2e.test_http_on_stub import answers_of, raw_request
from tests.running_server import wait_for

MESSAGES = [{"role": "user", "content": "请分类这条新闻：央行宣布降息25个基点"}]


def test_a_chat_has_the_documented_keys_and_no_others(news):
    answer = news.post("/v1/chat/completions", {"messages": MESSAGES})
    body = answer.json()
    assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
    assert body["model"] == "qwen-news-classifier" and body["id"].startswith("chatcmpl-")
    assert list(body["choices"][0]) == ["index", "message", "finish_reason"]
    assert list(body["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens"]
    assert body["usage"]["completion_tokens"] == 100
    assert "X-Clamped" not in answer.headers


def test_a_completion_has_the_documented_keys_and_no_others(news):
    asked = {"prompt": "请分类：苹果发布新款iPhone\n类别：", "max_tokens": 5, "temperature": 0.3}
    body = news.post("/v1/completions", asked).json()
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert list(body["choices"][0]) == ["text", "index", "finish_reason"]
    assert list(body["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens"]


@pytest.mark.parametrize(
    ("fields", "clamped", "tokens"),
    [
        ({"max_tokens": 600}, "max_tokens=512", 512),
        ({"max_tokens": 512}, None, 512),
        ({"max_tokens": 3, "temperature": 1.5}, "temperature=1.0", 3),
        ({"max_tokens": 3, "temperature": -1}, "temperature=0.0", 3),
    ],
)
def test_values_beyond_the_documents_are_cut_and_said(news, fields, clamped, tokens):
    answer = news.post("/v1/chat/completions", {"messages": MESSAGES} | fields)
    assert answer.status_code == 200
    assert answer.headers.get("X-Clamped") == clamped
    assert answer.json()["usage"]["completion_tokens"] == tokens


def test_errors_are_one_string(news):
    for body, status in (({"messages": 5}, 400), ({"messages": MESSAGES, "n": "x"}, 400)):
        answer = news.post("/v1/chat/completions", body)
        assert answer.status_code == status
        assert list(answer.json()) == ["error"] and isinstance(answer.json()["error"], str)


def test_health_is_the_documents(news):
    assert news.get("/health").json() == {
        "status": "ok",
        "gpu": {"allocated_gb": 0.0, "reserved_gb": 0.0, "free_gb": 0.0},
        "limits": {"max_concurrent_requests": 3, "max_queue_size": 10, "rate_limit": "无限制"},
    }


def test_the_metrics_are_the_documents_and_json_by_default(news):
    body = news.get("/api/v1/metrics").json()
    assert list(body) == [
        "timestamp", "service", "version", "status", "uptime", "requests", "tokens", "slo",
        "latency", "latency_histogram", "gpu", "errors", "alerts", "alerts_count",
    ]  # fmt: skip
    assert (body["service"], body["version"], body["status"]) == ("qwen-vllm", "1.0.0", "healthy")
    assert list(news.get("/metrics").json()) == list(body)
    assert list(news.get("/stats").json()) == ["requests", "tokens", "latency"]
    assert news.get("/metrics/prometheus").text.startswith("# HELP vllm_num_waiting_requests ")


def test_a_request_that_is_cut_or_refused_is_counted_as_what_became_of_it(news):
    before = news.get("/api/v1/metrics").json()
    assert news.post("/v1/chat/completions", {"messages": 5}).status_code == 400
    asked = {"messages": MESSAGES, "max_tokens": 9}
    answer = news.post("/v1/chat/completions", asked).json()
    after = news.get("/api/v1/metrics").json()

    def grown(part, key):
        return after[part][key] - before[part][key]

    assert grown("requests", "total") == grown("requests", "successful") == 1
    assert grown("tokens", "total_input") == answer["usage"]["prompt_tokens"]
    assert grown("tokens", "total_output") == 9
    assert after["errors"] == before["errors"]


def test_three_run_ten_wait_and_the_next_is_told_the_queues_figures(news):
    sockets = [raw_request(news, {"messages": MESSAGES, "max_tokens": 400}) for _ in range(13)]
    wait_for(lambda: news.row()["running"] == 3 and news.row()["waiting"] == 10)
    refused = news.post("/v1/chat/completions", {"messages": MESSAGES})
    assert refused.status_code == 503
    assert refused.json() == {
        "error": "服务繁忙，请稍后重试",
        "queue_size": 10,
        "max_queue_size": 10,
    }
    assert int(refused.headers["Retry-After"]) >= 1
    seen = news.get("/api/v1/metrics").json()
    assert (seen["requests"]["running"], seen["requests"]["waiting"]) == (3, 10)
    assert seen["errors"]["by_type"]["queue_full"] >= 1
    assert all(head.startswith("HTTP/1.1 200") for _, head, _ in answers_of(sockets))
