"""An engine's TCP socket: who gets in, who does not, and that streams are a Unix socket's."""

import errno
import logging
import shutil
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.running_server import wait_for
from tests.wire.certificates import make_certificates
from tests.wire.tcp_engine import SECRET, TcpEngine
from tests.wire.test_protocol import CARD
from workers.errors import ProtocolError
from workers.wire import connection as connection_module
from workers.wire.connection import Connection, ConnectionEnded, ConnectionSilent, connect
from workers.wire.endpoint import Endpoint, endpoint_path
from workers.wire.engine_stats import ENGINE_LAYOUT, Phase
from workers.wire.framing import encode
from workers.wire.handshake import EngineProof, prove
from workers.wire.protocol import (
    PROTOCOL_VERSION,
    Attach,
    Finished,
    Generate,
    Hello,
    Pong,
    SamplingParams,
    SlotUpdate,
    StepUpdate,
)
from workers.wire.shared_memory import SharedMemory
from workers.wire.slot_mirror import SlotMirror
from workers.worker import tcp_door
from workers.worker.tcp_door import DoorSpec

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")


@pytest.fixture(params=["plain", pytest.param("tls", marks=needs_openssl)])
def engine(tmp_path, request):
    tls = make_certificates(tmp_path / "ca") if request.param == "tls" else None
    engine = TcpEngine(tmp_path, tls)
    yield engine
    engine.stop()


@pytest.fixture
def plain(tmp_path):
    engine = TcpEngine(tmp_path)
    yield engine
    engine.stop()


def ask(engine, path, num_tokens):
    """Return the tokens of some requests at once, by wire id, as they came over a connection."""
    connection, _ = engine.connect(path)
    asked = range(256, 256 * 9, 256)
    for wid in asked:
        params = SamplingParams(max_tokens=num_tokens, seed=wid, logprobs=2)
        connection.send(
            Generate(wid=wid, request_id="r", prompt_ids=tuple(range(500)), params=params)
        )
    chunks, finished = {wid: [] for wid in asked}, []
    while len(finished) < len(chunks):
        for message in connection.receive():
            if isinstance(message, StepUpdate):
                finished += [ending for ending in message.finished if isinstance(ending, Finished)]
                for chunk in message.chunks:
                    chunks[chunk.wid] += zip(chunk.token_ids, chunk.logprobs, strict=True)
    connection.close()
    return chunks, sorted(finished, key=lambda ending: ending.wid)


def test_streams_over_tcp_are_those_of_a_unix_socket(engine):
    by_tcp = ask(engine, engine.tcp, 300)
    assert all(len(tokens) == 300 for tokens in by_tcp[0].values())
    assert by_tcp == ask(engine, engine.unix, 300)


def test_a_large_request_passes(engine):
    connection, hello = engine.connect()
    assert hello.node == "node-1"
    params = SamplingParams(max_tokens=1, logit_bias={i: 1.0 for i in range(100_000)})
    connection.send(Generate(wid=256, request_id="r", prompt_ids=(5, 6), params=params))
    endings = []
    while not endings:
        endings = [
            message for message in connection.receive() if getattr(message, "finished", None)
        ]
    connection.close()


def test_the_slot_arrives_where_its_memory_cannot_be_read(engine):
    connection, hello = engine.connect()
    mirror = SlotMirror(SharedMemory.private(ENGINE_LAYOUT, 4), hello.engine_index)
    before = time.monotonic_ns()
    while mirror.memory.read(3)["generation"] != hello.generation:
        for message in connection.receive():
            if isinstance(message, SlotUpdate):
                mirror.take(message)
    theirs, ours = engine.memory.read(3), mirror.memory.read(3)
    assert ours["total_blocks"] == theirs["total_blocks"] == 77
    assert ours["phase"] == Phase.IDLE and ours["beat_ns"] > before - 2e9
    assert mirror.memory.is_leased(3)
    connection.close()
    mirror.end()
    assert not mirror.memory.is_leased(3)


def test_a_slot_of_another_versions_layout_is_left_alone(caplog):
    mirror = SlotMirror(SharedMemory.private(ENGINE_LAYOUT), 0)
    for _ in range(2):
        mirror.take(SlotUpdate(1, 0, (7, 7)))
    assert set(mirror.memory.values(0)) == {0}
    assert caplog.text.count("another version's layout") == 1
    mirror.end()


def test_the_address_is_for_the_owners_eyes(plain):
    assert plain.tcp.stat().st_mode & 0o777 == 0o600
    assert Endpoint.read(plain.tcp) == plain.endpoint
    assert not list(plain.tcp.parent.glob(".engine*"))
    assert SECRET.decode() not in repr(DoorSpec("h", SECRET))
    plain.tcp.write_text('{"host": 3}')
    with pytest.raises(ProtocolError, match="not an engine's address"):
        plain.connect()


STRANGERS = {
    "garbage": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 4096, "does not speak this protocol"),
    "one who closes at once": (b"", "went without having proved itself"),
    "half an opening": (b"qwenapi1" + b"n" * 10, "went without having proved itself"),
    "a wrong proof": (b"qwenapi1" + b"n" * 32 + b"p" * 32, "does not know the secret"),
    "frames in the place of a proof": (
        b"qwenapi1" + b"n" * 32 + encode(Attach(1, 1, "a" * 40)),
        "does not know the secret",
    ),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_is_refused_logged_once_and_nothing_of_it_is_read(plain, caplog, who):
    data, reason = STRANGERS[who]
    for _ in range(20):
        with plain.dial() as sock:
            heard = b""
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while piece := sock.recv(4096):
                    heard += piece
            except OSError:
                pass  # what it had sent beyond a proof's size was never read
        assert len(heard) in (0, 64), "an answer to an opening, and never a hello"
    wait_for(lambda: plain.num_visitors == 0)
    assert plain.num_peers == 0
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1 and reason in said[0] and "127.0.0.1" in said[0]


def test_who_says_nothing_is_sent_away_in_time(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tcp_door, "HANDSHAKE_SECONDS", 0.2)
    engine = TcpEngine(tmp_path)
    silent = [engine.dial() for _ in range(5)]
    for sock in silent:
        assert sock.recv(10) == b""
        sock.close()
    assert caplog.text.count("says nothing") == 1
    engine.stop()


def test_a_crowd_at_the_door_keeps_nobody_out_who_knows_the_secret(plain):
    crowd = [plain.dial() for _ in range(tcp_door.MAX_VISITORS + 30)]
    connection, hello = plain.connect()
    assert hello.node == "node-1" and plain.num_visitors <= tcp_door.MAX_VISITORS
    connection.close()
    for sock in crowd:
        sock.close()


@needs_openssl
def test_one_of_a_crowd_that_was_sent_away_may_have_spoken_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(tcp_door, "MAX_VISITORS", 1)
    engine = TcpEngine(tmp_path, make_certificates(tmp_path / "ca"))
    door = engine.worker._door
    first = engine.dial()
    wait_for(lambda: door._visitors)
    visitor = next(iter(door._visitors))
    second = engine.dial()
    wait_for(lambda: visitor not in door._visitors)
    door._hear(visitor)  # its event was found together with the second's
    connection, _ = engine.connect()
    connection.close()
    for sock in (first, second):
        sock.close()
    engine.stop()


def test_a_door_without_descriptors_is_left_alone_until_the_next_tick(plain, monkeypatch):
    door = plain.worker._door
    without = SimpleNamespace(accept=Mock(side_effect=OSError(errno.EMFILE, "too many")))
    with monkeypatch.context() as patched:
        patched.setattr(door, "_selector", Mock())
        patched.setattr(door, "_sock", without)
        door._accept()
        door._selector.unregister.assert_called_once_with(without)
        door.tick(0.0)
        door._selector.register.assert_called_once()


def test_what_comes_at_once_behind_a_hello_is_received_next(tmp_path):
    ours, theirs = socket.socketpair()
    hello = Hello(PROTOCOL_VERSION, 1, 0, "", CARD)
    theirs.sendall(encode(hello) + encode(Pong(7)))
    connection = Connection(ours)
    assert connection.receive_hello("here") == hello
    assert connection.receive() == [Pong(7)]
    connection.close()
    theirs.close()


def test_after_half_a_frame_nothing_more_is_read():
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    theirs.sendall(encode(Pong(7)))
    ours.settimeout(0.05)
    with pytest.raises(ConnectionSilent):
        params = SamplingParams(max_tokens=1)
        connection.send(Generate(wid=1, request_id="r" * 9_000_000, prompt_ids=(1,), params=params))
    with pytest.raises(ConnectionSilent):
        connection.receive()
    connection.close()
    theirs.close()


def test_refusals_are_counted_for_the_next_line(plain, caplog, monkeypatch):
    monkeypatch.setattr(tcp_door, "LOG_SECONDS", 0.0)
    door = plain.worker._door
    door._refused["odd"] = (0.0, 7)
    door._note_refusal("10.0.0.1", "odd")
    assert "refused a connection from 10.0.0.1: odd, and 7 more since" in caplog.text


def test_a_wrong_secret_is_seen_by_both_sides(plain, caplog):
    Endpoint(host="127.0.0.1", port=plain.worker.port, secret=b"x" * 32, node="n").write(plain.tcp)
    with pytest.raises(ProtocolError, match="does not know the engine's secret"):
        plain.connect()
    wait_for(lambda: "went without having proved itself" in caplog.text)
    assert plain.num_peers == 0


class Impostor:
    """Listens where an engine was, and answers the first bytes with what it is given."""

    def __init__(self, answer):
        self.heard = b""
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._serve, args=(answer,))
        self.thread.start()

    def _serve(self, answer):
        sock, _ = self.sock.accept()
        with sock:
            self.heard += sock.recv(40)
            sock.sendall(answer(self.heard))
            while piece := sock.recv(4096):
                self.heard += piece


def relayed(opening):
    """Return what an engine of another start would say."""
    return EngineProof(b"another").feed(opening)


@pytest.mark.parametrize("answer", [lambda opening: b"\0" * 64, lambda opening: opening, relayed])
def test_an_impostor_on_the_port_gets_nothing(tmp_path, answer):
    impostor = Impostor(answer)
    port = impostor.sock.getsockname()[1]
    path = endpoint_path(tmp_path, 0)
    Endpoint(host="127.0.0.1", port=port, secret=SECRET, node="n").write(path)
    with monkeypatched_patience(0.5), pytest.raises((ProtocolError, TimeoutError)):
        connect(str(path), "test")
    impostor.thread.join(5)
    impostor.sock.close()
    assert len(impostor.heard) == 40, "the opening, no proof, no attach"


def monkeypatched_patience(seconds):
    patch = pytest.MonkeyPatch.context()

    class Patience:
        def __enter__(self):
            patch.__enter__().setattr(connection_module, "HANDSHAKE_SECONDS", seconds)

        def __exit__(self, *error):
            return patch.__exit__(*error)

    return Patience()


def test_a_truncated_frame_of_one_who_is_in_is_never_acted_on(plain):
    sock = plain.dial()
    prove(sock, SECRET, 5)
    sock.sendall(encode(Attach(1, 1, "half")))
    params = SamplingParams(max_tokens=1)
    frame = encode(Generate(wid=256, request_id="r", prompt_ids=(1, 2, 3), params=params))
    sock.sendall(frame[:-1])
    wait_for(lambda: plain.num_peers == 1)
    sock.close()
    wait_for(lambda: plain.num_peers == 0)
    assert not plain.worker._live and not plain.worker._admission.num_admitted


def test_a_peer_that_falls_silent_is_a_cut_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(connection_module, "SILENCE_SECONDS", 0.6)
    engine = TcpEngine(tmp_path)
    connection, _ = engine.connect()
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        assert connection.receive(), "its figures come while it does nothing"
    monkeypatch.setattr(engine.worker._listener, "_send_slot", lambda: None)
    with pytest.raises(ConnectionSilent):
        for _ in range(100):
            connection.receive()
    connection.close()
    engine.stop()


def test_an_engine_that_ends_is_seen_at_once(plain):
    connection, _ = plain.connect()
    plain.stop()
    with pytest.raises(ConnectionEnded) as ended:
        while True:
            connection.receive()
    assert not isinstance(ended.value, ConnectionSilent)
    connection.close()


@needs_openssl
def test_tls_wants_a_certificate_of_the_authority_from_both(tmp_path, caplog):
    engine = TcpEngine(tmp_path, make_certificates(tmp_path / "ours"))
    others = make_certificates(tmp_path / "theirs")
    with pytest.raises(OSError, match="certificate verify failed"):
        connect(str(engine.tcp), "test", others)
    unknown = replace(others, ca=engine.tls.ca)  # it trusts the engine, who does not trust it
    with pytest.raises((OSError, ProtocolError, ConnectionEnded)):
        connect(str(engine.tcp), "test", unknown)
    with pytest.raises(ProtocolError, match="set --wire-tls-cert"):
        connect(str(engine.tcp), "test")
    with engine.dial() as sock, pytest.raises((OSError, ProtocolError)):
        prove(sock, SECRET, 5)  # one who speaks plainly
    wait_for(lambda: "TLS failed" in caplog.text)
    assert engine.num_peers == 0
    engine.stop()
