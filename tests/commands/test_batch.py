"""`qwenapi batch`, as its users run it: a process, two files, and a server, real or failing."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenapi.batches.line import OUTPUT_BEGINNING
from tests.running_server import RunningServer, wait_for

CHAT = "/v1/chat/completions"


def chat(content: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


def request_line(custom_id: str, url: str = CHAT, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": chat(), **fields}


class Batch:
    """An input, an output, and runs of the command on them."""

    def __init__(self, folder: Path, lines: list[Any]) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.input.write_text("".join(text + "\n" for text in texts), encoding="utf-8")

    def start(self, url: str, *flags: str, **environ: str) -> subprocess.Popen[str]:
        files = ["-i", str(self.input), "-o", str(self.output)]
        command = [sys.executable, "-m", "qwenapi", "batch", *files, "--url", url, *flags]
        return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=os.environ | environ)

    def run(self, url: str, *flags: str, **environ: str) -> tuple[int, str]:
        process = self.start(url, *flags, **environ)
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    @property
    def num_whole(self) -> int:
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0

    def answers(self) -> dict[str, dict[str, Any]]:
        """Return the output's lines by id; each id must have one."""
        raw = self.output.read_bytes()
        assert raw.endswith(b"\n") and all(
            line.startswith(OUTPUT_BEGINNING) for line in raw.splitlines()
        )
        lines = [json.loads(line) for line in raw.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines) == len({line["id"] for line in lines})
        return found


@pytest.fixture
def batch(tmp_path: Path) -> Callable[..., Batch]:
    return lambda *lines: Batch(tmp_path, list(lines))


class Scripted(http.server.ThreadingHTTPServer):
    """A server that answers by `script`, which is given each request's body and how often it came:
    a status and headers, or None to break the connection.
    """

    daemon_threads = True

    def __init__(self, script: Callable[[Any, int], tuple[int, dict[str, str]] | None]) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.script, self.seen, self.headers = script, [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class ScriptedHandler(http.server.BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(body)
        self.server.headers.append(self.headers)
        answer = self.server.script(json.loads(body), self.server.seen.count(body))
        if answer is None:
            return
        self.send_response(answer[0])
        for name, value in answer[1].items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b'{"answer": "\xe4\xbd\xa0\xe5\xa5\xbd"}')

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def start(script: Any) -> Scripted:
        servers.append(Scripted(script))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_each_line_has_the_answer_that_the_server_gives(batch, stub_server):
    lines = [request_line(f"c{i}", body=chat(f"say {i} 你好🙂", seed=i)) for i in range(40)]
    lines.append(request_line("raw", "/v1/completions", body={"prompt": "x", "max_tokens": 3}))
    made = batch(*lines)
    code, said = made.run(stub_server.url + "/v1", "--concurrency", "8")
    assert code == 0, said
    answers = made.answers()
    assert answers.keys() == {line["custom_id"] for line in lines}
    for line in lines:
        answer = answers[line["custom_id"]]
        assert answer["error"] is None and answer["response"]["status_code"] == 200
        assert answer["response"]["request_id"]
        alone = stub_server.post(line["url"], line["body"]).json()
        assert answer["response"]["body"]["choices"] == alone["choices"]


def test_a_second_run_sends_nothing_and_says_the_same(batch, scripted):
    server = scripted(lambda body, times: (200 if body["messages"] else 400, {}))
    made = batch(request_line("a"), request_line("b", body={"messages": []}))
    assert made.run(server.url)[0] == 1
    before, sent = made.output.read_bytes(), len(server.seen)
    assert sent == 2 and made.run(server.url)[0] == 1
    assert made.output.read_bytes() == before and len(server.seen) == sent


def test_failed_lines_say_why_and_the_others_are_answered(batch, stub_server):
    made = batch(
        request_line("good"),
        request_line("no messages", body={"max_tokens": 4}),
        request_line("no such door", "/v1/nothing"),
    )
    code, said = made.run(stub_server.url)
    assert code == 1 and "3 lines, 2 failed" in said
    answers = made.answers()
    assert answers["good"]["error"] is None
    refused = answers["no messages"]
    assert refused["response"]["status_code"] == 400 and "messages" in refused["error"]["message"]
    assert refused["response"]["body"]["error"]["message"] == refused["error"]["message"]
    assert answers["no such door"]["error"]["code"] == "404"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "is no JSON"),
        ('{"a": NaN}', "NaN"),
        ("[1]", "no JSON object"),
        (request_line("first"), "was used before"),
        (request_line(""), "custom_id"),
        (request_line("x" * 513), "custom_id"),
        (request_line(7), "custom_id"),
        (request_line("b", method="GET"), "method"),
        (request_line("b", url="http://elsewhere/v1"), "url"),
        (request_line("b", url="/v1 HTTP/1.1\r\nX: y"), "url"),
        (request_line("b", body=[]), "body"),
        (request_line("b", body=chat(stream=True)), "stream"),
    ],
)
def test_an_unfit_file_is_named_by_its_line_before_anything_is_sent(batch, scripted, line, what):
    server = scripted(lambda body, times: (200, {}))
    made = batch(request_line("first"), "", line)
    code, said = made.run(server.url)
    assert code == 2 and f"{made.input}, line 3: " in said and what in said
    assert not server.seen and not made.output.exists()


def test_files_that_are_no_batch_are_left_as_they_are(batch, scripted, tmp_path):
    server = scripted(lambda body, times: (200, {}))
    made = batch(request_line("a"))
    for content in (
        b"my notes",
        b"my notes\n",
        b'{"id": "batch_req_1"}\n',
        made.input.read_bytes(),
    ):
        made.output.write_bytes(content)
        code, said = made.run(server.url)
        assert code == 2 and "line 1: is no answer of a batch" in said
        assert made.output.read_bytes() == content
    assert made.run(server.url, "-o", str(tmp_path))[0] == 2
    assert made.run(server.url, "-o", "/dev/null")[0] == 2
    assert made.run(server.url, "-i", str(tmp_path / "none"))[0] == 2
    assert not server.seen


def test_a_torn_line_is_cut_off_and_asked_again(batch, scripted):
    server = scripted(lambda body, times: (200, {}))
    made = batch(request_line("a"), request_line("你好"))
    assert made.run(server.url)[0] == 0
    whole = made.output.read_bytes()
    start_of_last = whole[:-1].rindex(b"\n") + 1
    for size in (len(whole) - 1, start_of_last + 40, start_of_last + 3):
        made.output.write_bytes(whole[:size])
        assert made.run(server.url)[0] == 0
        assert made.answers().keys() == {"a", "你好"}
    assert len(server.seen) == 2 + 3


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_the_next_run_goes_on(batch, stub_server, sent):
    made = batch(*(request_line(f"c{i}", body=chat(max_tokens=20)) for i in range(60)))
    process = made.start(stub_server.url, "--concurrency", "4")
    wait_for(lambda: made.num_whole >= 10)
    process.send_signal(sent)
    _, said = process.communicate(timeout=20)
    assert process.returncode not in (0, 1), said
    if sent == signal.SIGINT:
        assert "goes on from here" in said and "Traceback" not in said
    kept = made.output.read_bytes()
    assert kept.count(b"\n") < 60
    assert made.run(stub_server.url)[0] == 0
    assert len(made.answers()) == 60
    assert made.output.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])


def test_a_busy_server_is_waited_for(batch, scripted):
    def script(body: Any, times: int) -> tuple[int, dict[str, str]]:
        return ((429, 503)[times - 1], {"Retry-After": "1"}) if times < 3 else (200, {})

    server = scripted(script)
    made = batch(request_line("a"))
    started = time.monotonic()
    assert made.run(server.url)[0] == 0
    assert len(server.seen) == 3 and time.monotonic() - started >= 2


def test_a_refusal_for_good_and_one_without_a_time_are_not_waited_for(batch, scripted):
    headers = {"Retry-After": "1", "x-should-retry": "false"}
    server = scripted(lambda body, times: (429, headers) if body["n"] == 1 else (503, {}))
    made = batch(request_line("a", body={"n": 1}), request_line("b", body={"n": 2}))
    assert made.run(server.url)[0] == 1
    assert len(server.seen) == 2
    assert {line["error"]["code"] for line in made.answers().values()} == {"429", "503"}


def test_a_request_that_breaks_its_connection_fails_alone(batch, scripted):
    server = scripted(lambda body, times: None if body["n"] == 1 else (200, {}))
    made = batch(request_line("bad", body={"n": 1}), request_line("good", body={"n": 2}))
    assert made.run(server.url)[0] == 1
    answers = made.answers()
    assert answers["bad"]["response"] is None
    assert answers["bad"]["error"]["code"] == "connection_error"
    assert answers["good"]["error"] is None and len(server.seen) == 3 + 1


def test_a_refused_key_ends_the_run_and_costs_no_line(batch, scripted):
    def script(body: Any, times: int) -> tuple[int, dict[str, str]]:
        given = server.headers[-1].get("Authorization")
        return (200 if given == "Bearer right" else 401, {})

    server = scripted(script)
    made = batch(*(request_line(f"c{i}") for i in range(50)))
    code, said = made.run(server.url, "--api-key", "wrong", "--concurrency", "2")
    assert code == 1 and "key is refused" in said and made.num_whole == 0
    assert len(server.seen) <= 2
    assert made.run(server.url, QWENAPI_API_KEY="right")[0] == 0
    assert len(made.answers()) == 50


def test_nobody_there_is_said_at_once(batch):
    made = batch(request_line("a"))
    code, said = made.run("http://127.0.0.1:1")
    assert code == 1 and "refused" in said and made.num_whole == 0
    assert made.run("ftp://x")[0] == 2


def test_a_server_that_restarts_is_waited_for(batch, start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.01")
    port = server.url.rpartition(":")[2]
    made = batch(*(request_line(f"c{i}", body=chat(max_tokens=20)) for i in range(60)))
    process = made.start(server.url, "--concurrency", "4")
    wait_for(lambda: made.num_whole >= 10)
    server.stop()
    assert made.num_whole < 60
    again: RunningServer = start_server("--stub", "--port", port)
    _, said = process.communicate(timeout=60)
    failed = [answer for answer in made.answers().values() if answer["error"]]
    assert process.returncode == 0, f"{said}{failed}"
    assert len(made.answers()) == 60 and again.url.endswith(port)


def test_two_at_once_do_not_share_an_output(batch, scripted):
    server = scripted(lambda body, times: time.sleep(6) or (200, {}))
    made = batch(request_line("a"))
    first = made.start(server.url)
    wait_for(lambda: server.seen)
    code, said = made.run(server.url)
    assert code == 2 and "another qwenapi batch" in said
    _, said = first.communicate(timeout=20)
    assert first.returncode == 0 and "0 of 1 lines, 0 failed" in said
    assert len(made.answers()) == 1


def test_a_long_file_takes_little_memory(batch, scripted):
    """What is sent and answered is never held: a file of 64 MB is read, and answered, in less."""
    server = scripted(lambda body, times: (200, {}))
    made = batch(*(request_line(f"c{i}", body={"n": i, "pad": "x" * 64_000}) for i in range(1000)))
    process = made.start(server.url)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peaks = [int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM")]
        peak = max(peak, *peaks, 0)
        time.sleep(0.05)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert len(made.answers()) == 1000 and made.input.stat().st_size > 64e6
    assert 0 < peak < 64 * 1024, peak
