"""Anthropic's interface through real gunicorn, on the stub engine, which repeats its prompt."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.api import claude_code
from tests.e2e.test_http_on_stub import raw_request
from tests.running_server import RunningServer, wait_for

FLAGS = ("--stub", "--profile", "anthropic", "--model-alias", "claude-*=qwen-demo")
WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages")
    flags = (*FLAGS, "--stub-step-seconds", "0.005", "--max-model-len", "65536")
    server = RunningServer(folder / "run", *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def body(content=WORDS, **fields):
    messages = [{"role": "user", "content": content}]
    return {"model": "claude-x", "max_tokens": 40, "messages": messages} | fields


def ask(server, **fields):
    return server.post("/v1/messages", body(**fields))


def events(raw):
    """Return the payloads of a stream, each of which must be named by its type."""
    found = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def kinds(payloads):
    """Return the types in their order, neighbours that are alike once."""
    found = []
    for payload in payloads:
        if payload["type"] not in found[-1:]:
            found.append(payload["type"])
    return found


def text_of(payloads):
    deltas = (p["delta"] for p in payloads if p["type"] == "content_block_delta")
    return "".join(delta["text"] for delta in deltas)


def test_a_whole_message(server):
    answer = ask(server)
    message = answer.json()
    assert answer.status_code == 200 and answer.headers["request-id"]
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert (message["model"], message["id"][:4]) == ("qwen-demo", "msg_")
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    assert [block["type"] for block in message["content"]] == ["text"]
    assert message["usage"]["output_tokens"] == 40


def test_the_events_of_a_stream_are_anthropics_in_their_order(server):
    answer = ask(server, stream=True)
    said = events(answer.content)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert kinds(said) == [
        *("message_start", "ping", "content_block_start", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    start, end = said[0]["message"], said[-2]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == (
        [],
        None,
        0,
    )
    assert end["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == 40
    assert start["usage"]["input_tokens"] == end["usage"]["input_tokens"]
    assert text_of(said)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_ends_the_text_before_it_and_is_told(server, stream):
    answer = ask(server, stop_sequences=["nowhere", "three"], stream=stream, max_tokens=200)
    expected = {"stop_reason": "stop_sequence", "stop_sequence": "three"}
    if stream:
        said = events(answer.content)
        assert said[-2]["delta"] == expected and "three" not in text_of(said)
    else:
        message = answer.json()
        assert message.items() >= expected.items()
        assert "three" not in message["content"][0]["text"]
    server.wait_until_idle()


def test_tokens_are_counted_as_a_message_is_charged(server):
    counted = server.post("/v1/messages/count_tokens", body())
    assert counted.json() == {"input_tokens": ask(server).json()["usage"]["input_tokens"]}
    assert counted.headers["request-id"] and counted.headers["X-Ignored"] == "max_tokens"
    more = server.post("/v1/messages/count_tokens", body(tools=[claude_code.tool("Read")]))
    assert more.json()["input_tokens"] > counted.json()["input_tokens"] + 20


def test_a_last_message_of_the_assistants_is_gone_on_with(server):
    asked = [{"role": "user", "content": "Which?"}]
    begun = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "The best is ("}]}]
    counts = {
        name: server.post(
            "/v1/messages/count_tokens", {"model": "qwen-demo", "messages": turns}
        ).json()["input_tokens"]
        for name, turns in (("asked", asked), ("begun", begun))
    }
    # Longer by the words alone: no end of a turn, and no beginning of another.
    assert 1 <= counts["begun"] - counts["asked"] <= 9
    assert ask(server, messages=begun).status_code == 200


def test_a_request_of_claude_code_is_answered_and_what_it_ignores_is_named(server):
    asked = claude_code.request(max_tokens=20)
    answer = requests.post(
        server.url + "/v1/messages?beta=true", json=asked, headers=claude_code.HEADERS, timeout=60
    )
    assert answer.status_code == 200, answer.text
    said = events(answer.content)
    assert kinds(said)[:2] == ["message_start", "ping"] and said[-1]["type"] == "message_stop"
    assert "context_management" in answer.headers["X-Ignored"]
    assert "thinking_tokens" in said[-2]["usage"]["output_tokens_details"]


def test_a_model_that_is_not_served_is_told_with_those_that_are(server):
    answer = ask(server, model="mistral")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["type"] == "not_found_error" and "Served: 'qwen-demo'." in error["message"]


def test_a_prompt_that_does_not_fit_is_told_in_the_words_claude_code_compacts_at(start_server):
    server = start_server(*FLAGS, "--max-model-len", "64")
    answer = ask(server, content=WORDS * 20)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert (
        error["message"].startswith("prompt is too long: ") and "> 63 maximum" in error["message"]
    )


def test_two_at_once_each_get_their_own(server):
    words = ["red green blue", "uno dos tres"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: ask(server, content=words[i % 2], stream=True), range(8)))
    for i, answer in enumerate(answers):
        text = text_of(events(answer.content))
        assert words[i % 2].split()[1] in text and words[1 - i % 2].split()[1] not in text


def test_a_full_queue_is_overloaded(start_server):
    limits = ("--max-running", "1", "--max-waiting", "1", "--stub-step-seconds", "0.02")
    server = start_server(*FLAGS, *limits)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(server, max_tokens=60), range(6)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 4
    for answer in refused:
        assert answer.status_code == 529
        assert answer.json()["error"]["type"] == "overloaded_error"
        assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves_frees_the_engine(server, stream):
    with raw_request(server, body(max_tokens=30_000, stream=stream), path="/v1/messages"):
        wait_for(lambda: server.row()["running"] == 1)
    server.wait_until_idle(10)


def test_a_stream_goes_on_where_its_engine_was_killed(start_server):
    server = start_server(*FLAGS, "--stub-step-seconds", "0.01")
    pid = server.row()["pid"]
    asked = body(stream=True, max_tokens=300)
    with requests.post(server.url + "/v1/messages", json=asked, stream=True, timeout=60) as answer:
        pieces = answer.iter_content(None)
        raw = next(pieces)
        wait_for(lambda: server.row()["generated_tokens"] > 30)
        os.kill(pid, signal.SIGKILL)
        raw += b"".join(pieces)
    said = events(raw)
    assert server.row()["pid"] != pid, "nothing was disturbed"
    assert said[-1]["type"] == "message_stop" and said[-2]["usage"]["output_tokens"] == 300
    turn = f"{WORDS}\nassistant"
    gone_round = text_of(said).split(turn)
    assert len(gone_round) > 3 and len(set(gone_round[1:-1])) == 1  # nothing twice, nothing lost


def test_a_stream_that_cannot_end_says_so_in_an_event(start_server):
    server = start_server(*FLAGS, "--stub-step-seconds", "0.02", "--drain-timeout", "3")
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(ask, server, stream=True, max_tokens=1000)
        wait_for(lambda: server.row()["generated_tokens"] > 5)
        server.process.terminate()
        said = events(stream.result().content)
    assert said[-1]["error"]["type"] == "api_error" and said[-1]["request_id"]
    assert "message_stop" not in kinds(said)
    assert server.process.wait(20) == 0
