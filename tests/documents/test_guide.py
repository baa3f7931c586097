"""Document 002: OpenAI's paths with defaults of its own, 422 beside 400, pages of other origins."""

import threading
import time

import openai
import pytest
import requests

MESSAGES = [{"role": "user", "content": "什么是机器学习？"}]
ASK = {"model": "Qwen3-32B", "messages": MESSAGES}


def test_the_defaults_are_the_documents(guide):
    answer = guide.post("/v1/chat/completions", ASK)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 16
    assert answer.json()["model"] == "Qwen3-32B"


def test_the_openai_library_chats_and_streams_without_asking_for_usage(guide):
    with openai.OpenAI(base_url=guide.url + "/v1", api_key="dummy-key") as client:
        whole = client.chat.completions.create(**ASK, max_tokens=30, temperature=0.7, seed=1)
        assert whole.choices[0].message.content
        with client.chat.completions.create(**ASK, max_tokens=30, seed=1, stream=True) as stream:
            # the document's client looks at choices[0] of every chunk
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_the_model_does_not_think_unless_it_is_asked_to(guide):
    # the stub repeats its prompt, in which the template closes the thought before the answer
    fields = {"max_tokens": 60, "seed": 0}
    asked = guide.post("/v1/chat/completions", ASK | fields).json()
    assert "</think>" in asked["choices"][0]["message"]["content"]
    fields["chat_template_kwargs"] = {"enable_thinking": True}
    asked = guide.post("/v1/chat/completions", ASK | fields).json()
    assert "</think>" not in asked["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": None}, 422, "model"),
        ({"messages": None}, 422, "messages"),
        ({"messages": "hi"}, 422, "messages"),
        ({"temperature": "warm"}, 422, "temperature"),
        ({"temperature": 2.5}, 400, "temperature"),
        ({"top_p": -0.1}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"model": "gpt-4"}, 404, "model"),
    ],
)
def test_a_malformed_request_is_told_from_a_wrong_value(guide, fields, status, param):
    answer = guide.post("/v1/chat/completions", ASK | fields)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_a_page_of_another_origin_may_call_and_read(guide):
    headers = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    url = guide.url + "/v1/chat/completions"
    asked = requests.options(url, headers=headers, timeout=10)
    assert asked.status_code == 204
    assert asked.headers["Access-Control-Allow-Origin"] == "http://a.example"
    assert "Content-Type" in asked.headers["Access-Control-Allow-Headers"]
    answer = requests.post(url, json=ASK, headers={"Origin": "http://a.example"}, timeout=60)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_other_profiles_allow_no_other_origin(news):
    headers = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    asked = requests.options(news.url + "/v1/chat/completions", headers=headers, timeout=10)
    assert "Access-Control-Allow-Origin" not in asked.headers


def test_the_load_loop_of_five_threads_never_fails(guide):
    statuses, end = [], time.monotonic() + 3

    def work():
        while time.monotonic() < end:
            answer = guide.post("/v1/chat/completions", ASK | {"max_tokens": 10})
            statuses.append(answer.status_code)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200} and len(statuses) > 50
