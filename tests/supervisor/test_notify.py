import os

import pytest

from tests.e2e.systemd import Notifications
from workers.supervisor.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    name = tmp_path / "notify" if request.param == "path" else f"@qwenapi-test-{os.getpid()}"
    systemd = Notifications(name)
    yield systemd
    systemd.close()


def test_messages_arrive_and_children_do_not_inherit_the_address(systemd):
    environ = {**systemd.environ, "HOME": "/"}
    Notifier(environ).send(READY=1, STATUS="a reason of\n  two lines: x=y")
    assert systemd.messages == [{"READY": "1", "STATUS": "a reason of two lines: x=y"}]
    assert environ == {"HOME": "/"}


def test_the_watchdog_is_patted_twice_in_its_time(systemd):
    notifier = Notifier({**systemd.environ, "WATCHDOG_USEC": "10000000"})
    for tenth in range(200):
        notifier.pat_watchdog(1000 + tenth / 10)
    assert systemd.messages == [{"WATCHDOG": "1"}] * 4


def test_the_watchdog_of_another_process_is_left_alone(systemd):
    notifier = Notifier({**systemd.environ, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"})
    notifier.pat_watchdog(1000)
    assert systemd.messages == []


def test_a_reload_has_the_time_systemd_asks_for(systemd):
    Notifier({**systemd.environ}).reloading()
    (message,) = systemd.messages
    assert message["RELOADING"] == "1" and int(message["MONOTONIC_USEC"]) > 0


def test_without_systemd_nothing_happens(tmp_path):
    Notifier({}).send(READY=1)
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).send(READY=1)
