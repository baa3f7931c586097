"""An HTTP half whose engine is by TCP: the same answers, whatever the way there does.

The engine is this test's, and between the two is a proxy that it can cut.
"""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tests.e2e.test_replay import completion
from tests.running_server import wait_for
from tests.wire.tcp_engine import TcpEngine
from workers.wire.endpoint import endpoint_path

NUM_STREAMS = 8


class Proxy:
    """Passes bytes both ways, until it is told to end connections or to swallow what comes."""

    def __init__(self, port):
        self._port = port
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        self._pairs = []
        self._open = threading.Event()
        self._open.set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self):
        for sock in self._pairs:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended

    def swallow(self):
        """Let nothing pass over the connections there are, and everything over those to come."""
        self._open.clear()
        self._open = threading.Event()
        self._open.set()

    def stop(self):
        self._open.set()
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for sock in self._pairs:
            sock.close()

    def _accept(self):
        while True:
            try:
                ours, _ = self._sock.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self._port))
            is_open = self._open
            self._pairs += [ours, theirs]
            for pair in ((ours, theirs), (theirs, ours)):
                thread = threading.Thread(target=self._pass, args=(*pair, is_open))
                thread.start()
                self._threads.append(thread)

    def _pass(self, source, target, is_open):
        try:
            while data := source.recv(65536):
                if not is_open.is_set():
                    continue
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was cut


@pytest.fixture
def engine(tmp_path):
    engine = TcpEngine(tmp_path, stub_step_seconds=0.01)
    yield engine
    engine.stop()


@pytest.fixture
def proxy(engine):
    proxy = Proxy(engine.worker.port)
    yield proxy
    proxy.stop()


@pytest.fixture
def server(tmp_path, engine, proxy, start_server):
    folder = tmp_path / "engines"
    folder.mkdir()
    msgspec.structs.replace(engine.endpoint, port=proxy.port).write(endpoint_path(folder, 3))
    return start_server("--model-run-dir", str(folder), command="http")


def asks(num_tokens):
    return [completion(seed, stream=True, max_tokens=num_tokens) for seed in range(NUM_STREAMS)]


def test_answers_over_tcp_are_those_of_a_unix_socket(tmp_path, server, start_server):
    (tmp_path / "engine-3.tcp").unlink()
    local = start_server("--model-run-dir", str(tmp_path), command="http")
    for ask in asks(50):
        assert ask(server) == ask(local)


def test_a_connection_that_is_cut_is_made_again_and_no_token_is_lost(server, proxy, engine):
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        whole = list(pool.map(lambda ask: ask(server), asks(200)))
        running = [pool.submit(ask, server) for ask in asks(200)]
        wait_for(lambda: engine.memory.read(3)["running"] == NUM_STREAMS)
        proxy.cut()
        assert [stream.result() for stream in running] == whole
    assert "engine-3.tcp lost" in server.log and "Traceback" not in server.log
    (row,) = server.get("/ui/status.json").json()["engines"]
    assert row["node"] == "node-1" and row["state"] == "ready"


@pytest.mark.slow
def test_a_way_that_swallows_everything_is_noticed_and_left(server, proxy, engine):
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        whole = list(pool.map(lambda ask: ask(server), asks(200)))
        running = [pool.submit(ask, server) for ask in asks(200)]
        wait_for(lambda: engine.memory.read(3)["running"] == NUM_STREAMS)
        proxy.swallow()
        assert [stream.result() for stream in running] == whole
    assert "silent for 15 s" in server.log
