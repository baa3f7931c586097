import os
import subprocess
import sys

import pytest

from workers.errors import ConfigError, ExitCode, describe_exit
from workers.supervisor.supervised_process import (
    DUMP_SECONDS,
    TRIAL_SECONDS,
)
from workers.supervisor.supervisor import Supervisor, lock_run_dir


class FakeChild:
    """A child whose fate the test decides."""

    def __init__(self, name):
        self.name = name
        self.failure = None
        self.pid = 1
        self.calls = []
        self.exit_code = None
        self.ready = False
        self.serves = True
        self.hangs = None
        self.idle = True
        self.start_error = None

    def start(self):
        self.calls.append("start")
        if self.start_error:
            raise self.start_error
        self.exit_code = None

    def poll(self):
        return self.exit_code

    def is_ready(self):
        return self.ready

    def has_served(self):
        return self.serves

    def hang(self):
        return self.hangs

    def discourage(self):
        self.calls.append("discourage")

    def is_idle(self):
        return self.idle

    def terminate(self):
        self.calls.append("terminate")

    def dump(self):
        self.calls.append("dump")

    def kill(self):
        self.calls.append("kill")
        self.exit_code = -9


@pytest.fixture
def engine():
    return FakeChild("engine-0")


@pytest.fixture
def http():
    return FakeChild("http")


@pytest.fixture
def ready():
    return []


@pytest.fixture
def supervisor(engine, http, ready):
    supervisor = Supervisor([[engine], [http]], drain_timeout=10, on_ready=lambda: ready.append(1))
    supervisor.start()
    return supervisor


def make_ready(supervisor, *children):
    for child in children:
        child.ready = True
    supervisor.tick(0)


def test_ready_is_said_once_and_only_when_all_are(supervisor, engine, http, ready):
    engine.ready = True
    supervisor.tick(0)
    assert not ready
    make_ready(supervisor, http)
    supervisor.tick(1)
    assert ready == [1]


@pytest.fixture
def pause(supervisor, engine, monkeypatch):
    """Let the engine die at `now`; return how long it is until it is started again."""
    monkeypatch.setattr(
        "workers.supervisor.supervised_process.random.uniform", lambda low, high: high
    )

    def pause(now, code=-9):
        engine.exit_code, died = code, now
        supervisor.tick(now)
        while engine.exit_code is not None:
            now += 0.05
            supervisor.tick(now)
        return now - died

    return pause


def test_the_pauses_grow_over_lives_that_served_nothing_and_a_healthy_one_resets_them(
    supervisor, engine, http, pause
):
    make_ready(supervisor, engine, http)
    engine.serves = False
    # So far apart that they are no breakdown.
    pauses = [pause(100.0 + 80 * death) for death in range(12)]
    assert pauses == pytest.approx([0.1] * 12, abs=0.06), "each had lived for a minute"
    now = 2000.0
    pauses = []
    for _ in range(4):
        pauses.append(pause(now))
        now += pauses[-1]
    assert pauses[:3] == pytest.approx([0.1, 0.2, 0.4], abs=0.06)
    assert http.calls == ["start"]


@pytest.mark.parametrize("code", [-9, -11, 70])
@pytest.mark.parametrize("seconds", [0.5, 10, 3600])
def test_a_life_that_served_is_followed_by_the_next_at_once_however_often(
    supervisor, engine, http, pause, code, seconds
):
    make_ready(supervisor, engine, http)
    for death in range(18):
        assert pause(100.0 + death * seconds, code) < 0.06
        assert supervisor.state != "broken"


def test_a_life_that_served_ends_the_growth_over_those_before_it(
    supervisor, engine, http, pause, monkeypatch
):
    monkeypatch.setattr("workers.supervisor.circuit_breaker.MAX_DEATHS", 1000)
    make_ready(supervisor, engine, http)
    engine.serves, now = False, 100.0
    for _ in range(20):
        now += pause(now)
    monkeypatch.undo()
    engine.serves = True
    assert pause(now) < 0.06


@pytest.mark.parametrize(
    "error",
    [
        OSError(11, "Resource temporarily unavailable"),
        OSError(24, "Too many open files"),
        MemoryError(),
    ],
)
def test_a_child_that_cannot_be_started_is_tried_again_and_the_others_serve_on(
    supervisor, engine, http, error
):
    make_ready(supervisor, engine, http)
    engine.exit_code, engine.start_error = -9, error
    for now in (10, 10.2, 10.4, 11):
        supervisor.tick(now)
    assert engine.calls.count("start") > 1 and http.calls == ["start"]
    assert not supervisor.is_done and supervisor.state != "ready"
    row = supervisor.status(11)["children"][0]
    assert "engine-0 cannot be started" in row["last_failure"]
    for now in range(12, 80):
        supervisor.tick(now)
    assert supervisor.state == "broken", "it is tried without end"
    engine.start_error = None
    for now in range(80, 150):
        supervisor.tick(now)
    assert supervisor.state == "ready" and http.calls == ["start"]


def test_a_child_that_could_not_be_started_does_not_hold_up_a_stop(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    engine.exit_code, engine.start_error = -9, OSError(11, "Resource temporarily unavailable")
    supervisor.tick(10)
    supervisor.tick(11)
    supervisor.stop()
    http.exit_code = 0
    supervisor.tick(12)
    supervisor.tick(12.2)
    assert supervisor.is_done
    assert "terminate" not in engine.calls and "kill" not in engine.calls


def test_a_first_start_that_fails_ends_everything_with_its_words(engine, http):
    http.start_error = OSError(11, "Resource temporarily unavailable")
    supervisor = Supervisor([[engine], [http]], drain_timeout=10)
    supervisor.start()
    for now in range(3):
        supervisor.tick(now)
    assert supervisor.is_done and "http cannot be started" in supervisor.failure
    assert engine.calls == ["start", "kill"]


def test_a_child_that_dies_before_it_ever_served_ends_everything_with_its_words(
    supervisor, engine, http
):
    engine.failure = "/models/x: no such model directory"
    engine.exit_code = int(ExitCode.CONFIG)
    for now in range(3):
        supervisor.tick(now)
    assert supervisor.is_done
    assert supervisor.failure == "/models/x: no such model directory"
    assert http.calls == ["start", "kill"]


def test_a_hung_child_is_asked_for_its_stacks_then_killed_then_replaced(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    engine.hangs = "no sign of life for 3.0 s in step 7"
    supervisor.tick(10)
    assert engine.calls == ["start", "dump"]
    supervisor.tick(10 + DUMP_SECONDS / 2)
    assert engine.calls == ["start", "dump"]
    supervisor.tick(10 + DUMP_SECONDS)
    engine.hangs = None
    supervisor.tick(13)
    supervisor.tick(13.2)
    assert engine.calls == ["start", "dump", "kill", "start"]


def test_a_hung_child_is_not_given_the_time_to_drain(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    http.hangs = "the process is stopped"
    supervisor.tick(10)
    supervisor.stop()
    supervisor.tick(11)
    supervisor.tick(10 + DUMP_SECONDS)
    assert http.exit_code == -9


def test_who_dies_again_and_again_without_serving_is_tried_seldom_until_it_serves(
    supervisor, engine, http
):
    make_ready(supervisor, engine, http)
    engine.serves = False
    now = 100.0
    for _ in range(5):
        assert supervisor.state != "broken"
        engine.exit_code = 1
        supervisor.tick(now)
        while engine.exit_code is not None and supervisor.state != "broken":
            now += 0.2
            supervisor.tick(now)
    broken_at, starts = now, engine.calls.count("start")
    assert supervisor.state == "broken" and now < 110
    for trial in (1, 2):
        supervisor.tick(broken_at + trial * TRIAL_SECONDS - 1)
        assert engine.calls.count("start") == starts + trial - 1
        supervisor.tick(broken_at + trial * TRIAL_SECONDS)
        assert engine.calls.count("start") == starts + trial
        engine.exit_code = 1
        supervisor.tick(broken_at + trial * TRIAL_SECONDS)
        assert supervisor.state == "broken"
    supervisor.tick(broken_at + 3 * TRIAL_SECONDS)
    engine.serves = True
    supervisor.tick(broken_at + 3 * TRIAL_SECONDS + 1)
    assert supervisor.state == "ready"
    engine.exit_code = 1
    supervisor.tick(broken_at + 3 * TRIAL_SECONDS + 2)
    assert supervisor.state == "starting", "one death after it served is no breakdown"


def test_deaths_that_lie_far_apart_break_nothing(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    engine.serves = False
    for death in range(10):
        engine.exit_code = 1
        supervisor.tick(100.0 * (death + 1))
        supervisor.tick(100.0 * (death + 1) + 50)
        supervisor.tick(100.0 * (death + 1) + 51)
    assert supervisor.state == "ready"


def test_a_drain_is_announced_before_it_begins(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    supervisor.drain(10)
    supervisor.drain(11)  # asked twice, done once
    assert supervisor.state == "draining"
    supervisor.tick(14)
    assert http.calls == ["start", "discourage"]
    supervisor.tick(15)
    assert http.calls == ["start", "discourage", "terminate"]
    assert supervisor.state == "stopping"


@pytest.mark.parametrize("seconds", [0.2, 3, 9.9])
def test_a_drain_stops_when_the_last_request_has_ended(supervisor, engine, http, seconds):
    make_ready(supervisor, engine, http)
    http.idle = False
    supervisor.drain(10)
    supervisor.tick(15)
    supervisor.tick(15 + seconds)
    assert supervisor.state == "draining" and "terminate" not in http.calls
    http.idle = True
    supervisor.tick(15 + seconds)
    assert supervisor.state == "stopping" and http.calls[-1] == "terminate"


def test_a_drain_waits_no_longer_than_it_may_nor_for_what_does_not_run(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    http.idle = False
    supervisor.drain(10)
    supervisor.tick(24.9)
    assert supervisor.state == "draining"
    supervisor.tick(25)
    assert http.calls == ["start", "discourage", "terminate"]


def test_a_drain_does_not_wait_for_a_child_that_is_down(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    http.idle, http.start_error, http.exit_code = False, OSError(11, "no process"), 1
    supervisor.tick(9)
    supervisor.tick(9.5)
    supervisor.tick(9.6)
    supervisor.drain(9.7)
    while supervisor.status(0)["children"][1]["state"] != "waits to start again":
        supervisor.tick(9.8)
    supervisor.tick(14.7)
    supervisor.tick(14.8)
    assert supervisor.state == "stopping"


def test_a_second_wish_ends_a_drain_at_once(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    http.idle = False
    supervisor.drain(10)
    supervisor.tick(16)
    supervisor.stop()
    supervisor.tick(16.2)
    assert http.calls[-1] == "terminate"


def test_the_end_of_listening_is_told_once_when_a_stop_begins(engine, http):
    told = []
    supervisor = Supervisor([[engine], [http]], drain_timeout=10, on_stop=lambda: told.append(1))
    supervisor.start()
    make_ready(supervisor, engine, http)
    assert not told
    supervisor.stop()
    supervisor.tick(1)
    supervisor.tick(2)
    assert told == [1]


def test_stopping_drains_http_first_and_the_engine_after_it(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    supervisor.stop()
    supervisor.tick(1)
    assert (engine.calls, http.calls) == (["start"], ["start", "terminate"])
    supervisor.tick(2)
    assert engine.calls == ["start"]
    http.exit_code = 0
    supervisor.tick(3)
    assert engine.calls == ["start", "terminate"]
    assert not supervisor.is_done
    engine.exit_code = 0
    supervisor.tick(4)
    assert supervisor.is_done


def test_who_does_not_drain_in_time_is_killed(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    supervisor.stop()
    supervisor.tick(1)
    supervisor.tick(10)
    assert "kill" not in http.calls
    supervisor.tick(11)
    assert "kill" in http.calls


def test_a_second_signal_ends_all_at_once(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    supervisor.stop()
    supervisor.stop()
    supervisor.tick(1)
    supervisor.tick(1.1)
    assert supervisor.is_done
    assert "kill" in engine.calls and "kill" in http.calls


def test_a_child_waiting_for_its_restart_does_not_hold_up_the_stop(supervisor, engine, http):
    make_ready(supervisor, engine, http)
    engine.exit_code = 1
    supervisor.tick(1)
    supervisor.stop()
    http.exit_code = 0
    supervisor.tick(100)  # long after its pause is over
    assert supervisor.is_done
    assert engine.calls == ["start"]


def test_exit_codes_are_named():
    assert describe_exit(-9) == "signal SIGKILL"
    assert describe_exit(78) == "exit code 78, CONFIG"
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-34) == "signal SIGRTMIN"
    assert describe_exit(-35) == "signal SIGRTMIN+1"
    assert describe_exit(-63) == "signal SIGRTMIN+29"
    assert describe_exit(-64) == "signal SIGRTMAX"
    assert describe_exit(-33) == "signal 33"
    assert describe_exit(-300) == "signal 300"


def test_a_run_directory_has_one_owner_and_the_second_is_told_which(tmp_path):
    fd = lock_run_dir(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path\n"
        "from workers.supervisor.supervisor import lock_run_dir\n"
        "lock_run_dir(Path(sys.argv[1]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True
    )
    assert f"already running, pid {os.getpid()}" in other.stderr
    os.close(fd)
    os.close(lock_run_dir(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        lock_run_dir(tmp_path / "file")


def test_a_supervisor_that_fails_leaves_no_children_behind():
    """In a process of its own: `run` takes over the signals."""
    code = """
from tests.supervisor.test_supervisor import FakeChild
from workers.supervisor.supervisor import Supervisor
child = FakeChild("engine-0")
child.hang = lambda: 1 / 0
supervisor = Supervisor([[child]], drain_timeout=1)
print(supervisor.run(), child.calls)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split(" ", 1)[0] == str(int(ExitCode.INTERNAL))
    assert "kill" in done.stdout and "ZeroDivisionError" in done.stderr
