"""A process in waiting becomes the next engine, is made anew, and never outlives its supervisor."""

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from qwenapi.settings.table import etc_dir
from tests.running_server import RunningServer, wait_for
from tests.worker.test_held_files import may_lock

FLAGS = ("--kv-cache-gb", "0.2", "--threads", "1")

DEMO = etc_dir() / "models" / "demo" / "model.safetensors"


def in_waiting(server: RunningServer) -> list[psutil.Process]:
    """Return the processes that the supervisor has beside its HTTP server and its engine."""
    engine = server.row()["pid"]
    found = []
    for process in psutil.Process(server.process.pid).children():
        if process.pid == engine or process.status() == psutil.STATUS_ZOMBIE:
            continue
        if "spawn_main" in " ".join(process.cmdline()):
            found.append(process)
    return found


def imported(process: psutil.Process) -> bool:
    return any("libtorch" in mapped.path for mapped in process.memory_maps())


def locked_bytes(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmLck:\s+(\d+) kB", status)[1])


@pytest.fixture(params=["--standby"])
def server(request, start_server):
    server = start_server(request.param, *FLAGS)
    wait_for(lambda: (found := in_waiting(server)) and imported(found[0]), 60)
    return server


@pytest.mark.parametrize("server", ["--standby-weights"], indirect=True)
def test_the_process_in_waiting_becomes_the_engine_and_another_is_made(server):
    (standby,) = in_waiting(server)
    if may_lock(DEMO.stat().st_size):
        wait_for(lambda: locked_bytes(standby) >= DEMO.stat().st_size)
    answer = server.text("hello", max_tokens=8, temperature=0)
    os.kill(server.row()["pid"], signal.SIGKILL)
    assert server.text("hello", max_tokens=8, temperature=0) == answer
    assert server.row()["pid"] == standby.pid
    wait_for(lambda: [one.pid for one in in_waiting(server)] not in ([], [standby.pid]), 60)
    assert "engine-0: engine-0 ended (signal SIGKILL); starting it again" in server.log


@pytest.mark.slow
def test_one_that_has_died_is_made_again_and_none_is_left_at_the_end(server):
    (standby,) = in_waiting(server)
    standby.kill()
    wait_for(lambda: [one.pid for one in in_waiting(server)] not in ([], [standby.pid]), 60)
    assert server.chat("hello", max_tokens=3).status_code == 200
    assert server.stop() == 0  # which fails where a process is left


@pytest.mark.slow
def test_it_does_not_hold_up_the_end_of_a_service_whose_engine_is_down(server):
    (standby,) = in_waiting(server)
    os.kill(server.row()["pid"], signal.SIGKILL)
    standby.kill()
    server.process.terminate()
    assert server.process.wait(30) == 0


def test_it_ends_with_a_supervisor_that_is_killed(server):
    (standby,) = in_waiting(server)
    tree = server.tree()
    server.process.kill()
    psutil.wait_procs([standby, *tree], timeout=10)
    assert not standby.is_running()
