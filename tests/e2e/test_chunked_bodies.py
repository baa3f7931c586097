"""Bodies in chunks, as JDK, Spring, .NET and streams of node send them, on a bare port."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests

from tests.running_server import RunningServer

LIMIT = 200_000
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
CHAT = {"model": "qwen-demo", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 2}
PROMPT = {"prompt": "写一个函数"}
ENDPOINTS = {
    "/v1/chat/completions": (JSON, json.dumps(CHAT).encode()),
    "/chat/completions": (JSON, json.dumps(CHAT).encode()),
    "/v1/completions": (JSON, b'{"model":"qwen-demo","prompt":"x","max_tokens":2}'),
    "/generate": (JSON, b'{"prompt":"x","max_length":2}'),
    "/v1/code/generate": (FORM, urlencode(PROMPT).encode()),
    "/v1/code/chat_stream": (JSON, json.dumps(PROMPT).encode()),
}
SOURCES = Path(__file__).parent / "chunked"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--stub", "--profile", "all", "--max-body-bytes", str(LIMIT))
    server = RunningServer(tmp_path_factory.mktemp("chunked") / "run", *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def chunks(body, size):
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def head(path="/v1/chat/completions", type=JSON, *more):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {type}", *more]
    return "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode()


def answer_of(server, raw):
    """Return status and body of the last answer to raw bytes; the connection stays or is closed."""
    with server.connect() as sock:
        sock.settimeout(20)
        sock.sendall(raw)
        received = b""
        while not _is_whole(received):
            piece = sock.recv(65536)
            if not piece:
                break
            received += piece
    return _answers(received)[-1]


def _answers(received):
    """Return the answers received: (status, body) each."""
    found = []
    while received:
        start, _, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", start)
        size = int(length[1]) if length else len(rest) * (b" 100 " not in start)
        found.append((int(start.split()[1]), rest[:size]))
        received = rest[size:]
    return found


def _is_whole(received):
    start, _, body = received.rpartition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", start.rpartition(b"HTTP/1.1")[2])
    return bool(length) and len(body) == int(length[1]) or body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_endpoint_reads_them(server, path):
    type, body = ENDPOINTS[path]
    for size in (1, 7, len(body)):
        pieces = (body[i : i + size] for i in range(0, len(body), size))
        headers = {"Content-Type": type}
        answer = requests.post(server.url + path, data=pieces, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_endpoint_refuses_what_is_over_the_limit(server, path):
    type, _ = ENDPOINTS[path]
    started = time.monotonic()
    pieces = (b"x" * 65536 for _ in range(16))
    headers = {"Content-Type": type}
    answer = requests.post(server.url + path, data=pieces, headers=headers, timeout=60)
    assert answer.status_code == 413
    assert time.monotonic() - started < 10


def test_an_endless_body_is_refused_and_its_connection_ends(server):
    started = time.monotonic()
    with server.connect() as sock:
        sock.settimeout(20)
        sock.sendall(head())
        sent = 0
        with pytest.raises(OSError):
            while time.monotonic() - started < 30:
                sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
    assert sent < 64 * LIMIT and time.monotonic() - started < 20


BODY = json.dumps(CHAT).encode()
PADDED = BODY[:-1] + b" " * (LIMIT - len(BODY)) + b"}"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (head() + chunks(BODY, 9) + b"0\r\n\r\n", 200),
        (head() + chunks(BODY, 9) + b"0\r\nX-Checksum: 1\r\nX-More: 2\r\n\r\n", 200),
        (head() + b"5;a=b;c\r\n" + BODY[:5] + b"\r\n" + chunks(BODY[5:], 99) + b"0\r\n\r\n", 200),
        (head() + b"%X\r\n" % len(BODY) + BODY + b"\r\n000\r\n\r\n", 200),
        (head() + chunks(PADDED, 9) + b"0\r\n\r\n", 200),
        (head() + chunks(BODY[:-1] + b" " * 90_000 + b"}", 1) + b"0\r\n\r\n", 200),
        (head() + chunks(PADDED + b" ", 4096) + b"0\r\n\r\n", 413),
        (head() + b"0\r\n\r\n", 422),  # as this profile says it of no JSON
        (head() + b"zz\r\n" + BODY, 400),
        (head() + b"-5\r\n" + BODY, 400),
        (head() + b"0x5\r\n" + BODY, 400),
        (head() + b"5\r\n" + BODY[:5] + b"XX", 400),
        (head() + b"5\n" + BODY[:5] + b"\n0\n\n" + b"\r\n", 400),
        (head() + b"\r\n\r\n", 400),
        (head() + chunks(BODY, 9) + b"0\r\nContent-Length: 3\r\n\r\n", 400),
        (head() + chunks(BODY, 9) + b"0\r\nno trailer\r\n\r\n", 400),
        (head() + b"ffffffffffffffff\r\n" + b" " * (LIMIT + 9000), 413),
    ],
    ids=["chunks", "trailers", "extensions", "capitals", "at the limit", "single bytes",
         "over the limit", "empty", "no size", "negative size", "marked size", "no end of a chunk",
         "bare line feeds", "empty size", "length in a trailer", "a trailer that is none",
         "a size beyond all"],
)  # fmt: skip
def test_what_is_sent_byte_by_byte(server, raw, status):
    assert answer_of(server, raw)[0] == status


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (head("/v1/chat/completions", JSON, "Content-Length: 5") + chunks(BODY, 9), 400),
        (head("/v1/chat/completions", JSON, "Transfer-Encoding: chunked"), 400),
        (head("/v1/chat/completions", JSON, "Transfer-Encoding: gzip") + chunks(BODY, 9)
         + b"0\r\n\r\n", 415),
        (head().replace(b"chunked", b"xchunked"), 400),
        (head().replace(b"chunked", b"identity"), 400),
        (head().replace(b"HTTP/1.1", b"HTTP/1.0") + chunks(BODY, 9), 400),
        (head().replace(b"Transfer-Encoding: chunked", b"Content-Length: 5\r\nContent-Length: 6"),
         400),
        (head().replace(b"Transfer-Encoding: chunked", b"Content-Length: +5"), 400),
    ],
    ids=["with a length", "twice", "compressed", "unknown", "identity", "in HTTP/1.0",
         "two lengths", "a signed length"],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(server, raw, status):
    assert answer_of(server, raw)[0] == status


def test_nothing_behind_a_malformed_body_is_taken_for_a_request(server):
    smuggled = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    for raw in (head() + b"zz\r\n" + smuggled, head() + b"5\r\nabcdeXX" + smuggled):
        with server.connect() as sock:
            sock.settimeout(20)
            sock.sendall(raw)
            received = b""
            while piece := sock.recv(65536):
                received += piece
        assert received.count(b"HTTP/1.1 ") == 1 and received.startswith(b"HTTP/1.1 400 ")


def test_the_next_request_of_a_connection_follows_a_body_in_chunks(server):
    raw = head() + chunks(BODY, 9) + b"0\r\nX-T: 1\r\n\r\n"
    with server.connect() as sock:
        sock.settimeout(20)
        sock.sendall(raw + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 2 and received.endswith(b'{"status":"ok"}')


def test_a_caller_that_expects_to_be_asked_is_asked(server):
    with server.connect() as sock:
        sock.settimeout(20)
        sock.sendall(head("/v1/chat/completions", JSON, "Expect: 100-continue"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(chunks(BODY, 9) + b"0\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("more", [("HTTP_1_1",), ("HTTP_2",), ("HTTP_1_1", "expect")])
def test_a_jdks_client_posts_a_stream(server, tmp_path, tmp_path_factory, more):
    """With HTTP_2 it offers an upgrade, as it does unless told otherwise."""
    if shutil.which("java") is None or shutil.which("javac") is None:
        pytest.skip("java is not installed (Debian: apt-get install default-jdk-headless)")
    _post(server, tmp_path, ["java", str(SOURCES / "Post.java")], more)


def test_nodes_fetch_posts_a_stream(server, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed (Debian: apt-get install nodejs)")
    _post(server, tmp_path, ["node", str(SOURCES / "post.mjs")])


def _post(server, tmp_path, command, more=()):
    """Have another client post JSON; a form; and what is too large."""
    file = tmp_path / "body"
    for path, body, status in (
        ("/v1/chat/completions", BODY, "200"),
        ("/v1/code/generate", ENDPOINTS["/v1/code/generate"][1], "200"),
        ("/v1/chat/completions", PADDED + b" " * 9, "413"),
    ):
        file.write_bytes(body)
        type = FORM if path.startswith("/v1/code") else JSON
        done = subprocess.run(
            [*command, server.url + path, str(file), type, *more],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[0] == status, done.stdout
