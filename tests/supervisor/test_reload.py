"""Replacing the children of a group, without processes."""

import pytest

from tests.supervisor.test_supervisor import FakeChild
from workers.errors import ConfigError
from workers.supervisor.reload import FINISH_SECONDS, READY_SECONDS, Reloader
from workers.supervisor.supervisor import Supervisor


class FakePlan:
    """Settings that are read when the test says so."""

    def __init__(self):
        self.children = None
        self.error = None

    def poll(self):
        if self.error:
            raise self.error if isinstance(self.error, Exception) else ConfigError(self.error)
        return self.children


class Service:
    """Some engines and one HTTP server, all ready, at second 100."""

    def __init__(self, num_engines=2):
        self.engines = [FakeChild(f"engine-{i}") for i in range(num_engines)]
        self.http = FakeChild("http")
        self.plan = FakePlan()
        self.begin_error = None
        self.supervisor = Supervisor(
            [self.engines, [self.http]],
            drain_timeout=50,
            reloaders={
                "http": Reloader(1, self._begin, overlaps=True),
                "model": Reloader(0, self._begin, overlaps=False),
            },
        )
        self.supervisor.start()
        for child in (*self.engines, self.http):
            child.ready = True
        self.supervisor.tick(100)

    def _begin(self):
        if self.begin_error:
            raise self.begin_error
        return self.plan

    def reload(self, half=""):
        self.reply = self.supervisor.command({"command": "reload", "half": half})

    def states(self):
        return [(c["name"], c["state"]) for c in self.supervisor.status(0)["children"]]


@pytest.fixture
def service():
    return Service()


def test_a_new_server_is_ready_before_the_old_one_goes(service):
    service.reload()
    service.supervisor.tick(101)
    assert service.reply() is None
    new = FakeChild("http")
    service.plan.children = [new]
    service.supervisor.tick(102)
    service.supervisor.tick(103)
    assert (new.calls, service.http.calls) == (["start"], ["start"])
    assert service.supervisor.state == "reloading"
    new.ready = True
    service.supervisor.tick(104)
    assert service.http.calls == ["start", "terminate"]
    assert service.reply()["state"] == "ready"
    assert service.states()[2:] == [("http", "ready"), ("http", "finishes its requests")]
    service.http.exit_code = 0
    service.supervisor.tick(105)
    assert service.states()[2:] == [("http", "ready")]
    new.exit_code = 1
    service.supervisor.tick(106)
    service.supervisor.tick(107)
    assert new.calls == ["start", "start"], "the new one is not kept alive"


def test_several_old_servers_may_drain_at_once_and_a_stop_waits_for_them(service):
    for at in (110, 120):
        service.reload()
        service.plan.children = [FakeChild("http")]
        service.plan.children[0].ready = True
        service.supervisor.tick(at)
        service.supervisor.tick(at + 1)
    assert [state for _, state in service.states()[2:]] == ["ready"] + 2 * ["finishes its requests"]
    service.supervisor.stop()
    service.plan.children[0].exit_code = 0
    service.supervisor.tick(130)
    assert service.engines[0].calls == ["start"], "engines stop before streams have ended"
    service.supervisor.tick(160.5)
    assert service.http.exit_code is None
    service.supervisor.tick(161)
    assert service.http.exit_code == -9, "it drains for longer than it may"
    service.supervisor.tick(175)
    service.supervisor.tick(176)
    assert service.engines[0].calls == ["start", "terminate"]


@pytest.mark.parametrize("ending", ["exits", "says it failed", "takes too long"])
def test_a_server_that_never_gets_ready_replaces_nobody(service, ending):
    service.reload()
    new = FakeChild("http")
    service.plan.children = [new]
    service.supervisor.tick(102)
    if ending == "takes too long":
        service.supervisor.tick(102 + READY_SECONDS)
        expected = "not ready within"
    else:
        new.failure = expected = "ImportError: no module named x"
        new.exit_code = 3 if ending == "exits" else None
    service.supervisor.tick(103 + READY_SECONDS)
    assert expected in service.reply()["error"]
    service.supervisor.tick(104 + READY_SECONDS)
    service.supervisor.tick(105 + READY_SECONDS)
    assert new.exit_code is not None or "terminate" in new.calls, "it is left running"
    new.exit_code = 0
    service.supervisor.tick(106 + READY_SECONDS)
    assert service.http.calls == ["start"] and service.supervisor.state == "ready"
    assert service.states()[2:] == [("http", "ready")]
    service.reload()
    assert service.reply() is None, "no second try is possible"


def test_settings_that_cannot_be_read_replace_nobody(service):
    service.plan.error = "x.toml: unknown key prot"
    service.reload("model")
    service.supervisor.tick(101)
    assert service.reply()["error"] == "x.toml: unknown key prot"
    assert all(engine.calls == ["start"] for engine in service.engines)


def test_engines_are_replaced_one_after_the_other(service):
    service.reload("model")
    new = service.plan.children = [FakeChild("engine-0"), FakeChild("engine-1")]
    old = service.engines
    service.supervisor.tick(101)
    assert (old[0].calls, old[1].calls) == (["start", "terminate"], ["start"])
    service.supervisor.tick(101 + FINISH_SECONDS)
    assert old[0].exit_code == -9, "it finishes for longer than it may"
    service.supervisor.tick(112)
    service.supervisor.tick(113)
    assert new[0].calls == ["start"] and old[1].calls == ["start"]
    new[0].ready = True
    service.supervisor.tick(114)
    assert old[1].calls == ["start", "terminate"]
    old[1].exit_code = 0
    service.supervisor.tick(115)
    new[1].ready = True
    service.supervisor.tick(116)
    service.supervisor.tick(117)
    assert service.reply()["state"] == "ready"
    assert service.http.calls == ["start"]


def test_an_engine_comes_back_where_its_successor_fails_and_the_others_stay(service):
    service.reload("model")
    new = service.plan.children = [FakeChild("engine-0"), FakeChild("engine-1")]
    service.engines[0].exit_code = 0
    service.supervisor.tick(101)
    service.supervisor.tick(102)
    assert new[0].calls == ["start"]
    new[0].failure, new[0].exit_code = "/models/x: no config.json", 78
    service.supervisor.tick(103)
    service.supervisor.tick(104)
    assert service.engines[0].calls[-1] == "start"
    service.supervisor.tick(105)
    assert "no config.json" in service.reply()["error"]
    assert service.engines[1].calls == ["start"]
    assert service.supervisor.state == "ready"


@pytest.mark.parametrize("num_good", [1, 2])
@pytest.mark.parametrize("ending", ["exits", "cannot be started"])
def test_a_later_engine_that_fails_takes_back_those_before_it(num_good, ending):
    service = Service(num_engines=num_good + 1)
    service.reload("model")
    new = service.plan.children = [FakeChild(f"engine-{i}") for i in range(num_good + 1)]
    *good, bad = new
    for child in good:
        child.ready = True
    if ending == "exits":
        bad.failure = "out of memory"
    else:
        bad.start_error = OSError(11, "Resource temporarily unavailable")
    for now in range(101, 160):
        for child in (*service.engines, *good):
            if "terminate" in child.calls[-1:]:
                child.exit_code = 0
        if ending == "exits" and "start" in bad.calls:
            bad.exit_code = 75
        service.supervisor.tick(now)
    assert service.reply()["error"] == (
        "out of memory" if ending == "exits" else f"{bad.name} cannot be started: {bad.start_error}"
    )
    assert all(child.calls == ["start", "terminate"] for child in good)
    assert all(engine.calls == ["start", "terminate", "start"] for engine in service.engines)
    assert service.supervisor.state == "ready" and service.http.calls == ["start"]
    service.engines[0].exit_code = 1
    service.supervisor.tick(160)
    service.supervisor.tick(161)
    assert service.engines[0].calls[-1] == "start", "an old one that is back is not kept alive"


def test_an_old_engine_that_does_not_come_back_does_not_keep_the_others_away():
    service = Service(num_engines=3)
    service.reload("model")
    new = service.plan.children = [FakeChild(f"engine-{i}") for i in range(3)]
    new[0].ready = new[1].ready = True
    new[2].failure = service.engines[1].failure = "out of memory"
    for now in range(101, 160):
        for child in (*service.engines, *new):
            if "terminate" in child.calls[-1:]:
                child.exit_code = 0
        if "start" in new[2].calls:
            new[2].exit_code = 75
        if service.engines[1].calls[-1:] == ["start"] and "terminate" in service.engines[1].calls:
            service.engines[1].exit_code = 75
        service.supervisor.tick(now)
    assert service.reply()["error"] == "out of memory"
    assert service.engines[0].exit_code is None and service.engines[2].exit_code is None
    assert service.states()[1][1] in ("broken", "waits to start again", "starting")


@pytest.mark.parametrize("half", ["http", "model"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("unexpected character: line 1 column 1 (char 0)"),
        KeyError("profiles"),
        OSError(11, "Resource temporarily unavailable"),
    ],
)
@pytest.mark.parametrize("place", ["begins", "reads"])
def test_settings_that_fail_in_an_unexpected_way_change_nothing(service, half, error, place):
    if place == "begins":
        service.begin_error = error
    else:
        service.plan.error = error
    service.reload(half)
    service.supervisor.tick(101)
    assert "not read anew" in service.reply()["error"]
    assert service.supervisor.state == "ready"
    assert all(child.calls == ["start"] for child in (*service.engines, service.http))
    service.begin_error = service.plan.error = None
    service.reload("http")
    assert service.reply() is None, "no second try is possible"


def test_a_new_server_that_cannot_be_started_replaces_nobody(service):
    service.reload()
    service.plan.children = [FakeChild("http")]
    service.plan.children[0].start_error = OSError(24, "Too many open files")
    service.supervisor.tick(101)
    service.supervisor.tick(102)
    assert "Too many open files" in service.reply()["error"]
    assert service.http.calls == ["start"] and service.supervisor.state == "ready"


def test_another_number_of_engines_is_refused(service):
    service.reload("model")
    service.plan.children = [FakeChild("engine-0")]
    service.supervisor.tick(101)
    assert "restart" in service.reply()["error"]


def test_one_reload_at_a_time_and_none_of_what_is_not_there(service):
    service.reload()
    assert "under way" in service.supervisor.command({"command": "reload"})()["error"]
    assert (
        "no moon half"
        in service.supervisor.command({"command": "reload", "half": "moon"})()["error"]
    )


def test_a_stop_ends_a_reload_and_what_it_has_started(service):
    service.reload()
    new = FakeChild("http")
    service.plan.children = [new]
    service.supervisor.tick(101)
    service.supervisor.stop()
    service.supervisor.tick(102)
    service.supervisor.tick(103)
    assert new.calls == ["start", "terminate"]
    assert "stop" in service.reply()["error"]
