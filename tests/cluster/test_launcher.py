"""The launcher of a supervisor never waits for the process that speaks to Ray."""

import os
import signal
import subprocess

from qwenapi.cluster import launcher
from qwenapi.settings.table import Settings
from tests.running_server import wait_for

NUM_ENGINES = 40
JOB = {"settings": "x" * 10_000}


def test_jobs_that_are_not_taken_yet_are_kept_and_sent_later(tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    popen = subprocess.Popen

    def read_to_file(command, **options):
        return popen(["sh", "-c", 'exec cat > "$0"', str(taken)], **options)

    monkeypatch.setattr(launcher.subprocess, "Popen", read_to_file)
    started = launcher.ClusterLauncher(Settings(cluster="auto"))
    try:
        started.ensure()
        wait_for(lambda: taken.exists() and taken.read_bytes())  # it is cat by now
        os.kill(started.pid, signal.SIGSTOP)
        lives = [started.start(engine, JOB) for engine in range(NUM_ENGINES)]
        os.kill(started.pid, signal.SIGCONT)
        wait_for(
            lambda: started.events(0) == [] and taken.read_bytes().count(b"\n") == NUM_ENGINES + 1
        )
        assert lives == list(range(1, NUM_ENGINES + 1))
        assert taken.read_bytes().count(JOB["settings"].encode()) == NUM_ENGINES
    finally:
        started.close()
