"""Every answer the documents name, success and failure, byte for byte (see golden.py)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import requests

from tests.documents.failing_engine import http_half
from tests.documents.golden import FOLDER, check
from tests.e2e.test_http_on_stub import raw_request
from tests.running_server import wait_for

JSON = "application/json"
STREAM = "text/event-stream; charset=utf-8"
CODE, CODE_STREAM = "/v1/code/generate", "/v1/code/chat_stream"
CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
PROMPT = {"prompt": "写一个函数"}
SHORT = {"prompt": "写一个函数", "max_length": 8, "num_return_sequences": 2}
ASK = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 4, "seed": 1}
GUIDE, PAGE = ASK | {"model": "Qwen3-32B"}, ASK | {"model": "MyCoder"}
NOBODY = "00000000-0000-4000-8000-000000000000"
TOO_LONG = "x " * 9000
WAIT = {"Retry-After": "1"}


@dataclass(frozen=True)
class Call:
    """A call and its answer: the body on file, status, type and further headers here.

    `server` is a fixture; without `sent`, what `requests` is to send, it is a GET.
    """

    file: str
    server: str
    path: str
    sent: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def form(**fields):
    return {"data": fields}


def body(fields, **more):
    return {"json": fields | more}


NO_JSON = {"data": b"{", "headers": {"Content-Type": JSON}}


CALLS = [
    Call("000-generate.json", "coder", CODE, form(**PROMPT)),
    Call("000-missing.json", "coder", CODE, form(other="x"), 422),
    Call("000-too-long.json", "coder", CODE, form(prompt=TOO_LONG), 422),
    Call("000-multipart.json", "coder", CODE, {"files": {"prompt": (None, "x")}}, 415),
    Call("000-stream-first.txt", "coder", CODE_STREAM, form(**PROMPT), type=STREAM),
    Call(
        "000-stream-unknown.json",
        "coder",
        CODE_STREAM,
        form(**PROMPT, conversation_id=NOBODY),
        404,
    ),
    Call("000-conversation-unknown.json", "coder", f"/v1/code/conversations/{NOBODY}", status=404),
    Call("000-failed.json", "failing", CODE, form(**PROMPT), 500),
    Call("000-loading.json", "coder_loading", CODE, form(**PROMPT), 503, headers=WAIT),
    Call("000-loading.json", "coder_loading", CODE_STREAM, form(**PROMPT), 503, headers=WAIT),
    Call("001-root.json", "generate", "/"),
    Call("001-health.json", "generate", "/health"),
    Call("001-generate.json", "generate", "/generate", body(SHORT)),
    Call("001-json.json", "generate", "/generate", NO_JSON, 422),
    Call("001-missing.json", "generate", "/generate", body({"max_length": 8}), 422),
    Call("001-type.json", "generate", "/generate", body(PROMPT, temperature="hot"), 422),
    Call("001-value.json", "generate", "/generate", body(PROMPT, max_length=0), 422),
    Call("001-too-long.json", "generate", "/generate", body({"prompt": TOO_LONG}), 422),
    Call("001-failed.json", "failing", "/generate", body(SHORT), 500),
    Call("001-loading.json", "qwen2_loading", "/health", status=503, headers=WAIT),
    Call("001-loading.json", "qwen2_loading", "/generate", body(SHORT), 503, headers=WAIT),
    Call("002-chat.json", "guide", CHAT, body(GUIDE)),
    Call("002-stream.txt", "guide", CHAT, body(GUIDE, stream=True), type=STREAM),
    Call(
        "002-stream-usage.txt",
        "guide",
        CHAT,
        body(GUIDE, stream=True, stream_options={"include_usage": True}),
        type=STREAM,
    ),
    Call("002-models.json", "guide", MODELS),
    Call("002-health.json", "guide", "/health"),
    Call("002-json.json", "guide", CHAT, NO_JSON, 422),
    Call("002-no-model.json", "guide", CHAT, body(ASK), 422),
    Call("002-type.json", "guide", CHAT, body(GUIDE, messages="hi"), 422),
    Call("002-value.json", "guide", CHAT, body(GUIDE, temperature=2.5), 400),
    Call(
        "002-too-long.json",
        "guide",
        CHAT,
        body(GUIDE, messages=[{"role": "user", "content": TOO_LONG}]),
        400,
    ),
    Call("002-other-model.json", "guide", CHAT, body(GUIDE, model="gpt-4"), 404),
    Call("002-failed.json", "failing", CHAT, body(GUIDE), 500),
    Call("002-stream-failed.txt", "failing", CHAT, body(GUIDE, stream=True), type=STREAM),
    Call("002-loading.json", "guide_loading", CHAT, body(GUIDE), 503, headers=WAIT),
    Call("002-health-loading.json", "guide_loading", "/health", status=503, headers=WAIT),
    Call("003-stream.txt", "everything", CHAT, body(PAGE, stream=True), type=STREAM),
    Call(
        "003-stream.txt",
        "everything",
        "/api/chat/completions",
        body(PAGE, stream=True),
        type=STREAM,
    ),
    Call("003-chat.json", "everything", CHAT, body(PAGE)),
    Call("003-failed.json", "failing", CHAT, body(PAGE), 500),
    Call("004-chat.json", "news", CHAT, body(ASK)),
    Call("004-completion.json", "news", COMPLETIONS, body(PROMPT, max_tokens=4, seed=1)),
    Call("004-models.json", "news", MODELS),
    Call("004-health.json", "news", "/health"),
    Call(
        "004-clamped.json",
        "news",
        CHAT,
        body(ASK, max_tokens=600, temperature=1.5),
        headers={"X-Clamped": "temperature=1.0, max_tokens=512"},
    ),
    Call("004-json.json", "news", CHAT, NO_JSON, 400),
    Call("004-type.json", "news", CHAT, body({"messages": "hi"}), 400),
    Call("004-other-model.json", "news", CHAT, body(ASK, model="gpt-4"), 404),
    Call("004-full.json", "busy_news", CHAT, body(ASK), 503),
    Call("004-failed.json", "failing", CHAT, body(ASK), 500),
    Call("004-loading.json", "news_loading", CHAT, body(ASK), 503, headers=WAIT),
    Call("004-loading.json", "news_loading", "/health", status=503, headers=WAIT),
]


@pytest.fixture
def busy_news(news):
    asked = {"messages": ASK["messages"], "max_tokens": 512}
    sockets = [raw_request(news, asked) for _ in range(13)]
    wait_for(lambda: news.row()["running"] == 3 and news.row()["waiting"] == 10)
    yield news
    for sock in sockets:
        sock.close()
    news.wait_until_idle()


def _loading(profile):
    """Return a fixture: an HTTP half that has found no engine yet."""

    @pytest.fixture(scope="module", name=f"{profile}_loading")
    def half(tmp_path_factory):
        folder = tmp_path_factory.mktemp(f"{profile}_loading")
        with http_half(folder / "run", folder / "none", profile) as server:
            wait_for(lambda: "http started" in server.log)
            connections = psutil.Process(server.process.pid).net_connections()
            port = next(c.laddr.port for c in connections if c.status == "LISTEN")
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: requests.get(url + "/livez", timeout=10).status_code == 200)
            yield SimpleNamespace(url=url)

    return half


coder_loading, qwen2_loading = _loading("coder"), _loading("qwen2")
guide_loading, news_loading = _loading("guide"), _loading("news")


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.file} {call.path}")
def test_an_answer_is_the_one_on_file(request, call):
    server = request.getfixturevalue(call.server)
    answer = requests.request(
        "POST" if call.sent else "GET",
        server.url + call.path,
        timeout=60,
        **call.sent | {"headers": call.sent.get("headers", {}) | {"X-Request-Id": "golden"}},
    )
    assert (answer.status_code, answer.headers["Content-Type"]) == (call.status, call.type)
    assert answer.headers["X-Request-Id"] == "golden"
    assert {name: answer.headers.get(name) for name in call.headers} == call.headers
    check(call.file, answer.content)


def test_a_later_turn_is_its_text_alone_and_the_conversation_can_be_read(coder):
    url = coder.url + CODE_STREAM
    first = requests.post(url, data=PROMPT, timeout=60).text
    conversation_id = re.match(r"conversation_id:(\S+)\n---\n", first)[1]
    data = PROMPT | {"conversation_id": conversation_id}
    later = requests.post(url, data=data, timeout=60)
    exported = coder.get(f"/v1/code/conversations/{conversation_id}")
    assert later.headers["Content-Type"] == STREAM
    assert later.text == exported.json()["messages"][-1]["content"] and len(later.text) > 9
    check("000-conversation.json", exported.content)


def test_every_file_belongs_to_a_call():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [file.name for file in FOLDER.iterdir() if f'"{file.name}"' not in source] == []
