"""A short run of chaos; QWENAPI_TEST_CHAOS_SECONDS makes it longer, on real models too."""

import json
import os
import shutil
import subprocess
import sys

import pytest

SECONDS = float(os.environ.get("QWENAPI_TEST_CHAOS_SECONDS", "35"))
IS_LONG = "QWENAPI_TEST_CHAOS_SECONDS" in os.environ
SEED = os.environ.get("QWENAPI_TEST_CHAOS_SEED", "1")


@pytest.mark.parametrize(
    ("model", "conversations"),
    [("stub", "sqlite"), ("stub", "redis"), ("demo", "sqlite"), ("hybrid", "redis")],
)
def test_a_short_run_of_chaos_loses_and_doubles_nothing(tmp_path, model, conversations):
    if not IS_LONG and (model, conversations) != ("stub", "sqlite"):
        pytest.skip("set QWENAPI_TEST_CHAOS_SECONDS")
    if conversations == "redis" and shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing (sudo apt-get install redis-server)")
    report = tmp_path / "chaos.json"
    options = ("--seconds", str(SECONDS), "--seed", SEED, "--report", str(report))
    kind = ("--model", model, "--conversations", conversations)
    command = [sys.executable, "-m", "tests.chaos", *options, *kind]
    done = subprocess.run(command, text=True, capture_output=True, timeout=SECONDS + 540)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    figures = json.loads(report.read_text())
    assert figures["whole"] > SECONDS and len(figures["faults"]) >= min(12, SECONDS / 8)
