"""One port for every document: by path, then by the model asked for."""

import pytest
import requests

from tests.running_server import content_of, sse_events

MESSAGES = [{"role": "user", "content": "写一个递归阶乘函数"}]
AWQ = "/home/modern/models/Qwen/Qwen2.5-Coder-7B-Instruct-AWQ"


@pytest.mark.parametrize(
    ("model", "answered", "tokens"),
    [
        (None, "qwen-news-classifier", 100),
        ("qwen-news-classifier", "qwen-news-classifier", 100),
        ("Qwen3-32B", "Qwen3-32B", 16),
    ],
)
def test_the_model_chooses_the_document(everything, model, answered, tokens):
    asked = {"messages": MESSAGES} | ({"model": model} if model else {})
    body = everything.post("/v1/chat/completions", asked).json()
    assert (body["model"], body["usage"]["completion_tokens"]) == (answered, tokens)


@pytest.mark.parametrize("model", ["MyCoder", AWQ])
@pytest.mark.parametrize("path", ["/v1", "/api", ""])
def test_the_browsers_two_names_and_three_addresses_are_one(everything, model, path):
    asked = {"model": model, "messages": MESSAGES, "stream": True, "max_tokens": 8}
    answer = everything.post(path + "/chat/completions", asked)
    events = sse_events(answer.content)
    assert events[-1] == "[DONE]" and events[0]["choices"][0]["delta"]["content"] == ""
    assert {event["model"] for event in events[:-1]} == {"MyCoder"}
    assert list(events[1]) == ["id", "object", "created", "model", "choices"]
    assert list(events[1]["choices"][0]) == ["index", "delta", "logprobs", "finish_reason"]


def test_each_documents_errors_keep_their_shape_on_the_shared_port(everything):
    guide = everything.post("/v1/chat/completions", {"model": "Qwen3-32B", "messages": 1})
    news = everything.post("/v1/chat/completions", {"messages": 1})
    openai = everything.post("/v1/chat/completions", {"model": "qwen-demo", "messages": 1})
    unknown = everything.post("/v1/chat/completions", {"model": "gpt", "messages": MESSAGES})
    generate = everything.post("/generate", {})
    assert (guide.status_code, news.status_code, openai.status_code) == (422, 400, 400)
    assert isinstance(news.json()["error"], str) and isinstance(guide.json()["error"], dict)
    assert unknown.status_code == 404 and "Qwen3-32B" in unknown.json()["error"]["message"]
    assert generate.status_code == 422 and isinstance(generate.json()["detail"], list)


def test_the_models_are_the_served_one_and_every_alias(everything):
    ids = [model["id"] for model in everything.get("/v1/models").json()["data"]]
    assert ids[0] == "qwen-demo"
    assert set(ids) == {"qwen-demo", "Qwen3-32B", "MyCoder", AWQ, "qwen-news-classifier"}


def test_a_browser_is_sent_to_the_page_and_a_script_gets_json(everything):
    page = requests.get(everything.url + "/", headers={"Accept": "text/html"}, timeout=10)
    assert page.url.endswith("/ui/") and "text/html" in page.headers["Content-Type"]
    assert everything.get("/").json()["name"] == "Qwen2-7B-Instruct API"


def test_health_is_the_fullest_documents_and_the_neutral_addresses_are_there_too(everything):
    body = everything.get("/health").json()
    assert body["status"] == "ok" and set(body) == {"status", "gpu", "limits"}
    assert everything.get("/livez").json() == {"status": "ok"}
    assert everything.get("/readyz").json()["status"] == "ok"


def test_what_came_before_a_failure_is_delivered_and_then_the_failure(failing_late):
    body = {"model": "qwen-demo", "messages": [{"role": "user", "content": "one two"}]}
    answer = failing_late.post("/v1/chat/completions", body | {"stream": True})
    *events, last = sse_events(answer.content)
    assert content_of(events) and "error" in last
    whole = failing_late.post("/v1/chat/completions", body)
    assert whole.status_code == 500


def test_a_failure_behind_the_end_of_an_answer_is_nobodys(failing_too_late):
    body = {"model": "qwen-demo", "messages": [{"role": "user", "content": "one two"}]}
    answer = failing_too_late.post("/v1/chat/completions", body)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2
