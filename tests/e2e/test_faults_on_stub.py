"""Processes that die, hang and stop, on the stub engine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from qwenapi.settings.table import etc_dir
from tests.e2e.test_http_on_stub import raw_request
from tests.running_server import RunningServer, quickest, sse_events, wait_for

MESSAGES = [{"role": "user", "content": "hello 你好"}]
LONG = {"messages": MESSAGES, "max_tokens": 2000}
SLOW = ("--stub", "--stub-step-seconds", "0.01")


def engine_pid(server, engine=0):
    return server.row(engine)["pid"]


def replaced(server, pid, engine=0):
    return lambda: engine_pid(server, engine) != pid and server.get("/readyz").status_code == 200


def read_all(sock):
    received = b""
    while piece := sock.recv(65536):
        received += piece
        if received.endswith(b"0\r\n\r\n"):
            break
    return received


@pytest.mark.timing
def test_a_stopped_engine_turns_readiness_off_is_killed_and_replaced(start_server):
    server = start_server(*SLOW, "--step-timeout", "2")
    pid = engine_pid(server)
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for(lambda: server.get("/readyz").status_code == 503, 4)
    assert time.monotonic() - stopped < 3.5
    assert server.get("/livez").status_code == 200
    wait_for(replaced(server, pid), 20)
    assert server.text("again", max_tokens=5)
    assert "hangs (no sign of life" in server.log


@pytest.mark.timing
def test_an_idle_engine_that_is_stopped_is_not_ready_within_seconds_and_replaced(start_server):
    server = start_server(*SLOW)
    assert server.text("hello", max_tokens=3)
    pid = engine_pid(server)
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for(lambda: server.get("/readyz").status_code == 503, 8)
    assert time.monotonic() - stopped < 7.5
    wait_for(replaced(server, pid), 20)
    assert "while idle" in server.log
    assert server.text("again", max_tokens=5)


def test_a_short_step_timeout_does_not_kill_an_idle_engine(start_server):
    server = start_server(*SLOW, "--step-timeout", "0.4")
    pid = engine_pid(server)
    time.sleep(2)
    assert engine_pid(server) == pid and "hangs" not in server.log
    assert server.text("awake", max_tokens=3)


def test_a_request_is_answered_though_every_engine_it_could_go_to_dies(start_server):
    server = start_server(*SLOW, "--data-parallel-size", "2")
    wait_for(lambda: all(f"engine-{i}.sock connected" in server.log for i in (0, 1)))
    pids = [engine_pid(server, i) for i in (0, 1)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(server.chat, f"q{i}", max_tokens=3) for i in range(8)]
        time.sleep(0.3)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        statuses = {answer.result(timeout=40).status_code for answer in answers}
    assert statuses == {200}


def test_a_restart_that_fails_says_why(tmp_path, start_server):
    shutil.copytree(etc_dir() / "models" / "demo", tmp_path / "model")
    server = start_server(*SLOW, "--model", str(tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")
    os.kill(engine_pid(server), signal.SIGKILL)
    wait_for(lambda: "no such model directory" in server.log, 20)


def test_a_killed_http_worker_ends_only_its_own_streams_and_their_work(start_server):
    server = start_server(*SLOW, "--api-server-count", "2")
    sockets = [raw_request(server, LONG | {"stream": True}) for _ in range(12)]
    wait_for(lambda: server.row()["running"] == 12)
    workers = server.http_workers()
    assert len(workers) == 2
    workers[0].kill()
    wait_for(lambda: server.row()["running"] < 12, 5)
    survivors = server.row()["running"]
    ended = 0
    for sock in sockets:
        sock.setblocking(False)
        try:
            while piece := sock.recv(65536):
                assert b"[DONE]" not in piece
            ended += 1
        except BlockingIOError:
            pass
    assert ended == 12 - survivors
    wait_for(lambda: len(server.http_workers()) == 2, 10)
    for sock in sockets:
        sock.close()
    server.wait_until_idle()
    assert server.text("again", max_tokens=5)


def test_with_two_engines_one_may_die_while_the_other_serves(start_server):
    server = start_server(*SLOW, "--data-parallel-size", "2")
    wait_for(lambda: server.row(1)["pid"] and server.row(0)["pid"])
    pid = engine_pid(server, 0)
    os.kill(pid, signal.SIGKILL)
    statuses = [server.chat(f"question {i}", max_tokens=3).status_code for i in range(20)]
    assert statuses == [200] * 20
    wait_for(replaced(server, pid))


def test_two_engines_share_the_load_and_a_prefix_stays_with_one(start_server):
    server = start_server(*SLOW, "--data-parallel-size", "2")
    wait_for(
        lambda: "engine-1.sock connected" in server.log and "engine-0.sock connected" in server.log
    )
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda i: server.text(f"question number {i}", max_tokens=10), range(32)))

    def generated():
        return [server.row(i)["generated_tokens"] for i in (0, 1)]

    wait_for(lambda: sum(generated()) == 320)  # counted just after the last token is sent
    before = generated()
    assert min(before) > 0
    for _ in range(6):
        server.text("always the same question", max_tokens=10)
    wait_for(lambda: sum(generated()) == 380)
    assert sorted(now - then for now, then in zip(generated(), before, strict=True)) == [0, 60]


def test_a_limited_group_is_limited_over_all_engines_together(start_server):
    server = start_server(
        *SLOW, "--data-parallel-size", "2", "--max-running", "2", "--max-waiting", "3"
    )
    wait_for(
        lambda: "engine-1.sock connected" in server.log and "engine-0.sock connected" in server.log
    )
    with ThreadPoolExecutor(20) as pool:
        statuses = list(
            pool.map(lambda i: server.chat(f"q{i}", max_tokens=60).status_code, range(20))
        )
    assert (statuses.count(200), statuses.count(503)) == (5, 15)


def test_sigterm_lets_running_streams_finish_and_refuses_new_connections(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.05")
    idle = requests.Session()
    assert (
        idle.get(server.url + "/livez").status_code == 200
    )  # a kept-alive connection must not hold up the end
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(server.chat, "hello", max_tokens=60, stream=True)
        wait_for(lambda: server.row()["running"] == 1)
        started = time.monotonic()
        assert server.stop() == 0
        assert sse_events(stream.result().content)[-1] == "[DONE]"
    assert time.monotonic() - started < 15
    assert "Traceback" not in server.log and "[error" not in server.log
    with pytest.raises(requests.ConnectionError):
        server.get("/livez")
    idle.close()


def test_a_second_sigterm_ends_at_once(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.05")
    processes = server.tree()
    with raw_request(server, LONG | {"stream": True}) as sock:
        wait_for(lambda: server.row()["running"] == 1)
        server.process.terminate()
        wait_for(lambda: "stopping within" in server.log)
        assert sock.recv(65536)
        server.process.terminate()
        server.process.wait(5)
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive


def test_a_killed_supervisor_leaves_no_orphans(start_server):
    server = start_server(*SLOW)
    processes = server.tree()
    assert len(processes) >= 3
    server.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


def test_after_a_killed_supervisor_a_start_in_its_place_has_the_conversations_whole(
    start_server, tmp_path
):
    """Start it as systemd would: same run directory, same state, same port."""
    place = ("--stub", "--run-dir", str(tmp_path / "run"), "--profile", "coder")
    place = (*place, "--default-max-tokens", "5")
    first = start_server(*place)
    answer = requests.post(f"{first.url}/v1/code/chat_stream", data={"prompt": "one"}, timeout=60)
    preface, _, said = answer.text.partition("\n---\n")
    conversation = f"/v1/code/conversations/{preface.removeprefix('conversation_id:')}"
    processes, port = first.tree(), first.url.rpartition(":")[2]
    first.process.kill()
    assert not psutil.wait_procs(processes, timeout=30)[1]
    second = start_server(*place, "--state-dir", str(first.run_dir / "state"), "--port", port)
    assert second.url == first.url
    kept = second.get(conversation).json()["messages"]
    assert [message["content"] for message in kept] == ["one", said] and said
    more = {"prompt": "two", "conversation_id": conversation.rpartition("/")[2]}
    assert requests.post(f"{second.url}/v1/code/chat_stream", data=more, timeout=60).text
    kept = second.get(conversation).json()["messages"]
    assert [message["content"] for message in kept][::2] == ["one", "two"]


def test_a_killed_gunicorn_is_started_again(start_server):
    server = start_server(*SLOW)
    (worker,) = server.http_workers()
    arbiter = worker.parent()
    arbiter.kill()

    def is_back():
        try:
            return (
                server.get("/readyz").status_code == 200
                and server.http_workers()[0].pid != worker.pid
            )
        except (requests.RequestException, IndexError, psutil.NoSuchProcess):
            return False

    wait_for(is_back, 15)
    assert server.text("again", max_tokens=3)


@pytest.fixture
def run_cli():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "qwenapi", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


def test_a_start_that_cannot_succeed_says_why_in_one_line_and_exits_78(run_cli, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_cli("serve", "--stub", "--port", port, "--run-dir", tmp_path / "a")
    assert done.returncode == 78
    assert f"cannot listen on 127.0.0.1:{port}" in last_line(done)
    done = run_cli(
        "serve", "--model", tmp_path / "missing", "--port", "0", "--run-dir", tmp_path / "b"
    )
    assert done.returncode == 78
    assert "no such model directory" in last_line(done)
    (tmp_path / "empty").mkdir()
    done = run_cli(
        "serve", "--model", tmp_path / "empty", "--port", "0", "--run-dir", tmp_path / "c"
    )
    assert done.returncode == 78 and "config.json" in last_line(done)
    shutil.copytree(etc_dir() / "models" / "demo", tmp_path / "text")
    (tmp_path / "text" / "tokenizer.json").write_text("{}")
    done = run_cli(
        "serve", "--model", tmp_path / "text", "--port", "0", "--run-dir", tmp_path / "d"
    )
    assert done.returncode == 78 and "tokenizer.json" in last_line(done)
    done = run_cli("serve", "--profile", "nonesuch")
    assert done.returncode == 78 and "nonesuch" in last_line(done)
    done = run_cli("serve", "--max-model-length", "5")
    assert done.returncode == 2 and "--max-model-len" in last_line(done)


def test_an_address_open_to_other_machines_is_served_with_a_warning(start_server):
    server = start_server(*SLOW, "--host", "0.0.0.0")
    assert "0.0.0.0 is open to every machine" in server.log
    port = server.url.rsplit(":", 1)[1]
    assert requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200


def test_a_second_supervisor_on_one_run_directory_is_told_of_the_first(start_server, run_cli):
    server = start_server(*SLOW)
    done = run_cli("serve", "--stub", "--port", "0", "--run-dir", server.run_dir)
    assert done.returncode == 78
    assert f"already running, pid {server.process.pid}" in last_line(done)
    assert server.text("unharmed", max_tokens=2)


def test_check_validates_and_starts_nothing(run_cli, monkeypatch):
    assert run_cli("check").returncode == 0
    assert run_cli("check", "--port", "99999").returncode == 78
    monkeypatch.setenv("QWENAPI_PROT", "8000")
    done = run_cli("check")
    assert done.returncode == 78 and "QWENAPI_PORT" in last_line(done)


def test_the_two_halves_run_apart_and_the_model_outlives_http(tmp_path, start_server):
    model = RunningServer(tmp_path / "model", "--stub", command="model").wait_until_ready()
    try:
        first = start_server("--model-run-dir", str(tmp_path / "model"), command="http")
        assert first.text("hello", max_tokens=3)
        pid = engine_pid(model)
        assert first.stop() == 0
        second = start_server("--model-run-dir", str(tmp_path / "model"), command="http")
        assert second.text("hello", max_tokens=3)
        assert engine_pid(model) == pid
    finally:
        assert model.stop() == 0


def test_a_http_half_without_engines_says_so_and_waits_for_them(tmp_path, start_server):
    http = start_server("--model-run-dir", str(tmp_path / "model"), command="http", ready=False)
    wait_for(lambda: "http started" in http.log)
    port = next(
        c.laddr.port
        for c in psutil.Process(http.process.pid).net_connections()
        if c.status == "LISTEN"
    )
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: requests.get(url + "/livez", timeout=10).status_code == 200)
    seconds, answer = quickest(
        lambda: requests.post(url + "/v1/chat/completions", json={"messages": MESSAGES}, timeout=10)
    )
    assert seconds < 1, "nobody waits for a model half that was never there"
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    assert answer.json()["error"]["code"] == "engine_unavailable"
    assert requests.get(url + "/readyz", timeout=10).status_code == 503
    model = RunningServer(tmp_path / "model", "--stub", command="model").wait_until_ready()
    http.wait_until_ready()
    assert http.text("hello", max_tokens=3)
    threading.Thread(target=model.stop).start()
    wait_for(lambda: requests.get(url + "/readyz", timeout=10).status_code == 503)
