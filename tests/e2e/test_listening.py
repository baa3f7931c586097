"""Where callers reach a service: a Unix socket of its own, or one handed over by systemd."""

import os
import signal
import socket
import stat
import subprocess
import sys

import psutil

from tests.e2e.systemd import hand_over

QUESTION = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def chat(server):
    return server.request("POST", "/v1/chat/completions", QUESTION)


def test_a_unix_socket_is_listened_on_for_owner_and_group_and_removed_at_the_end(
    tmp_path, start_server
):
    path = tmp_path / "http.sock"
    server = start_server("--stub", "--uds", str(path))
    assert server.url == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert chat(server)[0] == 200
    listening = psutil.Process(server.process.pid).net_connections("inet")
    assert not listening, "it listens on a port as well"
    assert server.stop() == 0
    assert not path.exists()


def test_a_socket_file_left_behind_is_replaced_and_a_living_one_is_not(tmp_path, start_server):
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = start_server("--stub", "--uds", str(path))
    second = [sys.executable, "-m", "qwenapi", "http", "--uds", path, "--run-dir", tmp_path / "b"]
    done = subprocess.run(second, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and "another server does" in done.stderr
    assert chat(server)[0] == 200
    (tmp_path / "file").write_text("")
    second[5] = tmp_path / "file"
    done = subprocess.run(second, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and "no socket" in done.stderr
    assert (tmp_path / "file").exists()


def test_a_tcp_socket_handed_over_is_used_instead_of_binding_one(start_server):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        server = start_server("--stub", **hand_over(sock))
        assert server.url == f"http://127.0.0.1:{port}"
        assert chat(server)[0] == 200
        assert server.stop() == 0
        # systemd keeps listening: whoever calls now waits for the next start.
        with socket.create_connection(("127.0.0.1", port), timeout=5) as caller:
            again = start_server("--stub", **hand_over(sock))
            caller.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert caller.recv(100).startswith(b"HTTP/1.1 200")
        assert again.stop() == 0


def test_a_unix_socket_handed_over_survives_a_killed_arbiter_and_the_service(
    tmp_path, start_server
):
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        server = start_server("--stub", **hand_over(sock))
        assert server.url == f"unix:{path}"
        assert chat(server)[0] == 200
        (worker,) = server.http_workers()
        os.kill(worker.ppid(), signal.SIGKILL)
        worker.wait(10)
        assert chat(server)[0] == 200, "a caller in the backlog was not served"
        assert server.stop() == 0
        assert path.exists(), "the socket file is systemd's"


def test_sockets_handed_over_to_another_process_are_not_taken(tmp_path, start_server):
    server = start_server("--stub", environ={"LISTEN_FDS": "1", "LISTEN_PID": "1"})
    assert chat(server)[0] == 200
