"""Reload, drain and status of a running service, on the stub engine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from qwenapi.settings.run_dir import run_dir
from qwenapi.settings.table import Settings, etc_dir
from tests.e2e.systemd import Notifications, hand_over
from tests.e2e.test_http_on_stub import raw_request
from tests.running_server import sse_events, wait_for

SLOW = ("--stub", "--stub-step-seconds", "0.02")
LONG = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4000}


def command(server, *words):
    return subprocess.run(
        [sys.executable, "-m", "qwenapi", *words, "--run-dir", str(server.run_dir)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def status(server):
    done = command(server, "status", "--json")
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def child(server, name):
    return next(c for c in status(server)["children"] if c["name"] == name)


class Load:
    """Short requests at a steady rate, each on a connection of its own, until stopped."""

    def __init__(self, server, rate):
        self.failures, self.num_good = [], 0
        self._server, self._pause = server, 1 / rate
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(40)
        self._timer = threading.Thread(target=self._run)
        self._timer.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._timer.join()
        self._pool.shutdown()

    def _run(self):
        while not self._is_over.wait(self._pause):
            self._pool.submit(self._one)

    def _one(self):
        try:
            answer = self._server.chat("hello", max_tokens=3)
            self.num_good += answer.status_code == 200
            if answer.status_code != 200:
                self.failures.append(answer.text)
        except requests.RequestException as error:
            self.failures.append(repr(error))


def test_a_reload_under_load_fails_no_request_and_cuts_no_stream(start_server):
    server = start_server(*SLOW, "--api-server-count", "2")
    engine, old = child(server, "engine-0")["pid"], {p.pid for p in server.http_workers()}
    assert len(old) == 2
    with ThreadPoolExecutor(20) as pool:
        streams = [
            pool.submit(server.chat, f"hello {i}", max_tokens=900, stream=True) for i in range(20)
        ]
        wait_for(lambda: server.row()["running"] >= 20)
        with Load(server, rate=20) as load:
            wait_for(lambda: load.num_good > 10)
            done = command(server, "reload")
            assert done.returncode == 0, done.stderr
            assert not any(stream.done() for stream in streams), "the streams are too short to tell"
            before = load.num_good
            wait_for(lambda: load.num_good > before + 20)
        events = [sse_events(stream.result().content) for stream in streams]
    assert not load.failures
    assert {stream[-1] for stream in events} == {"[DONE]"}
    assert {stream[-2]["choices"][0]["finish_reason"] for stream in events} == {"length"}
    wait_for(lambda: not old & {p.pid for p in server.http_workers()}, 20)
    assert len(server.http_workers()) == 2
    assert child(server, "engine-0")["pid"] == engine


@pytest.mark.slow
def test_several_old_servers_may_drain_at_once(start_server):
    server = start_server(*SLOW, "--drain-timeout", "60")
    streams = []
    for num_running, max_tokens in enumerate((2500, 1500, 1000), 1):
        streams.append(raw_request(server, LONG | {"stream": True, "max_tokens": max_tokens}))
        wait_for(lambda n=num_running: server.row()["running"] == n)
        assert command(server, "reload").returncode == 0
    names = [(c["name"], c["state"]) for c in status(server)["children"]]
    assert names.count(("http", "finishes its requests")) == 3
    for stream in streams:
        with stream, stream.makefile("rb") as lines:
            assert b"data: [DONE]\n" in list(lines)
    wait_for(lambda: len(status(server)["children"]) == 2, 20)


def test_settings_are_read_anew_and_wrong_ones_change_nothing(tmp_path, start_server):
    config = tmp_path / "config.toml"
    config.write_text("max_body_bytes = 2048\n")
    server = start_server(*SLOW, "--config", str(config))
    assert server.chat("x" * 4000, max_tokens=1).status_code == 413
    pid = child(server, "http")["pid"]
    for text, reason in {
        "max_body_bites = 1": "max_body_bytes",
        "uds = '/tmp/x'": "uds",
        "drain_timeout = 5.0": "restart",
        "[": "not TOML",
    }.items():
        config.write_text(text + "\n")
        done = command(server, "reload")
        assert done.returncode == 78 and reason in done.stderr, (text, done.stderr)
    assert child(server, "http")["pid"] == pid
    os.kill(pid, signal.SIGKILL)  # nor do they when it has to start again
    wait_for(lambda: child(server, "http")["restarts"] == 1 and status(server)["state"] == "ready")
    assert server.chat("x" * 4000, max_tokens=1).status_code == 413
    pid = child(server, "http")["pid"]
    config.write_text("max_body_bytes = 20480\n")
    done = command(server, "reload", "http")
    assert done.returncode == 0, done.stderr
    # The old server takes callers until it has read its signal.
    wait_for(lambda: server.chat("x" * 4000, max_tokens=1).status_code == 200)
    assert child(server, "http")["pid"] != pid


def test_a_server_that_cannot_start_replaces_nobody_and_says_why(tmp_path, start_server):
    config = tmp_path / "config.toml"
    config.write_text("")
    server = start_server(*SLOW, "--config", str(config), "--profile", "coder")
    pid = child(server, "http")["pid"]
    config.write_text('conversations = "mongodb://x"\n')
    done = command(server, "reload")
    assert done.returncode == 78 and "redis://" in done.stderr
    assert child(server, "http")["pid"] == pid
    wait_for(lambda: {worker.ppid() for worker in server.http_workers()} == {pid})


def test_a_half_without_engines_does_not_replace_one_that_has_them(tmp_path, start_server):
    model = start_server("--stub", command="model")
    config = tmp_path / "config.toml"
    config.write_text(f'model_run_dir = "{model.run_dir}"\n')
    server = start_server("--config", str(config), command="http")
    config.write_text(f'model_run_dir = "{tmp_path / "nothing"}"\n')
    done = command(server, "reload")
    assert done.returncode == 78 and "no engine was ready" in done.stderr
    assert server.text("hello", max_tokens=2)


def test_sighup_reloads(start_server):
    server = start_server(*SLOW)
    old = child(server, "http")["pid"]
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: child(server, "http")["pid"] != old and status(server)["state"] == "ready")
    assert server.text("hello", max_tokens=2)


def test_a_bad_model_directory_never_replaces_a_good_one(tmp_path, start_server):
    folder = tmp_path / "model"
    shutil.copytree(etc_dir() / "models" / "demo", folder)
    server = start_server(*SLOW, "--model", str(folder))
    pid = child(server, "engine-0")["pid"]
    good = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text("{}")
    done = command(server, "reload", "model")
    assert done.returncode == 78 and "tokenizer.json" in done.stderr
    assert child(server, "engine-0")["pid"] == pid
    assert server.text("hello", max_tokens=2)
    (folder / "tokenizer.json").write_text(good)
    done = command(server, "reload", "model")
    assert done.returncode == 0, done.stderr
    assert child(server, "engine-0")["pid"] != pid
    wait_for(lambda: server.get("/readyz").status_code == 200)
    assert server.text("hello", max_tokens=2)


@pytest.mark.parametrize("num_engines", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_engines_are_replaced_under_streams_that_go_on(start_server, num_engines):
    server = start_server(*SLOW, "--data-parallel-size", str(num_engines))
    names = [f"engine-{i}" for i in range(num_engines)]
    old = {child(server, name)["pid"] for name in names}
    with ThreadPoolExecutor(8) as pool:
        streams = [
            pool.submit(server.chat, f"hello {i}", max_tokens=2400, stream=True) for i in range(8)
        ]
        wait_for(lambda: sum(server.row(i)["running"] for i in range(num_engines)) == 8)
        done = command(server, "reload", "model")
        assert done.returncode == 0, done.stderr
        assert not any(stream.done() for stream in streams), "the streams are too short to tell"
        for stream in streams:
            events = sse_events(stream.result().content)
            assert events[-1] == "[DONE]", events[-1]
    assert not old & {child(server, name)["pid"] for name in names}


def test_an_engine_that_never_gets_up_is_tried_seldom_and_a_reload_mends_it(tmp_path, start_server):
    folder = tmp_path / "model"
    shutil.copytree(etc_dir() / "models" / "demo", folder)
    server = start_server(*SLOW, "--model", str(folder))
    (folder / "config.json").rename(tmp_path / "config.json")
    os.kill(child(server, "engine-0")["pid"], signal.SIGKILL)
    wait_for(lambda: status(server)["state"] == "broken", 60)
    row = child(server, "engine-0")
    assert row["state"] == "broken" and "config.json" in row["last_failure"]
    assert server.get("/readyz").status_code == 503
    assert server.get("/livez").status_code == 200
    assert command(server, "status").returncode == 1
    (tmp_path / "config.json").rename(folder / "config.json")
    done = command(server, "reload", "model")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: server.get("/readyz").status_code == 200)
    assert status(server)["state"] == "ready"


def test_a_drain_is_announced_then_done(start_server):
    server = start_server(*SLOW)
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(server.chat, "hello", max_tokens=400, stream=True)
        wait_for(lambda: server.row()["running"] == 1)
        drain = pool.submit(command, server, "drain")
        wait_for(lambda: server.get("/readyz").status_code == 503)
        assert server.get("/livez").status_code == 200
        assert server.text("still served", max_tokens=2)
        assert status(server)["state"] == "draining"
        assert "stop" in command(server, "reload").stderr
        assert sse_events(stream.result().content)[-1] == "[DONE]"
        assert drain.result().returncode == 0 and "drained" in drain.result().stdout
    assert server.process.wait(10) == 0
    with pytest.raises(requests.ConnectionError):
        server.get("/livez")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_new_requests_are_refused_with_words_until_the_last_stream_has_ended(
    start_server, num_processes
):
    server = start_server(*SLOW, "--api-server-count", str(num_processes), "--profile", "all")
    with ThreadPoolExecutor(3) as pool:
        streams = [
            pool.submit(server.chat, f"hello {i}", max_tokens=1200, stream=True) for i in range(2)
        ]
        wait_for(lambda: server.row()["running"] == 2)
        drain = pool.submit(command, server, "drain")
        wait_for(lambda: server.chat("late", max_tokens=2).status_code == 503, 30)
        for _ in range(4 * num_processes):
            for answer in (
                server.chat("late", max_tokens=2),
                server.post("/v1/completions", {"prompt": "late"}),
                server.post("/v1/code/generate", {"prompt": "late"}),
            ):
                assert answer.status_code == 503, answer.text
                assert answer.headers["Retry-After"] == "5"
            assert answer.headers["Content-Type"] == "application/json"
            assert server.get("/livez").status_code == 200
            assert server.get("/readyz").status_code == 503
            assert server.get("/v1/models").status_code == 200
        assert not any(stream.done() for stream in streams), "the streams are too short to tell"
        assert [sse_events(s.result().content)[-1] for s in streams] == ["[DONE]"] * 2
        assert drain.result().returncode == 0
    assert server.process.wait(15) == 0


def test_what_still_runs_when_a_drain_has_taken_its_time_is_told_so(start_server):
    server = start_server(*SLOW, "--drain-timeout", "4")
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(server.chat, "hello", max_tokens=4000, stream=True)
        wait_for(lambda: server.row()["running"] == 1)
        started = time.monotonic()
        assert command(server, "drain").returncode == 0
        assert time.monotonic() - started < 25
        assert sse_events(stream.result().content)[-1]["error"]["code"] == "server_shutdown"
    assert server.process.wait(10) == 0


def test_what_still_runs_at_the_end_of_a_drain_is_told_so(start_server):
    server = start_server(*SLOW, "--drain-timeout", "4")
    with ThreadPoolExecutor(3) as pool:
        stream = pool.submit(server.chat, "hello", max_tokens=4000, stream=True)
        whole = pool.submit(server.chat, "hello", max_tokens=4000)
        wait_for(lambda: server.row()["running"] == 2)
        assert server.stop() == 0
        events = sse_events(stream.result().content)  # a chunked body that was cut raises
        assert events[-1]["error"]["code"] == "server_shutdown"
        assert "[DONE]" not in events and len(events) > 2
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "server_shutdown"


def test_a_restart_on_a_handed_over_socket_refuses_nobody(tmp_path, start_server):
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        first = start_server(*SLOW, **hand_over(sock))
        with Load(first, rate=10) as load:
            wait_for(lambda: load.num_good > 5)
            assert first.stop() == 0
            second = start_server(*SLOW, **hand_over(sock))
            before = load.num_good
            wait_for(lambda: load.num_good > before + 20, 60)
        assert not load.failures
        assert second.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_arbiter_that_is_killed_or_stopped_is_replaced_within_10_s(start_server, number):
    server = start_server(*SLOW)
    old = psutil.Process(child(server, "http")["pid"])
    workers = old.children()
    os.kill(old.pid, number)
    if number == signal.SIGSTOP:
        workers[0].kill()  # nobody is left to start another
    started = time.monotonic()

    def is_back():
        try:
            return requests.get(server.url + "/readyz", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    wait_for(lambda: child(server, "http")["pid"] not in (None, old.pid) and is_back(), 30)
    assert time.monotonic() - started < 10
    _, alive = psutil.wait_procs([old, *workers], timeout=5)
    assert not alive, "orphans"
    assert child(server, "http")["restarts"] == 1


def test_systemd_is_told_the_truth(tmp_path, start_server):
    systemd = Notifications(tmp_path / "notify")
    watchdog = {"WATCHDOG_USEC": "2000000"}
    server = start_server(*SLOW, environ=systemd.environ | watchdog, ready=False)
    wait_for(lambda: systemd.has("READY"), 60)
    server.wait_until_ready()  # reads the line that says where
    assert server.get("/readyz").status_code == 200, "READY=1 before it was ready"
    wait_for(lambda: systemd.has("WATCHDOG"))
    assert command(server, "reload").returncode == 0
    names = [next(iter(message)) for message in systemd.messages]
    assert [n for n in names if n != "WATCHDOG"] == ["READY", "RELOADING", "READY"]
    assert server.stop() == 0
    assert systemd.has("STOPPING")
    systemd.close()


def test_commands_find_a_service_by_its_port_or_say_where_they_looked(start_server):
    server = start_server(*SLOW)
    assert "http" in command(server, "status").stdout
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as model_half:
        # A model half has no port, so whoever names one does not mean it.
        place = run_dir(Settings(), "model", {"XDG_RUNTIME_DIR": short})
        place.mkdir(parents=True)
        model_half.bind(str(place / "admin.sock"))
        model_half.listen()
        done = subprocess.run(
            [sys.executable, "-m", "qwenapi", "status", "--port", "1", "--profile", "openai"],
            capture_output=True,
            text=True,
            env=os.environ | {"XDG_RUNTIME_DIR": short},
            timeout=60,
        )
    assert done.returncode == 78 and "serve-1" in done.stderr
