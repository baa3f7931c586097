"""The wall clock is set while a server answers and drains: only monotonic clocks rule it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clock import HAS_COMPILER, Clock
from tests.running_server import wait_for

SLOW = ("--stub", "--stub-step-seconds", "0.01", "--log-format", "json")
HOUR = 3600
STEPS = (HOUR, -HOUR, 24 * HOUR, -24 * HOUR)

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="without a C compiler")


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


def finished(server):
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "request"]


def test_no_timeout_fires_and_no_duration_is_wrong_when_the_clock_is_set(start_server, clock):
    server = start_server(*SLOW, "--queue-timeout", "30", environ=clock.environ)
    with ThreadPoolExecutor(8) as pool:
        for seconds in STEPS:
            before = time.time()
            streams = [
                pool.submit(server.stream, f"q{i}", max_tokens=60, ignore_eos=True)
                for i in range(8)
            ]
            wait_for(lambda: server.row()["running"] == 8)
            clock.set_back_or_forth(seconds)
            asked = server.chat("and now?", max_tokens=3).json()
            assert abs(asked["created"] - before) > 3000, "the clock was not set"
            for stream in streams:
                events = stream.result()
                assert events[-1]["choices"][0]["finish_reason"] == "length"
            assert server.get("/readyz").status_code == 200
    lines = wait_for(lambda: len(finished(server)) == 36 and finished(server))
    assert all(line["ending"] == "successful" and 0 <= line["seconds"] < 60 for line in lines)
    assert "hangs" not in server.log


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_drain_is_as_long_whatever_the_clock_says(start_server, clock, seconds):
    server = start_server(*SLOW, environ=clock.environ)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(server.stream, "a long one", max_tokens=150, ignore_eos=True)
        wait_for(lambda: server.row()["running"] == 1)
        server.process.terminate()
        wait_for(lambda: "stopping within" in server.log)
        clock.set_back_or_forth(seconds)
        assert stream.result()[-1]["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(30) == 0
