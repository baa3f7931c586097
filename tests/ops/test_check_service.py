"""bin/check-service against real servers: well, stopped, hung, slow."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from qwenapi.commands.check_service import FAILURE
from tests.running_server import wait_for

PROGRAM = Path(__file__).resolve().parents[2] / "bin" / "check-service"


@pytest.fixture
def check(tmp_path):
    def run(url, *flags, environ=None):
        command = [PROGRAM, "--url", url, "--timeout", "3", *map(str, flags)]
        environ = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(tmp_path), **(environ or {})}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def report_of(done):
    report = json.loads(done.stdout)
    return report["status"], {check["name"]: check for check in report["checks"]}


def test_a_well_service_is_shown_with_its_figures(check, start_server, tmp_path):
    server = start_server("--stub", "--profile", "all")
    for _ in range(3):
        assert server.chat("hello", max_tokens=5).status_code == 200
    log = tmp_path / "service.log"
    log.write_text("all is well\n" * 5 + "engine-0 hangs (no step for 9 s): killing it\n")
    done = check(server.url, "--json", "--run-dir", server.run_dir, "--log", log)
    status, checks = report_of(done)
    assert (done.returncode, status) == (0, "ok"), done.stdout
    assert f"pid {server.process.pid}" in checks["service"]["text"]
    assert checks["/readyz"]["figures"]["http_status"] == 200
    assert checks["/health"]["figures"]["body"]["status"] == "ok"
    figures = checks["figures"]["figures"]
    assert figures["ttft_p50"] > 0 and figures["ttft_p95"] > 0 and figures["running"] == 0
    assert checks["generation"]["figures"]["first_token"] > 0
    assert checks["last errors"]["figures"]["lines"] == [
        "engine-0 hangs (no step for 9 s): killing it"
    ]
    page = check(server.url)
    assert page.returncode == 0 and page.stdout.endswith(f"{server.url}: ok\n")
    assert "first token p50" in page.stdout and "0 waiting" in page.stdout


@pytest.mark.parametrize(("profile", "path"), [("qwen2", "/generate"), ("coder", "chat_stream")])
def test_the_generation_is_asked_in_the_words_of_the_profile(check, start_server, profile, path):
    server = start_server("--stub", "--profile", profile)
    done = check(server.url, "--json")
    assert done.returncode == 0, done.stdout
    assert path in report_of(done)[1]["generation"]["text"]
    server.wait_until_idle()


def test_a_unix_socket_is_asked_as_well(check, start_server, tmp_path):
    path = tmp_path / "http.sock"
    start_server("--stub", "--uds", str(path))
    done = check(f"unix:{path}")
    assert done.returncode == 0, done.stdout


def test_a_stopped_service_is_down(check, start_server):
    server = start_server("--stub")
    assert server.stop() == 0
    done = check(server.url, "--json", "--run-dir", server.run_dir)
    status, checks = report_of(done)
    assert (done.returncode, status) == (2, "down")
    assert checks["port"]["status"] == "down"
    assert checks["service"]["status"] == "degraded"


def test_a_service_whose_engine_is_stopped_is_down(check, start_server):
    # The supervisor would kill the engine, were it not to wait that long.
    server = start_server("--stub", "--profile", "all", "--step-timeout", "600")
    engine = server.row()["pid"]
    os.kill(server.process.pid, signal.SIGSTOP)
    os.kill(engine, signal.SIGSTOP)
    try:
        done = check(server.url, "--json")
        status, checks = report_of(done)
        assert (done.returncode, status) == (2, "down")
        assert checks["generation"]["text"] == "no answer in time"
        assert checks["port"]["status"] == "ok"
    finally:
        os.kill(engine, signal.SIGCONT)
        os.kill(server.process.pid, signal.SIGCONT)
    wait_for(lambda: check(server.url).returncode == 0)


def test_a_service_without_engines_is_down(check, start_server, short_dir):
    path = short_dir / "http.sock"
    nowhere = ("--model-run-dir", str(short_dir / "model"))
    start_server("--uds", str(path), *nowhere, command="http", ready=False)
    wait_for(lambda: report_of(check(f"unix:{path}", "--json"))[1]["port"]["status"] == "ok")
    done = check(f"unix:{path}", "--json")
    status, checks = report_of(done)
    assert (done.returncode, checks["/readyz"]["figures"]["http_status"]) == (2, 503)


def test_a_slow_service_is_degraded(check, start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.1")
    done = check(server.url, "--slow", "0.0001")
    assert done.returncode == 1 and done.stdout.endswith("degraded\n")


def test_a_wrong_call_has_a_code_of_its_own(check):
    done = check("ftp://somewhere")
    assert done.returncode == 3 and "http://HOST:PORT" in done.stderr
    assert check("http://127.0.0.1:9", "--unheard").returncode == 3


def test_it_runs_without_what_the_service_needs():
    """With the system's Python and nothing installed: a broken .venv may be what it finds."""
    source = PROGRAM.parent.parent / "qwenapi" / "commands" / "check_service.py"
    command = ["/usr/bin/python3", "-I", "-S", source, "--url", "http://127.0.0.1:9"]
    if not Path(command[0]).exists():
        pytest.skip("there is no python3 of the system")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "port" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "is_failure"),
    [
        ("supervisor: engine-0 ended (signal SIGKILL); starting it again", False),
        ("[info     ] request code=engine_failed ending=failed status=500", True),
        ("[error    ] request 7 failed", True),
        ("Traceback (most recent call last):", True),
        ("[info     ] request ending=stop status=200 errors=0", False),
    ],
)
def test_lines_of_failures_are_told_from_others(line, is_failure):
    assert bool(FAILURE.search(line)) is is_failure
