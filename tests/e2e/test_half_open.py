"""Callers that begin and do not go on: they end after a while, and others are served meanwhile."""

import resource
import selectors
import socket
import time

import pytest

from tests.running_server import wait_for

HALVES = {
    "a line": b"POST /v1/chat/completions HTTP/1.1\r\nHos",
    "a head": b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: 1\r\n",
    "nothing": b"",
}
BODY_HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HALF_BODIES = {
    "a body": BODY_HEAD + b'Content-Length: 100\r\n\r\n{"prompt"',
    "no body": BODY_HEAD + b"Content-Length: 100\r\n\r\n",
    "a chunk": BODY_HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\nabc",
    "chunks": BODY_HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
}


@pytest.fixture
def many_files():
    """Let this process and those it starts have as many connections as the test opens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip(f"the system allows {hard} open files (ulimit -Hn), and this needs 8192")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_from(server, address, sent):
    """Return a connection from an address of this machine on which a beginning was sent."""
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=30, source_address=(address, 0))
    if sent:
        sock.sendall(sent)
    return sock


def ends_of(socks, seconds):
    """Return when each connection was found to be closed, in seconds from now, or None."""
    started, ends = time.monotonic(), dict.fromkeys(socks)
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map() and (left := started + seconds - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                try:
                    data = key.fileobj.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    selector.unregister(key.fileobj)
                    ends[key.fileobj] = time.monotonic() - started
    for sock in socks:
        sock.close()
    return list(ends.values())


@pytest.mark.timing
def test_three_thousand_half_heads_end_while_others_are_served(many_files, start_server):
    server = start_server("--stub", "--head-timeout", "8")
    halves = list(HALVES.values())
    socks = [
        open_from(server, f"127.0.0.{2 + i % 2}", halves[i % len(halves)]) for i in range(3000)
    ]
    for i in range(5):
        started = time.monotonic()
        assert server.text(f"question {i}", max_tokens=5)
        assert time.monotonic() - started < 3
    ends = ends_of(socks, 30)
    assert None not in ends
    assert server.text("and still", max_tokens=5)
    wait_for(lambda: server.http_workers()[0].num_fds() < 200, 10)


@pytest.mark.slow
@pytest.mark.timing
def test_a_body_that_stops_ends_with_an_answer(start_server):
    server = start_server("--stub", "--profile", "all", "--socket-timeout", "2")
    halves = list(HALF_BODIES.values())
    socks = [open_from(server, "127.0.0.1", halves[i % len(halves)]) for i in range(300)]
    assert server.post("/generate", {"prompt": "x", "max_length": 2}).status_code == 200
    first = socks[0].recv(65536)
    assert first.startswith(b"HTTP/1.1 4")
    assert None not in ends_of(socks, 15)
    assert "Traceback" not in server.log


@pytest.mark.timing
def test_a_body_that_trickles_ends_too(start_server):
    server = start_server("--stub", "--socket-timeout", "2")
    with open_from(server, "127.0.0.1", HALF_BODIES["a body"]) as sock:
        started = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(60):
                sock.sendall(b" ")
                time.sleep(0.25)
        assert time.monotonic() - started < 12


@pytest.mark.slow
@pytest.mark.timing
def test_a_head_that_trickles_ends_too(start_server):
    server = start_server("--stub", "--head-timeout", "2")
    with open_from(server, "127.0.0.1", b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ") as sock:
        started = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(60):
                sock.sendall(b"a")
                time.sleep(0.25)
        assert time.monotonic() - started < 8


@pytest.mark.timing
def test_a_kept_connection_may_be_idle_for_longer_than_a_head_may_take(start_server):
    server = start_server("--stub", "--head-timeout", "1", "--socket-timeout", "1")
    with open_from(server, "127.0.0.1", b"") as sock:
        for _ in range(2):
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while not received.endswith(b'{"status":"ok"}'):
                received += sock.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
            time.sleep(2.5)


def test_an_address_has_only_so_many_connections(start_server):
    server = start_server("--stub", "--connections-per-address", "20")
    socks = [open_from(server, "127.0.0.2", b"") for _ in range(20)]
    for _ in range(3):
        with open_from(server, "127.0.0.2", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
            refused = sock.recv(65536)
            assert refused.startswith(b"HTTP/1.1 429 ") and b"rate_limit_error" in refused
    assert server.get("/livez").status_code == 200  # another address
    socks.pop().close()

    def is_served():
        with open_from(server, "127.0.0.2", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
            return sock.recv(65536).startswith(b"HTTP/1.1 200 ")

    wait_for(is_served, 10)
    for sock in socks:
        sock.close()
