import json
import socket
import stat

import pytest

from qwenapi.commands.control import ask
from workers.supervisor import admin
from workers.supervisor.admin import MAX_LINE_BYTES, AdminServer


class Asked:
    """A handler that answers when the test says so."""

    def __init__(self):
        self.requests = []
        self.reply = None

    def __call__(self, request):
        self.requests.append(request)
        return lambda: self.reply


@pytest.fixture
def asked():
    return Asked()


@pytest.fixture
def server(tmp_path, asked):
    server = AdminServer(tmp_path, asked)
    yield server
    server.close()


@pytest.fixture
def operator(server, tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(tmp_path / "admin.sock"))
        yield sock


def read(server, sock):
    for _ in range(3):
        server.tick()
    sock.setblocking(False)
    return sock.recv(65536)


def test_only_its_owner_may_open_it(server, tmp_path):
    assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600


def test_one_line_in_one_line_out_when_it_is_done(server, operator, asked):
    operator.sendall(b'{"command": ')
    server.tick()
    server.tick()
    operator.sendall(b'"status"}\n')
    with pytest.raises(BlockingIOError):
        read(server, operator)
    assert asked.requests == [{"command": "status"}]
    asked.reply = {"state": "ready"}
    assert json.loads(read(server, operator)) == {"state": "ready"}
    assert operator.recv(1) == b""


@pytest.mark.parametrize("line", [b"status\n", b"[1]\n", b"\xff\n", b"{\n", b"[" * 4000 + b"\n"])
def test_what_is_no_json_object_is_told_so(server, operator, asked, line):
    operator.sendall(line)
    assert "JSON" in json.loads(read(server, operator))["error"]
    assert not asked.requests


def test_who_says_too_much_or_nothing_is_dropped(server, operator, asked, tmp_path, monkeypatch):
    operator.sendall(b"x" * (MAX_LINE_BYTES + 1))
    assert read(server, operator) == b""
    monkeypatch.setattr(admin, "PATIENCE_SECONDS", 0)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / "admin.sock"))
        assert read(server, silent) == b""


def test_other_users_are_not_heard(server, tmp_path, monkeypatch):
    monkeypatch.setattr(admin, "peer_uid", lambda sock: 12345)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(tmp_path / "admin.sock"))
        assert "refused" in json.loads(read(server, stranger))["error"]
        assert stranger.recv(1) == b""


def test_who_leaves_before_the_answer_does_no_harm(server, operator, asked):
    operator.sendall(b'{"command": "reload"}\n')
    server.tick()
    server.tick()
    operator.close()
    asked.reply = {}
    server.tick()
    server.tick()


def test_the_end_of_the_supervisor_is_an_answer_too(server, operator, asked):
    operator.sendall(b'{"command": "drain"}\n')
    server.tick()
    server.tick()
    server.close()
    assert ask(operator, {}) is None
