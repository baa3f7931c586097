import socket

import pytest

from qwenapi.serving.listener import HttpListener
from qwenapi.serving.probe import PATIENCE_SECONDS, Probe


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=1) as sock:
        sock.settimeout(5)
        yield HttpListener(sock)


def answer(listener, probe, now, text):
    """Let the probe ask and be answered."""
    probe.tick(now)
    connection, _ = listener.sock.accept()
    with connection:
        assert connection.recv(4096).startswith(b"GET /readyz ")
        connection.sendall(text)
    for _ in range(50):
        probe.tick(now)


@pytest.mark.parametrize(
    ("text", "is_ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"", False),
    ],
)
def test_200_is_readiness_and_nothing_else_is(listener, text, is_ready):
    probe = Probe(listener, pause=5)
    answer(listener, probe, 100, text)
    assert probe.is_ready is is_ready


def test_it_asks_again_after_its_pause_when_it_got_no_answer(listener):
    probe = Probe(listener, pause=5)
    probe.tick(100)
    probe.tick(100 + PATIENCE_SECONDS)
    assert not probe.is_ready
    listener.sock.accept()[0].close()
    probe.tick(104 + PATIENCE_SECONDS)
    answer(listener, probe, 105 + PATIENCE_SECONDS, b"HTTP/1.1 200 OK\r\n\r\n")
    assert probe.is_ready
    probe.stop()


def test_a_full_backlog_is_no_miss_and_never_waited_for(listener):
    probe = Probe(listener, pause=5)
    answer(listener, probe, 90, b"HTTP/1.1 200 OK\r\n\r\n")
    callers = []
    while len(callers) < 8:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.local_address)
        callers.append(sock)
    probe.tick(100)
    assert probe.is_ready
    probe.stop()
    for sock in callers:
        sock.close()
