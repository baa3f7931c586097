"""The shipped nginx file in a real nginx, before real halves on the stub engine."""

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from qwenapi.engines.client import BEAT_SECONDS
from tests.documents import test_printed as printed
from tests.ops.nginx import nginx_program, shipped
from tests.running_server import sse_events, wait_for

MESSAGES = [{"role": "user", "content": "hello 你好"}]
CHAT = "/v1/chat/completions"


def request_bytes(body, path=CHAT):
    payload = body.encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


def ask(nginx, half="all", path=CHAT, **fields):
    return requests.post(nginx.url(half) + path, json={"messages": MESSAGES} | fields, timeout=60)


def is_error_of(answer, dialect):
    """Return whether a refusal is JSON in the words of the dialect."""
    assert answer.headers["Content-Type"] == "application/json", answer.text
    assert answer.headers["X-Request-Id"]
    body = answer.json()
    if dialect == "fastapi":
        return list(body) == ["detail"] and isinstance(body["detail"], str)
    return list(body["error"]) == ["message", "type", "param", "code"]


def test_nginx_accepts_the_file_as_it_is_shipped(tmp_path):
    (tmp_path / "qwenapi.conf").write_text(shipped(), encoding="utf-8")
    main = f"pid {tmp_path}/pid; events {{}} http {{ include {tmp_path}/qwenapi.conf; }}"
    (tmp_path / "nginx.conf").write_text(main)
    command = [nginx_program(), "-t", "-q", "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_port_is_its_own_half(site):
    assert requests.get(site.nginx.url("qwen2") + "/health", timeout=10).json() == {
        "status": "healthy"
    }
    assert requests.get(site.nginx.url("coder") + "/health", timeout=10).json() == {"status": "ok"}
    assert "gpu" in requests.get(site.nginx.url("all") + "/health", timeout=10).json()
    answer = ask(site.nginx, "coder")
    assert answer.status_code == 404 and list(answer.json()) == ["detail"]


def test_the_pages_prefix_leads_to_the_openai_paths_and_the_report_keeps_its_own(site):
    answer = ask(site.nginx, path="/api/chat/completions", model="MyCoder", max_tokens=2)
    assert answer.status_code == 200 and answer.json()["model"] == "MyCoder"
    models = requests.get(site.nginx.url() + "/api/models", timeout=10)
    assert models.json()["object"] == "list"
    report = requests.get(site.nginx.url() + "/api/v1/metrics", timeout=10)
    assert report.status_code == 200 and report.json()["service"] == "qwen-vllm"


def test_a_callers_request_id_comes_back_and_without_one_nginx_gives_one(site):
    url = site.nginx.url() + "/livez"
    given = requests.get(url, headers={"X-Request-Id": "my-own-7"}, timeout=10)
    assert given.headers["X-Request-Id"] == "my-own-7"
    assert re.fullmatch(r"[0-9a-f]{32}", requests.get(url, timeout=10).headers["X-Request-Id"])


def test_the_first_token_comes_as_soon_as_without_nginx(site):
    body = request_bytes(json.dumps({"messages": MESSAGES, "stream": True}))

    def first_token(connect):
        with connect() as sock:
            started = time.monotonic()
            sock.sendall(body)
            received = b""
            while not re.search(rb'"content":"[^"]', received):
                piece = sock.recv(65536)
                assert piece, received
                received += piece
            return time.monotonic() - started

    pairs = [(first_token(site.nginx.connect), first_token(site.model.connect)) for _ in range(9)]
    through, direct = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert through - direct < 0.1, (through, direct)
    site.model.wait_until_idle()


def test_a_long_silence_is_bounded_by_the_read_timeout_alone(start_server, start_nginx, short_dir):
    """Every other time limit is cut to 1 s, and an answer that is silent for 3 s still arrives,
    streamed or whole; with the read timeout cut as well it does not. So the shipped read timeout is
    the one that a silent minute meets.
    """
    path = short_dir / "all.sock"
    start_server("--stub", "--stub-step-seconds", "3", "--profile", "all", "--uds", str(path))
    others = ("send_timeout", "client_header_timeout", "client_body_timeout")
    short = dict.fromkeys((*others, "proxy_send_timeout", "proxy_connect_timeout"), "1s")
    patient = start_nginx({"all": path}, **short, proxy_read_timeout="30s")
    hasty = start_nginx({"all": path}, **short, proxy_read_timeout="1s")
    with ThreadPoolExecutor(3) as pool:
        whole = pool.submit(ask, patient, max_tokens=2)
        streamed = pool.submit(ask, patient, max_tokens=2, stream=True)
        cut = pool.submit(ask, hasty, max_tokens=2)
        assert whole.result().json()["usage"]["completion_tokens"] == 2
        assert sse_events(streamed.result().content)[-1] == "[DONE]"
        assert cut.result().status_code == 504 and is_error_of(cut.result(), "openai")
    seconds = int(re.search(r"proxy_read_timeout (\d+)s;", shipped())[1])
    assert seconds > 900 and seconds > 4 * BEAT_SECONDS


@pytest.mark.timing
@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves_ends_its_generation_within_a_second(site, stream):
    asked = {"model": "qwen-demo", "max_tokens": 8000, "stream": stream, "messages": MESSAGES}
    with site.nginx.connect() as sock:
        sock.sendall(request_bytes(json.dumps(asked)))
        wait_for(lambda: site.model.row()["running"] == 1)
    left = time.monotonic()
    wait_for(lambda: site.model.row()["running"] == 0)
    assert time.monotonic() - left < 1


@pytest.mark.parametrize(
    ("half", "path", "dialect"),
    [
        ("all", CHAT, "openai"),
        ("all", "/v1/code/generate", "fastapi"),
        ("all", "/generate", "fastapi"),
        ("coder", "/v1/code/generate", "fastapi"),
        ("qwen2", "/generate", "fastapi"),
    ],
)
def test_a_body_that_is_too_large_is_refused_in_the_callers_dialect(site, half, path, dialect):
    answer = requests.post(site.nginx.url(half) + path, data=b"x" * (4 * 2**20 + 1), timeout=30)
    assert answer.status_code == 413 and is_error_of(answer, dialect)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /" + "x" * 9000 + " HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        ("GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + "y" * 9000 + "\r\n\r\n", 431),
        ("nonsense\r\n\r\n", 400),
    ],
)
def test_what_nginx_itself_refuses_is_json_as_well(site, head, status):
    with site.nginx.connect() as sock:
        sock.sendall(head.encode())
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.startswith(f"HTTP/1.1 {status} ".encode()), received[:200]
    assert b"Content-Type: application/json" in received
    assert received.rstrip().endswith(b"}}")


def test_too_many_requests_of_one_address_are_refused_as_json(site, start_nginx):
    nginx = start_nginx(site.halves, limit_req="zone=qwenapi_requests burst=1 nodelay")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: requests.get(nginx.url() + "/livez"), range(60)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and is_error_of(refused[0], "openai")
    assert refused[0].headers["Retry-After"] == "1"
    assert any(answer.status_code == 200 for answer in answers)


def test_a_half_that_is_not_there_is_a_502_and_one_without_engines_its_own_503(
    start_server, start_nginx, short_dir
):
    path = short_dir / "all.sock"
    nginx = start_nginx({"all": path})
    for half, dialect in (("all", "openai"), ("coder", "fastapi")):
        answer = ask(nginx, half)
        assert answer.status_code == 502 and is_error_of(answer, dialect)
        assert answer.headers["Retry-After"] == "1"
    nowhere = ("--model-run-dir", str(short_dir / "model"))
    flags = ("--profile", "all", "--uds", str(path), *nowhere)
    start_server(*flags, command="http", ready=False)
    wait_for(lambda: ask(nginx).status_code == 503)
    answer = ask(nginx, model="qwen-demo")
    assert answer.json()["error"]["code"] == "engine_unavailable"
    assert answer.headers["Retry-After"]


def test_a_request_whose_worker_is_killed_is_answered_502_and_never_sent_again(
    start_server, start_nginx, short_dir
):
    paths = [short_dir / "a.sock", short_dir / "b.sock"]
    step = ("--stub", "--stub-step-seconds", "0.02", "--profile", "all")
    servers = [start_server(*step, "--uds", str(path)) for path in paths]
    nginx = start_nginx({"all": f"{paths[0]}; server unix:{paths[1]}"})
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, nginx, model="qwen-demo", max_tokens=400)
        wait_for(lambda: any(server.row()["running"] for server in servers))
        hit, spared = sorted(servers, key=lambda server: -server.row()["running"])
        (worker,) = hit.http_workers()
        os.kill(worker.pid, signal.SIGKILL)
        assert answer.result().status_code == 502 and is_error_of(answer.result(), "openai")
    hit.wait_until_idle()
    assert spared.row()["generated_tokens"] == 0


def test_a_stream_whose_worker_is_killed_ends_without_its_last_chunk(
    start_server, start_nginx, short_dir
):
    path = short_dir / "all.sock"
    step = ("--stub", "--stub-step-seconds", "0.02", "--profile", "all")
    server = start_server(*step, "--uds", str(path))
    nginx = start_nginx({"all": path})
    with requests.post(
        nginx.url() + CHAT, json={"messages": MESSAGES, "stream": True}, stream=True, timeout=30
    ) as answer:
        pieces = answer.iter_content(chunk_size=None)
        next(pieces)
        os.kill(server.http_workers()[0].pid, signal.SIGKILL)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(pieces)


class Through:
    """What the tests of the printed clients ask of a server, through nginx."""

    def __init__(self, nginx):
        self.url = nginx.url()

    def post(self, path, body):
        return requests.post(self.url + path, json=body, timeout=60)


@pytest.mark.parametrize(
    "client",
    [
        printed.test_000_the_single_call_prints_the_code,
        printed.test_000_the_session_gets_an_id_and_a_second_turn,
        printed.test_001_the_client_prints_a_text,
        printed.test_002_the_fetch_client_prints_an_answer,
        printed.test_002_the_aiohttp_batch_of_64_is_answered_whole,
        printed.test_003_the_decoder_yields_every_character,
        printed.test_004_the_client_classifies_reads_the_metrics_and_finds_the_service_healthy,
    ],
    ids=lambda client: client.__name__.removeprefix("test_"),
)
def test_the_documents_clients_pass_unchanged(site, client):
    client(Through(site.nginx))


@pytest.mark.parametrize(
    "head", [b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", b"GET / HTTP/1.1\r\nHo"]
)
def test_a_caller_who_stops_sending_is_let_go(site, start_nginx, head):
    nginx = start_nginx(site.halves, client_header_timeout="1s", client_body_timeout="1s")
    with nginx.connect() as sock:
        sock.settimeout(10)
        sock.sendall(head)
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass  # let go, without a word
        except TimeoutError:
            raise AssertionError("nginx keeps waiting") from None


def test_a_caller_who_takes_nothing_is_let_go_before_the_half_does(site, start_nginx):
    nginx = start_nginx(site.halves, send_timeout="1s")
    asked = {"model": "qwen-demo", "max_tokens": 8000, "stream": True, "messages": MESSAGES}
    wordy = {"logprobs": True, "top_logprobs": 20}
    before = site.model.row()["generated_tokens"]
    with nginx.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(request_bytes(json.dumps(asked | wordy)))
        wait_for(lambda: site.model.row()["running"] == 1)
        wait_for(lambda: site.model.row()["running"] == 0, 60)
    assert site.model.row()["generated_tokens"] - before < 8000
