"""The launcher's process at the other end of two pipes that hold 64 KiB each, on a program here."""

import json
import sys
from threading import Thread

import pytest

from qwenapi.cluster import launcher as module
from qwenapi.cluster.job import job_settings
from qwenapi.cluster.launcher import ClusterLauncher
from qwenapi.settings.table import Settings
from tests.running_server import wait_for

SETTINGS = Settings(model="/m", cluster="auto", data_parallel_size=64)
# Reads nothing until there is a file, then says what it has read.
DEAF = """
import json, pathlib, time
while not pathlib.Path({go!r}).exists():
    time.sleep(0.01)
while line := sys.stdin.readline():
    said = json.loads(line)
    if "do" in said:
        event = {{"event": "look", "engine": said["engine"], "life": said.get("life"), **said}}
        os.write(events, json.dumps(event).encode() + b"\\n")
"""
TALKATIVE = """
event = {"event": "survey", "nodes": ["a node with much to say"] * 10_000}
line = __import__("json").dumps(event).encode() + b"\\n"
while line:
    line = line[os.write(events, line):]
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return what makes a program the launcher's process of a ClusterLauncher."""
    launchers = []

    def start(program):
        script = tmp_path / "process"
        head = f"#!{sys.executable}\nimport os, sys\nevents = int(sys.argv[-1])\n"
        script.write_text(head + program)
        script.chmod(0o755)
        monkeypatch.setattr(module.sys, "executable", str(script))
        launchers.append(ClusterLauncher(SETTINGS))
        return launchers[-1]

    yield start
    for launcher in launchers:
        launcher.close()


def test_a_process_that_does_not_read_holds_up_nobody_and_gets_everything(start, tmp_path):
    launcher = start(DEAF.format(go=str(tmp_path / "go")))
    job = json.loads(json.dumps(job_settings(SETTINGS)))

    lives = []
    asking = Thread(
        target=lambda: lives.extend(launcher.start(engine, job) for engine in range(64)),
        daemon=True,
    )
    asking.start()
    asking.join(20)
    assert not asking.is_alive(), "it waits for the process to read"
    assert launcher.exit_code is None and len(json.dumps(job)) * 64 > 2 * 65_536
    launcher.signal(5, "kill")

    (tmp_path / "go").touch()
    heard = {engine: [] for engine in range(64)}

    def all_heard():
        for engine, events in heard.items():
            events += launcher.events(engine)
        return sum(map(len, heard.values())) == 65

    wait_for(all_heard, 20)
    assert [heard[engine][0]["life"] for engine in range(64)] == lives
    assert all(events[0]["job"] == job for events in heard.values())
    assert heard[5][1]["do"] == "kill"


def test_a_survey_of_many_nodes_is_heard_while_it_is_waited_for(start):
    launcher = start(TALKATIVE)
    launcher.ensure()
    launcher.wait(20)
    (found,) = launcher.events(-1)
    assert len(found["nodes"]) == 10_000


def test_one_that_does_not_end_is_not_waited_for_longer_than_said(start, tmp_path):
    launcher = start(DEAF.format(go=str(tmp_path / "never")))
    launcher.ensure()
    with pytest.raises(TimeoutError):
        launcher.wait(0.2)
