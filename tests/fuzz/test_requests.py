"""Bytes on a connection that are nearly a request: an answer or an end, no 500 and no wait."""

import socket
import time

import pytest
from hypothesis import given

from tests.fuzz.mutations import fuzzing, spoilt

BODY = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":2,"model":"qwen-demo"}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
REQUESTS = [
    HEAD + LENGTH + BODY,
    HEAD + CHUNKS,
    HEAD + b"Expect: 100-continue\r\n" + LENGTH + BODY,
    HEAD + LENGTH + BODY + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/models?x=%41 HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc\r\nAccept: */*\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nOrigin: http://x\r\nAccess-Control-Request-Method: POST\r\n\r\n",
    b"GET http://x/health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n",
]
SECONDS = 1.0
CASES: list[bytes] = []


def asked(server, data):
    """Send bytes and no more; return what comes back, and after how long it ended."""
    host, port = server.url.removeprefix("http://").split(":")
    started, received = time.monotonic(), b""
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                received += piece
        except ConnectionError:
            pass  # refused before it was read
    return received, time.monotonic() - started


def check(server, data):
    received, seconds = asked(server, data)
    assert b"HTTP/1.1 500" not in received and b"Traceback" not in received, (data, received)
    assert not received or received.startswith(b"HTTP/1."), (data, received)
    return seconds


@fuzzing
@given(spoilt(REQUESTS))
def test_no_bytes_on_a_connection_make_the_server_fail(fuzzed, data):
    if check(fuzzed, data) > SECONDS:
        assert min(check(fuzzed, data) for _ in range(3)) <= SECONDS, data


@pytest.mark.parametrize("data", CASES)
def test_what_was_found_stays_mended(fuzzed, data):
    check(fuzzed, data)


@pytest.mark.parametrize("data", REQUESTS)
def test_what_is_changed_was_a_request(fuzzed, data):
    assert asked(fuzzed, data)[0].startswith(b"HTTP/1.")
