import socket
import threading

import pytest

from tests.running_server import wait_for
from tests.wire.test_protocol import CARD
from workers.errors import ConfigError, ProtocolError
from workers.wire.connection import ConnectionEnded, connect
from workers.wire.framing import FrameReader, encode
from workers.wire.outbox import Outbox
from workers.wire.protocol import (
    Abort,
    Accepted,
    Attach,
    Generate,
    Hello,
    Ping,
    Pong,
    SamplingParams,
    Started,
    StepUpdate,
)
from workers.worker.listener import EngineListener


class Recorder:
    """A listener's handler that keeps what it is told."""

    def __init__(self):
        self.messages = []
        self.closed = []

    def on_message(self, connection_id, message):
        self.messages.append((connection_id, message))

    def on_closed(self, connection_id):
        self.closed.append(connection_id)


@pytest.fixture
def handler():
    return Recorder()


@pytest.fixture
def listener(tmp_path, handler):
    listener = EngineListener(
        tmp_path / "e.sock", lambda version: Hello(version, 1, 0, "", CARD), handler
    )
    listener.start()
    yield listener
    listener.close()


@pytest.fixture
def attach(tmp_path):
    connections = []

    def attach():
        connection, hello = connect(str(tmp_path / "e.sock"), "test")
        connections.append(connection)
        return connection, hello

    yield attach
    for connection in connections:
        connection.close()


def raw_socket(tmp_path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(str(tmp_path / "e.sock"))
    return sock


def test_a_handshake_brings_the_card_and_then_messages_pass_both_ways(
    tmp_path, attach, listener, handler
):
    connection, hello = attach()
    assert hello.card == CARD
    connection.send(Ping(7))
    wait_for(lambda: handler.messages)
    assert handler.messages == [(1, Ping(7))]
    listener.send(1, Accepted(9))
    assert connection.receive() == [Accepted(9)]
    connection.close()
    wait_for(lambda: handler.closed)
    assert handler.closed == [1]


def test_a_connection_that_ends_raises_at_once_in_a_blocked_reader(tmp_path, attach, listener):
    connection, _ = attach()
    raised = []

    def read():
        try:
            connection.receive()
        except ConnectionEnded as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    listener.close()
    thread.join(5)
    assert raised


def test_a_newer_peer_is_spoken_to_in_the_version_both_know_and_a_too_new_one_is_left(
    tmp_path, attach, listener
):
    with raw_socket(tmp_path) as sock:
        sock.sendall(encode(Attach(1, 9, "newer")))
        (hello,) = FrameReader("http").feed(sock.recv(65536))
        assert hello.version == 1
    with raw_socket(tmp_path) as sock:
        sock.sendall(encode(Attach(8, 9, "too new")))
        assert sock.recv(65536) == b""


@pytest.mark.parametrize(
    "frames",
    [encode(Ping(1)), b"\xff\xff\xff\xff", encode(Attach(1, 1, "a")) * 2, b"\0\0\0\2\xc1\xc1"],
)
def test_a_peer_that_breaks_the_contract_is_closed_and_others_go_on(
    tmp_path, attach, listener, frames
):
    good, _ = attach()
    with raw_socket(tmp_path) as bad:
        bad.sendall(frames)
        while bad.recv(65536):
            pass
    listener.send(1, Accepted(3))
    assert good.receive() == [Accepted(3)]


def test_a_peer_that_reads_nothing_is_dropped_when_its_outbox_is_full_and_never_waited_for(
    tmp_path, attach, listener, handler
):
    lazy, _ = attach()
    eager, _ = attach()
    frame = StepUpdate(started=[Started(i, 0) for i in range(150_000)])
    for _ in range(20):
        listener.send(1, frame)
    wait_for(lambda: handler.closed)
    assert handler.closed == [1]
    listener.send(2, Accepted(5))
    assert eager.receive() == [Accepted(5)]
    lazy.close()


def test_a_peer_is_pinged_and_dropped_when_it_stays_silent(tmp_path, attach, handler, monkeypatch):
    monkeypatch.setattr("workers.worker.listener.PING_SECONDS", 0.05)
    monkeypatch.setattr("workers.worker.listener.SILENCE_SECONDS", 0.5)
    listener = EngineListener(
        tmp_path / "e.sock", lambda version: Hello(version, 1, 0, "", CARD), handler
    )
    listener.start()
    talking, _ = attach()
    silent, _ = attach()
    for _ in range(20):
        (ping,) = talking.receive()
        talking.send(Pong(ping.nonce))
    assert handler.closed == [2]
    assert handler.messages == [], "answers to pings are the listener's own business"
    listener.close()
    silent.close()


def test_a_slow_reader_gets_every_byte_in_order(tmp_path, attach, listener):
    connection, _ = attach()
    sent = [StepUpdate(started=[Started(i * 1000 + k, 0) for k in range(250)]) for i in range(500)]
    for step in sent:
        listener.send(1, step)
    received = []
    while len(received) < len(sent):
        received += connection.receive()
    assert received == sent


def test_a_large_request_passes_through_a_small_socket_buffer(tmp_path, attach, listener, handler):
    connection, _ = attach()
    request = Generate(
        wid=1, request_id="r", prompt_ids=tuple(range(200_000)), params=SamplingParams(max_tokens=1)
    )
    connection.send(request)
    connection.send(Abort(1))
    wait_for(lambda: len(handler.messages) == 2)
    assert [message for _, message in handler.messages] == [request, Abort(1)]


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(tmp_path, attach, listener, handler):
    with pytest.raises(ConfigError, match="another engine listens"):
        EngineListener(tmp_path / "e.sock", lambda version: None, handler)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead.sock"))
    dead.close()
    revived = EngineListener(tmp_path / "dead.sock", lambda version: None, handler)
    revived.start()
    assert oct((tmp_path / "dead.sock").stat().st_mode)[-3:] == "660"
    revived.close()
    assert not (tmp_path / "dead.sock").exists()


def test_connecting_to_something_else_is_an_error(tmp_path, attach):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "e.sock"))
        server.listen()

        def answer():
            sock, _ = server.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(encode(Accepted(1)))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProtocolError, match="expected hello"):
            attach()
        thread.join()


def test_an_outbox_keeps_order_across_partial_writes():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outbox = Outbox(ours, limit=10_000_000)
    blocks = [bytes([i]) * 100_000 for i in range(20)]
    assert all(outbox.send(block) for block in blocks)
    received = bytearray()
    while len(received) < 2_000_000:
        received += theirs.recv(65536)
        assert outbox.flush()
    assert received == b"".join(blocks)
    assert outbox.num_waiting_bytes == 0
    theirs.close()
    assert not outbox.send(b"x") or not outbox.send(b"x")
    ours.close()


def test_running_out_of_descriptors_delays_a_connection_and_ends_nothing(
    tmp_path, attach, handler, monkeypatch
):
    monkeypatch.setattr("workers.worker.listener.PING_SECONDS", 0.1)
    listener = EngineListener(
        tmp_path / "e.sock", lambda version: Hello(version, 1, 0, "", CARD), handler
    )
    real, failures = listener._sock, []

    class Starved:
        def accept(self):
            if len(failures) < 3:
                failures.append(1)
                raise OSError(24, "Too many open files")
            return real.accept()

        def __getattr__(self, name):
            return getattr(real, name)

    listener._sock = Starved()
    listener.start()
    connection, hello = attach()
    assert hello.card == CARD and len(failures) == 3
    listener.close()
    with pytest.raises(ConnectionEnded):
        connection.receive()
