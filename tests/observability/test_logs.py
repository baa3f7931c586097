"""What the server's output says, and what it never says."""

import json
import logging
import os
import re
import signal
import socket
from contextlib import ExitStack
from dataclasses import replace

import pytest
import requests

from qwenapi.observability.logs import MAX_LINE_BYTES, RequestLog, configure, escaped, origin_of
from qwenapi.settings.table import Settings
from tests.running_server import RunningServer, wait_for

CANARY = "kanarienvogel-5417"
MODELS = {"guide": "Qwen3-32B", "browser": "MyCoder", "openai": "qwen-demo"}
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\S+ \[\w+ *\] |supervisor: |engine-\d+: |http: |ready: |qwenapi: "
)
FORMATS = pytest.mark.parametrize("shape", ["console", "json"])


def request_lines(server: RunningServer) -> list[dict]:
    """Return what the lines of requests say, of a server that logs JSON."""
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "request"]


def chat(server: RunningServer, content: str, model: str | None = "qwen-demo", **fields):
    named = {"model": model} if model else {}
    return server.chat(content, **named, **{"max_tokens": 3, **fields})


def leave_early(server: RunningServer, path: str, **options) -> None:
    """Begin a long answer, take its first bytes and go."""
    with requests.post(server.url + path, stream=True, timeout=30, **options) as answer:
        assert answer.status_code == 200, answer.text
        next(answer.iter_content(1))


def test_a_line_tells_the_whole_life_of_its_request(start_server):
    server = start_server("--stub", "--log-format", "json")
    assert chat(server, "hello", max_tokens=5).status_code == 200
    assert chat(server, "hello", max_tokens=0).status_code == 400
    with requests.post(
        server.url + "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9000, "stream": True},
        stream=True,
        timeout=30,
    ) as answer:
        next(answer.iter_content(1))
    good, bad, left = wait_for(lambda: len(request_lines(server)) == 3 and request_lines(server))
    assert good["status"] == 200 and good["ending"] == "successful" and good["code"] is None
    assert (good["completion_tokens"], good["cached_tokens"]) == (5, 0)
    assert good["prompt_tokens"] > 0
    assert 0 <= good["queue"] <= good["ttft"] <= good["seconds"]
    assert good["route"] == "/v1/chat/completions" and good["profile"] == "openai"
    assert good["key_id"] is None and re.fullmatch("[0-9a-f]{32}", good["request_id"])
    assert (bad["status"], bad["code"]) == (400, "invalid_request")
    assert left["ending"] == "cancelled"


def test_a_stream_that_failed_after_its_status_is_told_as_failed(start_server):
    narrow = ("--max-num-seqs", "1", "--queue-timeout", "0.3")
    server = start_server("--stub", "--stub-step-seconds", "0.02", *narrow, "--log-format", "json")
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5000, "stream": True}
    with server.post("/v1/chat/completions", body, stream=True):
        assert b"error" in server.post("/v1/chat/completions", body).content
        (line,) = wait_for(lambda: request_lines(server))
    assert line["status"] == 200 and line["ending"] == "failed"
    assert line["code"] == "queue_timeout"


@FORMATS
def test_no_line_holds_what_a_caller_wrote(start_server, shape):
    """Through success, refusals, failures and departures of every interface."""
    narrow = ("--max-num-seqs", "2", "--max-waiting", "2")
    slow = ("--stub", "--stub-step-seconds", "0.002")
    server = start_server(*slow, *narrow, "--profile", "all", "--log-format", shape)
    headers = {"User-Agent": CANARY, "Authorization": f"Bearer {CANARY}", "X-Request-Id": "ab c"}
    address = f"{server.url}/v1/chat/completions"
    statuses = set()
    for model in (*MODELS.values(), None):
        for stream in (False, True):
            statuses.add(chat(server, CANARY, model, stream=stream).status_code)
        statuses.add(chat(server, CANARY, model, unheard_of=CANARY).status_code)
        statuses.add(chat(server, CANARY, model, temperature=CANARY).status_code)
        body = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 4000}
        leave_early(server, "/v1/chat/completions", json={"model": model} | body | {"stream": True})
    statuses.add(chat(server, CANARY, model=CANARY).status_code)
    statuses.add(chat(server, CANARY, user=CANARY).status_code)
    statuses.add(chat(server, CANARY * 20_000).status_code)
    statuses.add(server.post("/v1/completions", {"prompt": CANARY, "model": "x"}).status_code)
    for data in (f'{{"prompt": "{CANARY}', f"{CANARY}", f'["{CANARY}"]'):
        statuses.add(requests.post(address, data=data, headers=headers, timeout=30).status_code)
    for path in (f"/{CANARY}", f"/v1/models?x={CANARY}", f"/v1/code/conversations/{CANARY}"):
        statuses.add(requests.get(server.url + path, headers=headers, timeout=30).status_code)
    for path in ("/v1/code/generate", "/v1/code/chat_stream"):
        leave_early(server, path, data={"prompt": CANARY}) if "chat" in path else None
        statuses.add(requests.post(server.url + path, json={CANARY: 1}, timeout=30).status_code)
        bad = {"prompt": CANARY, "max_tokens": 2, "conversation_id": CANARY}
        statuses.add(requests.post(server.url + path, json=bad, timeout=60).status_code)
    short = {"prompt": CANARY, "max_length": 3}
    statuses.add(server.post("/generate", short).status_code)
    statuses.add(server.post("/generate", short | {"temperature": CANARY}).status_code)
    long = {"model": "qwen-demo", "stream": True} | body
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(requests.post(address, json=long, stream=True, timeout=30))
        statuses.add(chat(server, CANARY).status_code)
        os.kill(server.row()["pid"], signal.SIGKILL)
    assert {200, 400, 404, 422, 503} <= statuses
    server.stop()
    assert CANARY not in server.log


@FORMATS
def test_a_healthy_day_has_no_line_with_the_word_error(start_server, shape):
    server = start_server(
        "--stub", "--stub-step-seconds", "0.002", "--profile", "all", "--log-format", shape
    )
    for model in MODELS.values():
        assert chat(server, "hello", model).status_code == 200
        assert chat(server, "hello", model, stream=True).status_code == 200
        assert chat(server, "hello", model, max_tokens=-1).status_code in (400, 422)
    assert server.get("/nowhere").status_code == 404
    assert server.post("/v1/models", {}).status_code == 405
    assert server.post("/generate", {}).status_code == 422
    leave_early(server, "/v1/code/chat_stream", data={"prompt": "hello"})
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4000, "stream": True}
    leave_early(server, "/v1/chat/completions", json={"model": "qwen-demo"} | body)
    for path in ("/livez", "/readyz", "/health", "/ui/"):
        assert server.get(path).status_code == 200
    server.wait_until_idle()
    assert server.stop() == 0
    assert "request" in server.log
    found = [line for line in server.log.splitlines() if "error" in line.lower()]
    # A stored conversation's turn breaks off with the caller; nothing else may stand out.
    assert not found, found


@FORMATS
def test_no_caller_ends_colours_or_stretches_a_line(start_server, shape):
    server = start_server("--stub", "--log-format", shape)
    evil = "x\r\nFAKE LINE\x1b[31m\u2028\u202e\x85"
    assert chat(server, "a", model=evil).status_code in (200, 404)
    assert chat(server, "a", model=evil * 50_000).status_code in (200, 404)
    assert chat(server, "a", user=evil * 20_000).status_code in (200, 400)
    for header in ("X-Request-Id: a\x1b[31mb", "X-Request-Id: a\r\n FAKE LINE", "Host: \x1b[31m"):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            head = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{header}\r\nConnection: close"
            sock.sendall(f"{head}\r\n\r\n".encode())
            while sock.recv(65536):
                pass
    server.stop()
    assert "FAKE" not in server.log and "\x1b" not in server.log
    for line in server.log.splitlines():
        assert len(line.encode()) <= MAX_LINE_BYTES
        assert LINE.match(line) or isinstance(json.loads(line), dict)


def test_requests_are_logged_unless_that_is_turned_off(start_server):
    loud = start_server("--stub")
    quiet = start_server("--stub", "--disable-log-requests")
    for server in (loud, quiet):
        assert chat(server, "hello").status_code == 200
        server.stop()
    assert "route=/v1/chat/completions" in loud.log
    assert "/v1/chat/completions" not in quiet.log


@pytest.fixture
def written(capsys):
    """Return a function that logs as a worker does and returns what came out."""
    kept = logging.root.handlers[:], logging.root.level

    def write(shape: str, log) -> str:
        configure(replace(Settings(), log_format=shape))
        log()
        return capsys.readouterr().err

    yield write
    logging.root.handlers[:], logging.root.level = kept


@FORMATS
def test_a_long_line_is_cut_and_stays_whole(written, shape):
    def log() -> None:
        line = RequestLog(True, "id", "GET", "/x")
        line.add(model="é\n" * 50_000)
        line.write(200)

    shown = written(shape, log)
    assert len(shown.encode()) <= MAX_LINE_BYTES + 1 and shown.count("\n") == 1
    assert "…" in shown and "200" in shown
    if shape == "json":
        assert json.loads(shown)["status"] == 200


def test_a_line_for_people_leaves_out_what_is_empty_and_json_is_whole(written):
    def log():
        line = RequestLog(True, "r1", "GET", "/livez")
        line.add(queue=0.0, model="", tokens=0, is_cached=False)
        line.write(200)

    shown = written("console", log)
    assert "None" not in shown and "code=" not in shown and "model=" not in shown
    for kept in ("queue=0.0", "tokens=0", "is_cached=False", "status=200", "request_id=r1"):
        assert kept in shown
    whole = json.loads(written("json", log))
    assert whole["code"] is whole["key_id"] is None and whole["model"] == ""


@FORMATS
def test_an_exception_is_logged_without_its_words(written, shape):
    def log() -> None:
        try:
            try:
                int(f"{CANARY}\n")
            except ValueError as error:
                raise KeyError(CANARY) from error
        except KeyError:
            logging.getLogger("qwenapi.test").exception("request %s failed", "a\nb")

    shown = written(shape, log)
    assert CANARY not in shown
    assert "KeyError" in shown and "ValueError" in shown and "test_logs.py" in shown
    assert r"a\nb" in shown or r"a\\nb" in shown


def test_the_words_of_the_system_are_kept():
    try:
        open("/nowhere\x1b/at all")  # noqa: SIM115
    except OSError as error:
        words = origin_of((type(error), error, error.__traceback__))
    assert "No such file or directory" in words and "\x1b" not in words


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", r"a\nb"), ("\x1b[0m", r"\x1b[0m"), ("\u2028", r"\u2028"), ("你好 é", "你好 é")],
)
def test_what_cannot_be_shown_is_written_as_its_escape(text, shown):
    assert escaped(text) == shown


def test_half_a_character_can_be_logged(written):
    def log() -> None:
        logging.getLogger("qwenapi.test").warning("half %s", "\ud800")

    assert json.loads(written("json", log))["event"] == r"half \ud800"
