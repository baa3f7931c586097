"""Two HTTP halves at once on one model half: each speaks its own document's language."""

import pytest
import requests

from tests.e2e.test_http_on_stub import answers_of, raw_request
from tests.running_server import RunningServer, wait_for

MESSAGES = [{"role": "user", "content": "请分类这条新闻：央行宣布降息25个基点"}]
NUM_STREAMS = 8


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Return the model half and the HTTP halves of two documents."""
    folder = tmp_path_factory.mktemp("halves")
    stub = ("--stub", "--stub-step-seconds", "0.005")
    shared = ("--model-run-dir", str(folder / "model"))
    servers = [RunningServer(folder / "model", *stub, command="model")]
    for name in ("coder", "news"):
        flags = (*shared, "--profile", name)
        servers.append(RunningServer(folder / name, *flags, command="http"))
    try:
        yield [server.wait_until_ready() for server in servers]
        assert [server.stop() for server in reversed(servers)] == [0, 0, 0]
    finally:
        for server in servers:
            server.close()


@pytest.fixture
def busy(halves):
    """Keep the model busy with the coder's streams, which would go on for 20 seconds."""
    model, coder, _ = halves
    sockets = [
        raw_request(coder, {"prompt": f"p{i}"}, path="/v1/code/chat_stream")
        for i in range(NUM_STREAMS)
    ]
    wait_for(lambda: model.row()["running"] == NUM_STREAMS)
    yield sockets
    for sock in sockets:
        sock.close()
    model.wait_until_idle()


def load(model):
    row = model.row()
    return row["running"], row["waiting"]


def test_each_half_answers_and_refuses_in_its_own_dialect(halves, busy):
    _, coder, news = halves
    chat = news.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3}).json()
    assert chat["model"] == "qwen-news-classifier"
    assert news.get("/health").json()["limits"]["max_concurrent_requests"] == 3
    assert coder.get("/health").json() == {"status": "ok"}
    refused = news.post("/v1/chat/completions", {"messages": 5})
    assert refused.status_code == 400 and isinstance(refused.json()["error"], str)
    refused = requests.post(coder.url + "/v1/code/generate", data={"x": "y"}, timeout=10)
    assert refused.status_code == 422 and isinstance(refused.json()["detail"], list)
    assert coder.post("/v1/chat/completions", {"messages": MESSAGES}).status_code == 404
    assert requests.post(news.url + "/v1/code/generate", timeout=10).status_code == 404


def test_three_run_and_ten_wait_exactly_while_the_other_half_is_busy(halves, busy):
    model, _, news = halves
    sockets = [raw_request(news, {"messages": MESSAGES, "max_tokens": 150}) for _ in range(20)]
    wait_for(lambda: load(model) == (NUM_STREAMS + 3, 10))
    answers = answers_of(sockets)
    statuses = [head.split()[1] for _, head, _ in answers]
    assert (statuses.count("200"), statuses.count("503")) == (13, 7)
    wait_for(lambda: load(model) == (NUM_STREAMS, 0), 5, lambda: "the coder's were not left alone")
